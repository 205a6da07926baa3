"""A cause for every standstill, with the words of a real API server, scheduler, kubelet and KServe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from localcluster.cluster import ApiError, Cluster, Object, wait_until
from sheaf_e2e.deployed import Deployed, conditions, manifest
from sheaf_e2e.release import helm, install_operator
from sheaf_operator.cluster.errors import ApiError as Answer

pytestmark = pytest.mark.cluster
PATIENCE = 20.0
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


def limits(cluster: Cluster, namespace: str) -> None:
    limit = {"type": "Container", "max": {"memory": "1Gi"}}
    make(cluster, "LimitRange", namespace, "small", spec={"limits": [limit]})


def nothing(_cluster: Cluster, _namespace: str) -> None:
    pass


NEVER_MADE = {
    "limit range": (limits, {}, "LimitRangeViolated", "maximum memory usage per Container is 1Gi"),
    "account": (
        nothing,
        {"pod": {"serviceAccountName": "nobody"}},
        "ServiceAccountNotFound",
        '"nobody" not found',
    ),
    "priority": (nothing, {"pod": {"priorityClassName": "none-such"}}, "ClassNotFound", "none-such"),
}


@pytest.mark.parametrize(("prepare", "spec", "reason", "words"), NEVER_MADE.values(), ids=NEVER_MADE)
def test_pods_that_are_never_created(
    operator: Cluster, namespace: str, prepare: Any, spec: Any, reason: str, words: str
) -> None:
    prepare(operator, namespace)
    stuck = model(operator, namespace, **spec)
    assert words in stuck.wait_condition("Ready", "False", reason, timeout=60)["message"]
    assert words in stuck.wait_condition("Stalled", "True", reason, timeout=60)["message"]
    stuck.wait_condition("Reconciling", "False", reason)


def test_a_namespace_that_forbids_the_pod(operator: Cluster, namespace: str) -> None:
    """What Sheaf renders is allowed under "restricted"; the init container that KServe adds is not."""
    operator.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    stuck = model(operator, namespace, "s3://models/x")
    told = stuck.wait_condition("Stalled", "True", "PodSecurityViolated")
    assert "storage-initializer" in told["message"]


def test_a_selector_that_fits_no_node_is_a_stall_only_when_it_lasts(
    operator: Cluster, namespace: str, model_claim: str
) -> None:
    """With a count that nobody scales no other look is due: time itself brings the stall."""
    fixed = {"replicas": 1, "autoscaling": {"mode": "Disabled"}}
    selector = {"nodeSelector": {"gpu": "a100-misspelt"}}
    stuck = model(operator, namespace, f"pvc://{model_claim}", pod=selector, **fixed)
    told = stuck.wait_condition("Reconciling", "True", "Unschedulable")
    assert "node affinity/selector" in told["message"]
    assert conditions(stuck.get()["status"])["Stalled"]["status"] == "False"
    stuck.wait_condition("Stalled", "True", "Unschedulable", timeout=PATIENCE + 40)
    stuck.wait_condition("Reconciling", "False", "Unschedulable")


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


def test_the_end_of_service_is_an_event(operator: Cluster, namespace: str, model_claim: str) -> None:
    """And the address stays: clients that hold it come back to it."""
    spec = {"resources": SMALL, "termination": {"drainTimeoutSeconds": 1}}
    extra = ("--kv-cache-memory", "64MiB")
    serving = Deployed(operator, manifest("s", namespace, f"pvc://{model_claim}", 512, *extra, **spec))
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
