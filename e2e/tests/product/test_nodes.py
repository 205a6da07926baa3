"""Nodes come and go: a drain loses no request, and a lost node is told truthfully."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from localcluster.cluster import Cluster, Faults, LocalCluster, Node
from sheaf_e2e.deployed import Deployed, conditions, manifest
from sheaf_e2e.streams import Streams

pytestmark = pytest.mark.cluster
AT_ONCE = {"patienceSeconds": 0}
# Instead of everybody's five minutes.
LEAVE_AT_ONCE = [
    {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    for key in ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
]


@contextmanager
def cordoned(cluster: Cluster, node: str) -> Iterator[None]:
    cluster.kubectl("cordon", node)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", node)


def nodes(model: Deployed) -> dict[str, str]:
    """Each pod's node."""
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in model.pods()}


def test_a_volume_of_one_node_is_not_pulled_from_under_who_serves(
    operator: Cluster, local_cluster: LocalCluster, second_node: Node, namespace: str, tiny_model: Path
) -> None:
    """The new pod is sent to another node than the one that has the disk, and waits for it."""
    first = local_cluster.nodes[0].name
    local_cluster.single_node_volume("disk", tiny_model, namespace)
    resource = manifest("m", namespace, "pvc://disk", 4096, "--kv-cache-memory", "16MiB", rollout=AT_ONCE)
    with cordoned(operator, second_node.name):
        model = Deployed(operator, resource)
        model.wait_ready(1)
    (old,) = model.pod_names()
    with cordoned(operator, first):
        model.patch({"engine": {"maxModelLen": 1024}})
        told = model.wait_condition("Reconciling", "True", "NeedsCapacity", timeout=90)
        for words in ("Multi-Attach error", "disk", "ReadWriteMany", "Recreate"):
            assert words in told["message"]
        model.wait_condition("Ready", "True", "ServingPreviousRevision")
        model.wait_looked_at()
        assert old in model.pod_names()
        # The user's word: stop it first.
        model.patch({"rollout": {"strategy": "Recreate"}})
        model.wait_gone(old)
        model.wait_condition("Ready", "True", "Serving", timeout=180)
    assert list(nodes(model).values()) == [second_node.name]


@pytest.fixture(scope="module")
def spread(
    operator: Cluster, local_cluster: LocalCluster, second_node: Node, tiny_model: Path
) -> Iterator[Deployed]:
    """Two replicas that only minReplicas holds, one on each node."""
    first = local_cluster.nodes[0].name
    with operator.new_namespace("nodes") as namespace:
        operator.model_volume("tiny", tiny_model, namespace)
        resource = manifest(
            "spread",
            namespace,
            "pvc://tiny",
            4096,
            *("--kv-cache-memory", "16MiB"),
            autoscaling={"minReplicas": 1, "maxReplicas": 2},
            pod={"tolerations": LEAVE_AT_ONCE},
        )
        with cordoned(operator, first):
            made = Deployed(operator, resource)
            made.wait_ready(1)
        with cordoned(operator, second_node.name):
            made.patch({"autoscaling": {"minReplicas": 2}})
            made.wait_ready(2)
        assert sorted(nodes(made).values()) == [first, second_node.name]
        yield made


def test_a_drain_loses_no_request(spread: Deployed, local_cluster: LocalCluster, second_node: Node) -> None:
    with Streams(spread.url, "spread", prompt_tokens=32, output_tokens=250, rate=3) as streams:
        streams.wait_answers(5)
        selector = f"--pod-selector=sheaf.dev/deployment={spread.name}"
        try:
            local_cluster.kubectl("drain", second_node.name, selector, "--delete-emptydir-data", timeout=180)
            spread.wait_ready(2)
            streams.wait_answers(5)
        finally:
            local_cluster.kubectl("uncordon", second_node.name)
    assert streams.failures == []
    assert second_node.name not in nodes(spread).values()


def test_a_lost_node_is_no_replica_and_is_replaced(
    spread: Deployed, local_cluster: LocalCluster, faults: Faults, second_node: Node
) -> None:
    first = local_cluster.nodes[0].name
    victim = next(iter(spread.pods()))["metadata"]["name"]
    with cordoned(local_cluster, first):  # one moves to the second node
        spread.cluster.api.delete("v1", "Pod", victim, spread.namespace)
        spread.wait_gone(victim)
        spread.wait_ready(2)
    (lost,) = [name for name, node in nodes(spread).items() if node == second_node.name]
    with spread.replica_counts() as counts, faults.lost_node(second_node.name):
        told = spread.wait(lambda s: s["readyReplicas"] == 1 and s, "one replica is left", 120)
        assert conditions(told)["Ready"]["status"] == "True"
        spread.wait_ready(2)
        assert lost not in nodes(spread)
        assert set(nodes(spread).values()) == {first}
        left = spread.cluster.api.get("v1", "Pod", lost, spread.namespace)
        assert "deletionTimestamp" in left["metadata"]  # nobody can confirm that it has ended
    spread.wait_gone(lost)
    assert counts == [2]
