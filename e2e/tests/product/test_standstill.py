"""A cause for every standstill, with the words of a real API server, scheduler, kubelet and KServe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from localcluster.cluster import ApiError, Cluster, LocalCluster, Object, wait_until
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.deployed import Deployed, manifest
from sheaf_e2e.operator_faults import OperatorFaults
from sheaf_e2e.release import helm, install_operator
from sheaf_operator.cluster.errors import ApiError as Answer

pytestmark = pytest.mark.cluster
PATIENCE = 12.0
NO_IMAGE = {"image": "nowhere/nothing:1"}
SMALL = {"cpu": "100m", "memory": "2Gi"}


@pytest.fixture(scope="module", autouse=True)
def impatient(operator: Cluster) -> Iterator[None]:
    """The operator with a patience that a test can wait for; other tests find it with its defaults."""
    with helm(operator) as release:
        release.deploy({"operator": {"stallPatience": PATIENCE}})
    yield
    install_operator(operator)


def model(cluster: Cluster, namespace: str, uri: str = "pvc://absent", **spec: Any) -> Deployed:
    spec = {"resources": SMALL, "pod": NO_IMAGE, **spec}
    return Deployed(cluster, manifest("m", namespace, uri, 512, **spec))


def make(cluster: Cluster, kind: str, namespace: str, name: str, **fields: Any) -> None:
    cluster.api.apply(
        {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, **fields}
    )


Preparation = Callable[[Cluster, str], None]


def quota(what: str) -> Preparation:
    """It counts from its status on, which its controller writes where there is one: here there is none."""

    def prepare(cluster: Cluster, namespace: str) -> None:
        make(cluster, "ResourceQuota", namespace, "few", spec={"hard": {what: "0"}})
        counts = {"status": {"hard": {what: "0"}, "used": {what: "0"}}}
        cluster.api.patch("v1", "ResourceQuota", "few", counts, namespace, subresource="status")

    return prepare


def limits(cluster: Cluster, namespace: str) -> None:
    limit = {"type": "Container", "max": {"memory": "1Gi"}}
    make(cluster, "LimitRange", namespace, "small", spec={"limits": [limit]})


def restricted(cluster: Cluster, namespace: str) -> None:
    """What Sheaf renders is allowed under "restricted"; the init container that KServe adds is not."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")


def claim(cluster: Cluster, namespace: str) -> None:
    """Without it that would be the cause; no pod gets as far as to read what it holds."""
    cluster.model_volume("smollm2", CHECKOUT / "docs", namespace)


def nothing(_cluster: Cluster, _namespace: str) -> None:
    pass


@dataclass(frozen=True)
class Case:
    reason: str
    words: tuple[str, ...]
    prepare: Preparation = nothing
    uri: str = "pvc://absent"
    spec: dict[str, Any] = field(default_factory=dict)


# By time alone, as no other look is due with a count that nobody scales.
FIXED = {"replicas": 1, "autoscaling": {"mode": "Disabled"}}
CASES = {
    "quota": Case(
        "QuotaExceeded", ("exceeded quota: few, requested: pods=1", "raise the quota"), quota("pods")
    ),
    "limit range": Case(
        "LimitRangeViolated", ("maximum memory usage per Container is 1Gi", "spec.resources"), limits
    ),
    "account": Case(
        "ServiceAccountNotFound",
        ('"nobody" not found', "pod.serviceAccountName"),
        spec={"pod": {"serviceAccountName": "nobody"}},
    ),
    "priority": Case(
        "ClassNotFound",
        ("none-such", "pod.priorityClassName"),
        spec={"pod": {"priorityClassName": "none-such"}},
    ),
    "pod security": Case(
        "PodSecurityViolated", ("storage-initializer", "enforce label"), restricted, "s3://models/x"
    ),
    "kserve": Case(
        "KServeRefused",
        ("exceeded quota: few, requested: count/deployments.apps=1", "describe inferenceservice"),
        quota("count/deployments.apps"),
    ),
    "selector": Case(
        "Unschedulable",
        ("node affinity/selector", "pod.nodeSelector"),
        claim,
        "pvc://smollm2",
        {"pod": {"nodeSelector": {"gpu": "a100-misspelt"}}, **FIXED},
    ),
}


@pytest.fixture(scope="module")
def stuck(operator: Cluster, impatient: None) -> Iterator[dict[str, Deployed]]:
    """All of them at once, so that the patience is waited for once."""
    with ExitStack() as stack:
        made = {}
        for name, case in CASES.items():
            namespace = stack.enter_context(operator.new_namespace("stands"))
            case.prepare(operator, namespace)
            made[name] = model(operator, namespace, case.uri, **case.spec)
        yield made


@pytest.mark.parametrize("name", CASES)
def test_what_stands_still_says_why_and_what_to_do(stuck: dict[str, Deployed], name: str) -> None:
    case, found = CASES[name], stuck[name]
    told = [
        found.wait_condition("Stalled", "True", case.reason, timeout=PATIENCE + 40),
        found.wait_condition("Ready", "False", case.reason),
    ]
    for condition in told:
        for words in case.words:
            assert words in condition["message"]
    found.wait_condition("Reconciling", "False", case.reason)
    if name == "selector":  # which a node may yet fulfil
        [pod] = found.pods()
        since = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")
        waited = moment(told[0]["lastTransitionTime"]) - moment(since["lastTransitionTime"])
        assert waited.total_seconds() >= PATIENCE - 1


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@contextmanager
def policy(cluster: Cluster, namespace: str, expression: str, message: str) -> Iterator[None]:
    """A cluster's policy about Deployments of this namespace that change."""
    api, rule = (
        "admissionregistration.k8s.io/v1",
        {
            "apiGroups": ["apps"],
            "apiVersions": ["v1"],
            "operations": ["UPDATE"],
            "resources": ["deployments"],
        },
    )
    kinds = {
        "ValidatingAdmissionPolicy": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [rule],
            },
            "validations": [{"expression": expression, "message": message}],
        },
        "ValidatingAdmissionPolicyBinding": {"policyName": namespace, "validationActions": ["Deny"]},
    }
    for kind, spec in kinds.items():
        cluster.api.apply({"apiVersion": api, "kind": kind, "metadata": {"name": namespace}, "spec": spec})
    try:
        yield
    finally:
        for kind in kinds:
            cluster.api.delete(api, kind, namespace)


def test_an_update_that_kserve_cannot_carry_out(operator: Cluster, namespace: str, tiny_model: Path) -> None:
    """The old pods serve on, and KServe's words are found where it leaves them: in an Event."""
    operator.model_volume("tiny", tiny_model, namespace)
    arguments = ("--kv-cache-memory", "16MiB")
    serving = Deployed(operator, manifest("m", namespace, "pvc://tiny", 4096, *arguments, resources=SMALL))
    short = "!object.spec.template.spec.containers.exists(c, has(c.args) && c.args.exists(a, a == '1024'))"
    with policy(operator, namespace, short, "a context of 1024 is too short for us"):
        serving.wait_ready(1)
        pods = serving.pod_names()
        serving.patch({"engine": {"maxModelLen": 1024}})
        told = serving.wait_condition("Stalled", "True", "KServeRefused", timeout=PATIENCE + 40)
        for words in ("a context of 1024 is too short for us", "describe inferenceservice"):
            assert words in told["message"]
        serving.wait_condition("Reconciling", "False", "KServeRefused")
        serving.wait_condition("Ready", "True", "ServingPreviousRevision")
        assert serving.pod_names() == pods
    # The policy is gone, and KServe, which has gone on trying, carries it out.
    serving.wait_condition("Stalled", "False", timeout=90)


@contextmanager
def careless_scheduler(faults: OperatorFaults, namespace: str) -> Iterator[None]:
    """Instead of the cluster's own one: sends each pod to the first node, whatever it asks for."""
    cluster, stop = faults.cluster, Event()
    target = {"apiVersion": "v1", "kind": "Node", "name": cluster.nodes[0].name}

    def bind() -> None:
        while not stop.wait(0.5):
            for pod in cluster.api.list_objects("v1", "Pod", namespace):
                if "nodeName" not in pod["spec"]:
                    metadata = {"name": pod["metadata"]["name"], "namespace": namespace}
                    path = cluster.api.path("v1", "Pod", namespace, metadata["name"]) + "/binding"
                    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}
                    cluster.api.request("POST", path, json=binding)

    thread = Thread(target=bind, daemon=True)
    with faults.without("kube-scheduler"):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)


def test_pods_that_the_kubelet_refuses_one_after_the_other(
    operator: Cluster, local_cluster: LocalCluster, faults: OperatorFaults, namespace: str
) -> None:
    """They stay there as Failed, and the Deployment makes the next."""
    refused = model(operator, namespace, pod={**NO_IMAGE, "nodeSelector": {"gpu": "lost"}})
    with careless_scheduler(faults, namespace):
        told = refused.wait_condition("Stalled", "True", "NodeRefusedPod", timeout=PATIENCE + 40)
    for words in (
        "NodeAffinity",
        "pods in a row",
        "Predicate NodeAffinity failed",
        "check the node's labels",
    ):
        assert words in told["message"]
    failed = [pod for pod in refused.pods() if pod["status"]["phase"] == "Failed"]
    assert len(failed) > 3
    assert {pod["status"]["reason"] for pod in failed} == {"NodeAffinity"}


def test_a_field_that_no_schema_knows_is_refused_for_good(operator: Cluster, namespace: str) -> None:
    """The API server answers with 500; its words are what the operator goes by."""
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerm": []}}}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "typo", "namespace": namespace},
        "spec": {"predictor": {"affinity": affinity}},
    }
    with pytest.raises(ApiError) as refused:
        operator.api.apply(service)
    assert refused.value.code == 500
    assert Answer(500, "", str(refused.value)).permanent


def test_the_end_of_service_is_an_event(operator: Cluster, namespace: str, tiny_model: Path) -> None:
    """And the address stays: clients that hold it come back to it."""
    operator.model_volume("tiny", tiny_model, namespace)
    spec = {"resources": SMALL, "termination": {"drainTimeoutSeconds": 1}}
    extra = ("--kv-cache-memory", "16MiB")
    serving = Deployed(operator, manifest("s", namespace, "pvc://tiny", 512, *extra, **spec))
    serving.wait_condition("Ready", "True", timeout=120)
    url = serving.get()["status"]["url"]
    operator.kubectl("delete", "pod", "-n", namespace, "--all", "--wait=false")
    serving.wait_condition("Ready", "False", timeout=60)
    assert serving.get()["status"]["url"] == url

    def warned() -> list[Object]:
        found = operator.api.list_objects("v1", "Event", namespace)
        about = [e for e in found if e["involvedObject"]["kind"] == "LLMDeployment"]
        return [e for e in about if e["type"] == "Warning"]

    wait_until(warned, 20, "a Warning tells that it serves no more", every=0.5)
    serving.wait_condition("Ready", "True", timeout=120)
