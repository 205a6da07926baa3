"""Several operators in one cluster: a standby takes over; classes and namespaces divide the work."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from localcluster.cluster import Cluster, LocalCluster, Object, wait_until
from sheaf_e2e.checkout import image_table
from sheaf_e2e.deployed import API, KIND, Deployed, manifest
from sheaf_e2e.operator_faults import OperatorFaults
from sheaf_e2e.release import OPERATOR, OPERATOR_LABELS, OPERATOR_NAMESPACE, Helm, helm, install_operator

pytestmark = pytest.mark.cluster
CLASS = "sheaf.dev/operator-class"
LEASE_DURATION = 5
# The Lease runs out, the standby asks every fifth of it, lists all, scales; the rest is for a busy machine.
HANDOVER = LEASE_DURATION * 1.4 + 20
TOLD = 10  # half its pod's grace period: one that SIGTERM did not reach would hold the Lease for all of it


def apply(cluster: Cluster, name: str, namespace: str, labels: dict[str, str] | None = None) -> Deployed:
    """A model whose pods cannot start: what is written for it is all that counts here."""
    resource = manifest(
        name,
        namespace,
        "pvc://absent",
        512,
        pod={"image": "nowhere/nothing:1"},
        autoscaling={"minReplicas": 1, "maxReplicas": 5},
    )
    resource["metadata"]["labels"] = labels or {}
    return Deployed(cluster, resource)


def demand(model: Deployed, replicas: int) -> None:
    model.patch({"autoscaling": {"minReplicas": replicas}})


def holder(cluster: Cluster, lease: str = OPERATOR) -> str:
    found = cluster.api.find("coordination.k8s.io/v1", "Lease", lease, OPERATOR_NAMESPACE)
    return str((found or {"spec": {}})["spec"].get("holderIdentity") or "")


def operator_pods(cluster: Cluster) -> list[Object]:
    return cluster.api.list_objects("v1", "Pod", OPERATOR_NAMESPACE, labels=OPERATOR_LABELS)


@pytest.fixture(scope="module")
def two(operator: Cluster) -> Iterator[Cluster]:
    """The operator with a standby."""
    values = {"replicas": 2, "operator": {"leaseDuration": LEASE_DURATION}}
    with helm(operator) as release:
        release.deploy(values)
        operator.wait_deployment(OPERATOR, OPERATOR_NAMESPACE)
        wait_until(lambda: holder(operator), 30, "somebody holds the Lease")
        yield operator
        release.deploy()
    operator.wait_deployment(OPERATOR, OPERATOR_NAMESPACE)


@pytest.mark.parametrize("fault", ["frozen", "killed", "deleted"])
def test_a_standby_takes_over(two: Cluster, namespace: str, faults: OperatorFaults, fault: str) -> None:
    model = apply(two, "handed", namespace)
    model.wait_deployment()
    model.wait_count(1)
    before = holder(two)
    assert before in [pod["metadata"]["name"] for pod in operator_pods(two)]
    began = time.monotonic()
    if fault == "frozen":
        with faults.frozen_pod(before, OPERATOR_NAMESPACE):
            demand(model, 3)
            model.wait_count(3, HANDOVER)
            took = time.monotonic() - began
            assert holder(two) != before
        # It wakes up, finds its Lease taken, and writes nothing of what it had in mind.
        demand(model, 2)
        wait_until(lambda: holder(two) != before, 5, "the standby keeps the Lease")
    elif fault == "killed":  # its container comes back under the same name and goes on
        faults.kill_pod(before, OPERATOR_NAMESPACE, number=signal.SIGKILL)
        demand(model, 3)
        model.wait_count(3, HANDOVER)
        took = time.monotonic() - began
    else:  # it is told to end
        two.kubectl("delete", "pod", "-n", OPERATOR_NAMESPACE, before, "--wait=false")
        wait_until(lambda: holder(two) != before, TOLD, "it gives the Lease back")
        demand(model, 3)
        model.wait_count(3, HANDOVER)
        took = time.monotonic() - began
    print(f"{fault}: scaled {took:.1f} s after the holder was gone, Lease of {LEASE_DURATION} s")


def blue_values(namespaces: list[str]) -> dict[str, Any]:
    return {
        "watch": {"class": "blue", "namespaces": namespaces},
        "crds": {"install": False},
        "userRoles": {"create": False},
        "servingRuntime": {"create": "Never"},
    }


def may_list_pods(cluster: Cluster, namespace: str) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{OPERATOR_NAMESPACE}:blue-operator",
            "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": namespace},
        },
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(cluster.api.request("POST", path, json=review).json()["status"]["allowed"])


def test_class_and_namespaces_divide_the_models_among_operators(operator: Cluster, namespace: str) -> None:
    """A second release beside the first: class blue in two namespaces, with Roles there, no ClusterRole."""
    with (
        operator.new_namespace("blue-too") as second,
        operator.new_namespace("not-blue") as outside,
        Helm(operator.kubeconfig, OPERATOR_NAMESPACE, release="blue") as release,
    ):
        plain = apply(operator, "plain", namespace)
        blue = {CLASS: "blue"}
        waiting = [apply(operator, "blue", n, blue) for n in (namespace, second, outside)]
        release.deploy(blue_values([namespace, second]))
        for model in (plain, *waiting[:2]):
            model.wait_deployment()
        wait_until(lambda: holder(operator, "blue-operator"), 30, "each has a Lease of its own")
        assert "status" not in waiting[2].get(), "nobody looks after this class in this namespace"

        assert may_list_pods(operator, namespace)
        assert not may_list_pods(operator, outside)
        release.uninstall()
        demand(waiting[0], 2)
        demand(plain, 2)
        plain.wait_count(2)
        waiting[0].wait_count(1)
        # Without its class it is everybody's: the first operator goes on where the other has stopped.
        label = {"metadata": {"labels": {CLASS: None}}}
        operator.api.patch(API, KIND, "blue", label, namespace)
        waiting[0].wait_count(2)


def uid(cluster: Cluster, model: Deployed) -> str:
    """Of the model's InferenceService; empty while there is none."""
    found = cluster.api.find("serving.kserve.io/v1beta1", "InferenceService", model.name, model.namespace)
    return str(found["metadata"]["uid"]) if found else ""


def test_kserve_may_come_later() -> None:
    """Also for an operator of given namespaces, which may not watch definitions. Then KServe's objects are
    watched like any others: what happens to one is known without a list, which comes once an hour here.
    """
    with (
        LocalCluster(image_table(), with_kserve=False) as cluster,
        Helm(cluster.kubeconfig, OPERATOR_NAMESPACE, release="blue") as release,
    ):
        install_operator(cluster, operator={"resyncInterval": 3600})
        release.deploy({**blue_values(["default"]), "operator": {"resyncInterval": 3600}})
        early = [apply(cluster, "early", "default"), apply(cluster, "blue", "default", {CLASS: "blue"})]
        for model in early:
            told = model.wait_condition("Stalled", "True", "KServeMissing")
            assert "install KServe" in told["message"]
        cluster.start_kserve()
        for model in early:
            model.wait_deployment()
            model.wait_condition("Stalled", "False")
            # Its Deployment is no sign: the garbage collector learns of new kinds only every 30 s.
            before = uid(cluster, model)
            cluster.kubectl("delete", "inferenceservice", model.name, "--wait=false")
            wait_until(lambda m=model, b=before: uid(cluster, m) not in ("", b), 40, "it is made anew")
        pods = cluster.api.list_objects("v1", "Pod", OPERATOR_NAMESPACE)
        assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0, 0]
