"""The CRD of an earlier release, as in a chart's crds folder: what it does not know slows nothing down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from localcluster.cluster import Cluster, LocalCluster, Object, wait_until
from sheaf_e2e.deployed import Deployed, manifest
from sheaf_e2e.release import OPERATOR, OPERATOR_NAMESPACE

pytestmark = pytest.mark.cluster
ACCOUNT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}"
CRD = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "llmdeployments.sheaf.dev")


@contextmanager
def older(cluster: Cluster, change: Callable[[Object], object]) -> Iterator[None]:
    """Inside the block the CRD's schema of the status is what ``change`` has made of it."""
    path = cluster.api.path(CRD[0], CRD[1], name=CRD[2])

    def put(spec: Object) -> None:
        current = cluster.api.get(*CRD)
        cluster.api.request("PUT", path, json={**current, "spec": spec})

    spec = cluster.api.get(*CRD)["spec"]
    changed = cluster.api.get(*CRD)["spec"]
    change(changed["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"])
    put(changed)
    try:
        yield
    finally:
        put(spec)


def apply(cluster: Cluster, name: str, namespace: str, replicas: int) -> Deployed:
    """A model whose pods cannot start."""
    bounds = {"minReplicas": replicas, "maxReplicas": 5}
    nowhere = {"image": "nowhere/nothing:1"}
    return Deployed(cluster, manifest(name, namespace, "pvc://absent", 512, pod=nowhere, autoscaling=bounds))


def statuses(cluster: LocalCluster, name: str, namespace: str) -> list[int]:
    """The answers to the operator's writes of this status so far."""
    return [
        event["responseStatus"]["code"]
        for event in cluster.asked_by(ACCOUNT)
        if (about := event.get("objectRef", {})).get("subresource") == "status"
        and (about["name"], about["namespace"]) == (name, namespace)
    ]


def forget(status: Any) -> None:
    for field in ("image", "timeline", "selector"):
        del status[field]


def test_what_an_older_crd_drops_is_not_written_for_ever(
    operator: Cluster, local_cluster: LocalCluster, namespace: str
) -> None:
    model = apply(operator, "m", namespace, 1)
    model.wait_condition("Ready", "False", "VolumeNotFound")
    model.wait_count(1)
    with older(operator, forget):
        wait_until(lambda: "image" not in model.get()["status"], 30, "the older schema is served")
        model.wait_looked_at()
        before = statuses(local_cluster, "m", namespace)
        for _ in range(2):
            model.wait_looked_at()
        assert statuses(local_cluster, "m", namespace) == before
        model.patch({"autoscaling": {"minReplicas": 3}})
        model.wait_count(3, 15)
        model.wait(lambda s: s["replicas"] == 3, "what it knows is kept")
    # With its CRD back, the whole status is there again at the next change.
    model.patch({"autoscaling": {"minReplicas": 4}})
    model.wait(lambda s: s["replicas"] == 4 and "image" in s, "all of it is there")


def narrow(status: Any) -> None:
    status["conditions"]["items"]["properties"]["type"]["enum"] = ["Ready", "Reconciling"]


def test_a_status_that_an_older_crd_refuses_slows_nothing(
    operator: Cluster, local_cluster: LocalCluster, namespace: str
) -> None:
    with older(operator, narrow):
        first = apply(operator, "probe", namespace, 1)
        wait_until(lambda: 422 in statuses(local_cluster, "probe", namespace), 30, "the status is refused")
        model = apply(operator, "m", namespace, 1)
        model.wait_count(1, 15)
        for replicas in (3, 2, 4):
            model.patch({"autoscaling": {"minReplicas": replicas, "maxReplicas": replicas}})
            model.wait_count(replicas, 20)
        answers = statuses(local_cluster, "m", namespace)
        assert set(answers) == {422}
        assert "status" not in model.get()
        assert "status" not in first.get()
    most = itertools.cycle((6, 5))

    def told_after_a_change() -> bool:
        # The API server takes a moment to serve a CRD, and what it refuses meanwhile is not written again.
        model.patch({"autoscaling": {"maxReplicas": next(most)}})
        return "status" in model.get()

    wait_until(told_after_a_change, 60, "the status is there again", every=1)
    model.wait_condition("Ready", "False", "VolumeNotFound")
