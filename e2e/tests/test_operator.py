"""The operator as a pod with its own Role, beside real KServe: what it writes, says and leaves."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import yaml
from sheaf_e2e.api import Object
from sheaf_e2e.cluster import OPERATOR, OPERATOR_NAMESPACE, Cluster
from sheaf_e2e.faults import Faults
from sheaf_e2e.launcher import CHECKOUT
from sheaf_e2e.local import LocalCluster
from sheaf_e2e.waiting import wait_until

pytestmark = pytest.mark.cluster
API = "sheaf.dev/v1alpha1"
SERVICE = "serving.kserve.io/v1beta1"
RUNTIME = "serving.kserve.io/v1alpha1"
SMALL = {"cpu": "100m", "memory": "2Gi"}
NO_IMAGE = {"image": "nowhere/nothing:1"}


def resource(name: str, namespace: str, uri: str = "pvc://smollm2", **spec: Any) -> Object:
    return {
        "apiVersion": API,
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": uri},
            "engine": {"maxModelLen": 512, "extraArgs": ["--kv-cache-memory", "64MiB"]},
            "accelerator": {"count": 0},
            "resources": SMALL,
            "termination": {"drainTimeoutSeconds": 5},
            **spec,
        },
    }


def conditions(obj: Object) -> dict[str, Object]:
    return {c["type"]: c for c in obj.get("status", {}).get("conditions", [])}


def wait_status(
    cluster: Cluster, obj: Object, judge: Callable[[Object], bool], describe: str, timeout: float = 60
) -> Object:
    """The LLMDeployment once `judge` likes it."""
    metadata = obj["metadata"]

    def seen(objects: list[Object]) -> Object | None:
        return next((o for o in objects if judge(o)), None)

    found: Object = cluster.api.wait_for(
        API,
        "LLMDeployment",
        seen,
        namespace=metadata["namespace"],
        name=metadata["name"],
        timeout=timeout,
        describe=describe,
    )
    return found


def wait_condition(
    cluster: Cluster, obj: Object, kind: str, status: str, reason: str | None = None, timeout: float = 60
) -> Object:
    """The condition, once it has this status (and reason)."""

    def judge(seen: Object) -> bool:
        found = conditions(seen).get(kind, {})
        return found.get("status") == status and reason in (None, found.get("reason"))

    told = wait_status(cluster, obj, judge, f"{kind}={status} {reason or ''}", timeout)
    return conditions(told)[kind]


def objects(cluster: Cluster, kinds: str, namespace: str) -> list[Object]:
    items: list[Object] = json.loads(cluster.kubectl("get", kinds, "-n", namespace, "-o", "json"))["items"]
    return items


def deployment(cluster: Cluster, name: str, namespace: str) -> Object:
    wait_until(
        lambda: cluster.api.find("apps/v1", "Deployment", f"{name}-predictor", namespace),
        30,
        "KServe made the Deployment",
    )
    return cluster.api.get("apps/v1", "Deployment", f"{name}-predictor", namespace)


def test_from_apply_to_answer_to_nothing(operator: Cluster, namespace: str, model_claim: str) -> None:
    applied = operator.api.apply(resource("life", namespace))
    wait_condition(operator, applied, "Ready", "True", "Serving", timeout=120)
    told = wait_status(operator, applied, lambda o: "capacity" in o["status"], "capacity was measured")

    # The user's object: a status, and nothing else of ours.
    assert "finalizers" not in told["metadata"]
    assert "annotations" not in told["metadata"]
    assert told["metadata"]["generation"] == 1
    assert [p["phase"] for p in told["status"]["timeline"]][-1] == "Ready"
    assert told["status"]["url"] == f"http://life-predictor.{namespace}.svc.cluster.local"
    assert conditions(told)["Stalled"]["status"] == "False"
    assert conditions(told)["Fits"]["status"] == "True"

    answer = httpx.post(
        operator.url("life-predictor", namespace) + "/v1/completions",
        json={"model": "life", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["text"]

    # At rest nothing is written.
    watched = "llmd,inferenceservices,servingruntimes,deployments"
    before = {
        o["metadata"]["uid"]: o["metadata"]["resourceVersion"] for o in objects(operator, watched, namespace)
    }
    time.sleep(12)
    after = {
        o["metadata"]["uid"]: o["metadata"]["resourceVersion"] for o in objects(operator, watched, namespace)
    }
    assert after == before

    # Drift is repaired, and no pod is restarted by it.
    pods = {p["metadata"]["uid"] for p in objects(operator, "pods", namespace)}
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
    time.sleep(2)
    assert {p["metadata"]["uid"] for p in objects(operator, "pods", namespace)} == pods

    operator.api.delete(API, "LLMDeployment", "life", namespace)
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
    ("no-image", {"pod": NO_IMAGE}, "ImagePullFailed", "nowhere/nothing:1"),
    ("no-gpu", {"accelerator": {"count": 1}}, "InsufficientGPU", "Insufficient nvidia.com/gpu"),
    ("no-cpu", {"resources": {"cpu": "1000"}}, "Unschedulable", "Insufficient cpu"),
    ("bad-flag", {"engine": {"extraArgs": ["--no-such-flag"]}}, "ContainerCrashing", "--no-such-flag"),
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
    applied = operator.api.apply(resource(name, namespace, **fields))
    stalled = wait_condition(operator, applied, "Stalled", "True", reason, timeout=90)
    assert words in stalled["message"]
    assert wait_condition(operator, applied, "Ready", "False", reason)


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
    applied = operator.api.apply(resource("taken", namespace))
    stalled = wait_condition(operator, applied, "Stalled", "True", "NameConflict")
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
        changed = resource("rev", namespace, pod=NO_IMAGE, engine={"maxModelLen": length})
        applied = operator.api.apply(changed)
        generation = applied["metadata"]["generation"]
        told = wait_status(
            operator,
            applied,
            lambda o, g=generation: o.get("status", {}).get("observedGeneration") == g,  # type: ignore[misc]
            f"generation {generation} is observed",
        )
        runtimes.append("rev-" + told["status"]["revision"])
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
    disabled = resource("fixed", namespace, pod=NO_IMAGE, autoscaling={"mode": "Disabled"})
    operator.api.apply(disabled)
    deployment(operator, "fixed", namespace)
    # Without spec.replicas the count is nobody's but the one who sets it.
    operator.kubectl("scale", "-n", namespace, "deployment/fixed-predictor", "--replicas=2")
    time.sleep(6)
    assert deployment(operator, "fixed", namespace)["spec"]["replicas"] == 2
    operator.kubectl("scale", "-n", namespace, "llmd/fixed", "--replicas=3")
    wait_until(
        lambda: deployment(operator, "fixed", namespace)["spec"]["replicas"] == 3,
        20,
        "kubectl scale is honoured",
    )
    operator.kubectl("scale", "-n", namespace, "deployment/fixed-predictor", "--replicas=1")
    wait_until(
        lambda: deployment(operator, "fixed", namespace)["spec"]["replicas"] == 3, 20, "drift is repaired"
    )
    told = operator.api.get(API, "LLMDeployment", "fixed", namespace)
    assert told["status"]["selector"] == "sheaf.dev/deployment=fixed"


def test_the_minimum_is_written_and_suspend_stops_everything(operator: Cluster, namespace: str) -> None:
    bounds = {"minReplicas": 2, "maxReplicas": 3}
    applied = operator.api.apply(resource("pause", namespace, pod=NO_IMAGE, autoscaling=bounds))
    wait_until(lambda: deployment(operator, "pause", namespace)["spec"]["replicas"] == 2, 30, "minReplicas")
    patch = {"spec": {"suspend": True}}
    operator.api.patch(API, "LLMDeployment", "pause", patch, namespace)
    wait_condition(operator, applied, "Ready", "False", "Suspended")
    wait_until(
        lambda: not objects(operator, "deployments,pods", namespace), 60, "all pods are gone", every=0.5
    )
    wait_condition(operator, applied, "Reconciling", "False", "Suspended")
    wait_condition(operator, applied, "Stalled", "False")
    operator.api.patch(API, "LLMDeployment", "pause", {"spec": {"suspend": False}}, namespace)
    wait_until(lambda: deployment(operator, "pause", namespace)["spec"]["replicas"] == 2, 30, "resumed")


def test_deletion_works_with_the_operator_down(operator: Cluster, namespace: str, faults: Faults) -> None:
    operator.api.apply(resource("orphan", namespace, pod=NO_IMAGE))
    deployment(operator, "orphan", namespace)
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
    applied = operator.api.apply(resource("again", namespace))
    wait_condition(operator, applied, "Stalled", "True", "VolumeNotFound")
    kinds = "inferenceservices,servingruntimes,deployments,replicasets,pods"
    before = {o["metadata"]["uid"] for o in objects(operator, kinds, namespace)}
    operator.kubectl("delete", "-n", namespace, "llmd/again", "--cascade=orphan", "--timeout=30s")
    anew = operator.api.apply(resource("again", namespace))
    assert anew["metadata"]["uid"] != applied["metadata"]["uid"]
    wait_condition(operator, anew, "Stalled", "True", "VolumeNotFound")
    assert {o["metadata"]["uid"] for o in objects(operator, kinds, namespace)} == before
    for child in objects(operator, "inferenceservices,servingruntimes", namespace):
        assert [ref["uid"] for ref in child["metadata"]["ownerReferences"]] == [anew["metadata"]["uid"]]


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


def test_kserve_may_come_later() -> None:
    with LocalCluster(with_kserve=False) as cluster:
        cluster.install_operator()
        applied = cluster.api.apply(resource("early", "default", pod=NO_IMAGE))
        stalled = wait_condition(cluster, applied, "Stalled", "True", "KServeMissing")
        assert "install KServe" in stalled["message"]
        cluster.start_kserve()
        deployment(cluster, "early", "default")
