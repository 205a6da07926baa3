"""The operator as a pod with its own Role, beside real KServe: what it writes, says and leaves."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
import yaml
from localcluster.cluster import Cluster, Object, wait_until
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.deployed import API, KIND, Deployed, conditions, manifest
from sheaf_e2e.operator_faults import OperatorFaults
from sheaf_e2e.release import OPERATOR, OPERATOR_NAMESPACE
from sheaf_operator.problems.reasons.table import REASONS

pytestmark = pytest.mark.cluster
SERVICE = "serving.kserve.io/v1beta1"
SMALL = {"cpu": "100m", "memory": "2Gi"}
NO_IMAGE = {"image": "nowhere/nothing:1"}


def apply(cluster: Cluster, name: str, namespace: str, uri: str = "pvc://smollm2", **spec: Any) -> Deployed:
    spec = {"resources": SMALL, "termination": {"drainTimeoutSeconds": 5}, **spec}
    return Deployed(cluster, manifest(name, namespace, uri, 512, "--kv-cache-memory", "64MiB", **spec))


def objects(cluster: Cluster, kinds: str, namespace: str) -> list[Object]:
    items: list[Object] = json.loads(cluster.kubectl("get", kinds, "-n", namespace, "-o", "json"))["items"]
    return items


def versions(cluster: Cluster, namespace: str) -> dict[str, str]:
    """uid → resourceVersion of all that the operator or KServe writes."""
    found = objects(cluster, "llmd,inferenceservices,servingruntimes,deployments", namespace)
    return {o["metadata"]["uid"]: o["metadata"]["resourceVersion"] for o in found}


def uids(cluster: Cluster, kinds: str, namespace: str) -> set[str]:
    return {o["metadata"]["uid"] for o in objects(cluster, kinds, namespace)}


def test_from_apply_to_answer_to_nothing(operator: Cluster, namespace: str, model_claim: str) -> None:
    life = apply(operator, "life", namespace)
    life.wait_condition("Ready", "True", "Serving", timeout=120)
    life.wait(lambda s: "capacity" in s, "capacity was measured")

    # The user's object: a status, and nothing else of ours.
    told = life.get()
    assert "finalizers" not in told["metadata"]
    assert "annotations" not in told["metadata"]
    assert told["metadata"]["generation"] == 1
    assert [p["phase"] for p in told["status"]["timeline"]][-1] == "Ready"
    assert told["status"]["url"] == f"http://life-predictor.{namespace}.svc.cluster.local"
    assert conditions(told["status"])["Stalled"]["status"] == "False"
    assert conditions(told["status"])["Fits"]["status"] == "True"

    answer = httpx.post(
        life.url + "/v1/completions",
        json={"model": "life", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["text"]

    # At rest nothing is written, neither for what is there nor for what is measured.
    before = versions(operator, namespace)
    life.wait_counted("scrapes", 2)
    life.wait_looked_at()
    assert versions(operator, namespace) == before

    # Drift is repaired.
    pods, template = life.pod_names(), life.wait_deployment()["spec"]["template"]
    operator.kubectl("delete", "servingruntimes", "--all", "-n", namespace)
    # Not a label: KServe would carry it into the pods.
    drift = {"spec": {"predictor": {"deploymentStrategy": {"type": "Recreate", "rollingUpdate": None}}}}
    operator.api.patch(SERVICE, "InferenceService", "life", drift, namespace)
    wait_until(
        lambda: (
            len(objects(operator, "servingruntimes", namespace)) == 1
            and objects(operator, "inferenceservices", namespace)[0]["spec"]["predictor"][
                "deploymentStrategy"
            ]["type"]
            == "RollingUpdate"
        ),
        30,
        "runtime and strategy are back",
    )
    # No pod is restarted by it: once KServe has passed on a later change, it has seen all that was before.
    life.patch({"rollout": {"strategy": "Recreate"}})
    later = life.wait_deployment(lambda o: o["spec"]["strategy"]["type"] == "Recreate")
    assert later["spec"]["template"] == template
    assert life.pod_names() == pods

    operator.api.delete(API, KIND, "life", namespace)
    wait_until(
        lambda: (
            not objects(operator, "inferenceservices,servingruntimes,deployments,pods,services", namespace)
        ),
        90,
        "nothing is left",
        every=1.0,
    )


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("no-path", {"uri": "pvc://smollm2/nowhere"}, "ModelNotFound", "spec.model.uri"),
    ("no-claim", {"uri": "pvc://absent"}, "VolumeNotFound", '"absent" not found'),
    ("no-image", {"pod": NO_IMAGE}, "ImageNotFound", "nowhere/nothing:1"),
    ("no-gpu", {"accelerator": {"count": 1}}, "InsufficientGPU", "Insufficient nvidia.com/gpu"),
    ("no-cpu", {"resources": {"cpu": "1000"}}, "Unschedulable", "Insufficient cpu"),
    ("bad-flag", {"engine": {"extraArgs": ["--no-such-flag"]}}, "InvalidArguments", "--no-such-flag"),
]


@pytest.mark.parametrize(("name", "fields", "reason", "words"), WRONG, ids=[w[0] for w in WRONG])
def test_the_status_says_what_is_wrong(
    operator: Cluster,
    namespace: str,
    model_claim: str,
    name: str,
    fields: dict[str, Any],
    reason: str,
    words: str,
) -> None:
    wrong = apply(operator, name, namespace, **fields)
    told = wrong.wait_condition("Ready", "False", reason, timeout=90)
    assert words in told["message"]
    assert f"docs/conditions.md#{reason.lower()}" in told["message"]
    lasting = REASONS[reason].mends == "never"  # what may yet mend is no stall before the patience ends
    wrong.wait_condition("Stalled", "True" if lasting else "False")
    wrong.wait_condition("Reconciling", "False" if lasting else "True", reason)


def test_an_object_of_somebody_else_is_left_alone(operator: Cluster, namespace: str) -> None:
    foreign = {
        "apiVersion": SERVICE,
        "kind": "InferenceService",
        "metadata": {
            "name": "taken",
            "namespace": namespace,
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "x/y:1"}]}},
    }
    operator.api.apply(foreign)
    before = operator.api.get(SERVICE, "InferenceService", "taken", namespace)["spec"]
    stalled = apply(operator, "taken", namespace).wait_condition("Stalled", "True", "NameConflict")
    assert "was not made by Sheaf" in stalled["message"]
    after = operator.api.get(SERVICE, "InferenceService", "taken", namespace)
    assert after["spec"] == before
    assert "ownerReferences" not in after["metadata"]
    operator.api.delete(SERVICE, "InferenceService", "taken", namespace)
    wait_until(
        lambda: (
            (found := operator.api.find(SERVICE, "InferenceService", "taken", namespace))
            and "ownerReferences" in found["metadata"]
        ),
        40,
        "the free name is taken",
        every=0.5,
    )


def test_changes_make_revisions_and_history_is_bounded(operator: Cluster, namespace: str) -> None:
    """Pods cannot start here (no such image), which changes nothing for what is written."""
    runtimes: list[str] = []
    for length in (100, 200, 300, 400, 500):
        rev = apply(operator, "rev", namespace, pod=NO_IMAGE, engine={"maxModelLen": length})
        generation = rev.get()["metadata"]["generation"]
        revision = rev.wait(
            lambda s, g=generation: s.get("observedGeneration") == g and s["revision"],  # type: ignore[misc]
            f"generation {generation} is observed",
        )
        runtimes.append(f"rev-{revision}")
        service = operator.api.get(SERVICE, "InferenceService", "rev", namespace)
        assert service["spec"]["predictor"]["model"]["runtime"] == runtimes[-1]
    assert len(set(runtimes)) == 5
    wait_until(
        lambda: (
            {o["metadata"]["name"] for o in objects(operator, "servingruntimes", namespace)}
            == set(runtimes[-3:])
        ),
        30,
        "the last three runtimes are kept",
    )


def test_replicas_belong_to_the_user_when_scaling_is_disabled(operator: Cluster, namespace: str) -> None:
    fixed = apply(operator, "fixed", namespace, pod=NO_IMAGE, autoscaling={"mode": "Disabled"})
    fixed.wait_deployment()
    # Without spec.replicas the count is nobody's but the one who sets it.
    operator.kubectl("scale", "-n", namespace, "deployment/fixed-predictor", "--replicas=2")
    fixed.wait_looked_at()
    fixed.wait_count(2)
    operator.kubectl("scale", "-n", namespace, "llmd/fixed", "--replicas=3")
    fixed.wait_count(3)
    operator.kubectl("scale", "-n", namespace, "deployment/fixed-predictor", "--replicas=1")
    fixed.wait_count(3)  # drift is repaired
    assert fixed.get()["status"]["selector"] == "sheaf.dev/deployment=fixed"


def test_the_minimum_is_written_and_suspend_stops_everything(operator: Cluster, namespace: str) -> None:
    bounds = {"minReplicas": 2, "maxReplicas": 3}
    pause = apply(operator, "pause", namespace, pod=NO_IMAGE, autoscaling=bounds)
    pause.wait_count(2)
    pause.patch({"suspend": True})
    pause.wait_condition("Ready", "False", "Suspended")
    wait_until(
        lambda: not objects(operator, "deployments,pods", namespace), 60, "all pods are gone", every=0.5
    )
    pause.wait_condition("Reconciling", "False", "Suspended")
    pause.wait_condition("Stalled", "False")
    pause.patch({"suspend": False})
    pause.wait_count(2)


def test_deletion_works_with_the_operator_down(
    operator: Cluster, namespace: str, faults: OperatorFaults
) -> None:
    apply(operator, "orphan", namespace, pod=NO_IMAGE).wait_deployment()
    with faults.without_operator():
        operator.kubectl("delete", "-n", namespace, "llmd/orphan", "--timeout=10s")
        wait_until(
            lambda: not objects(operator, "inferenceservices,servingruntimes,deployments,pods", namespace),
            60,
            "nothing is left",
            every=0.5,
        )


def test_orphans_are_taken_back_and_their_pods_run_on(operator: Cluster, namespace: str) -> None:
    """Pods cannot start here (no such claim): that the status says so shows that they are seen as ours."""
    before = apply(operator, "again", namespace)
    before.wait_condition("Ready", "False", "VolumeNotFound")
    kinds = "inferenceservices,servingruntimes,deployments,replicasets,pods"
    children, gone = uids(operator, kinds, namespace), before.get()["metadata"]["uid"]
    operator.kubectl("delete", "-n", namespace, "llmd/again", "--cascade=orphan", "--timeout=30s")
    again = apply(operator, "again", namespace)
    again.wait_condition("Ready", "False", "VolumeNotFound")
    owner = again.get()["metadata"]["uid"]
    assert owner != gone
    assert uids(operator, kinds, namespace) == children
    for child in objects(operator, "inferenceservices,servingruntimes", namespace):
        assert [ref["uid"] for ref in child["metadata"]["ownerReferences"]] == [owner]


def may(cluster: Cluster, user: str, verb: str, resource: str) -> bool:
    group = "apps" if resource == "deployments" else ""
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": "default"}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(cluster.api.request("POST", path, json=review).json()["status"]["allowed"])


def test_the_role_is_enough_and_no_more(operator: Cluster) -> None:
    """The operator may do what the manifest says; its log shows no refusal in all tests before."""
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}"
    documents = yaml.safe_load_all((CHECKOUT / "manifests" / "rbac.yaml").read_text())
    rules = [rule for d in documents if d["kind"] in ("ClusterRole", "Role") for rule in d.get("rules", [])]
    verbs = {v for rule in rules for v in rule["verbs"]}
    assert verbs <= {"get", "list", "watch", "create", "patch", "update", "delete"}
    assert not any("*" in rule[key] for rule in rules for key in ("apiGroups", "resources", "verbs"))
    for what in ("secrets", "configmaps", "nodes", "namespaces", "services", "deployments"):
        for verb in ("create", "update", "patch", "delete"):
            assert not may(operator, account, verb, what), (verb, what)
    log = operator.kubectl("logs", "-n", OPERATOR_NAMESPACE, f"deployment/{OPERATOR}", "--tail=-1")
    assert not re.search(r"forbidden|Traceback", log, re.IGNORECASE), log[-3000:]
