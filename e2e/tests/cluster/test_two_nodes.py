"""A second node: what a drain, a lost node and a volume of one node are on any cluster, they are here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from localcluster.cluster import CommandFailed, Faults, LocalCluster, Node, Object, wait_until
from localcluster.cluster.workloads import deployment, pod

pytestmark = pytest.mark.cluster
SLEEP = ["-c", "import time; time.sleep(600)"]
HOSTNAME = "kubernetes.io/hostname"


@contextmanager
def cordoned(cluster: LocalCluster, node: str) -> Iterator[None]:
    cluster.kubectl("cordon", node)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", node)


def pods(cluster: LocalCluster, namespace: str) -> list[Object]:
    """Those that have not been told to go."""
    found = cluster.api.list_objects("v1", "Pod", namespace)
    return [p for p in found if "deletionTimestamp" not in p["metadata"]]


def nodes_of_ready(cluster: LocalCluster, namespace: str) -> list[str]:
    return sorted(
        p["spec"]["nodeName"]
        for p in pods(cluster, namespace)
        if any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions") or [])
    )


def events(cluster: LocalCluster, namespace: str, reason: str) -> list[str]:
    found = cluster.api.list_objects("v1", "Event", namespace)
    return [e["message"] for e in found if e["reason"] == reason]


def test_each_node_has_addresses_of_its_own_and_pods_reach_each_other(
    local_cluster: LocalCluster, second_node: Node, namespace: str
) -> None:
    first = local_cluster.nodes[0]
    serve = "import socket; s = socket.create_server(('', 8000))\nwhile True: s.accept()[0].sendall(b'hello')"
    ask = "import socket, sys; print(socket.create_connection((sys.argv[1], 8000)).recv(9))"
    local_cluster.api.apply(
        pod("serves", namespace, ["-c", serve], nodeSelector={HOSTNAME: second_node.name})
    )
    wait_until(lambda: nodes_of_ready(local_cluster, namespace) == [second_node.name], 30, "the pod runs")
    found = local_cluster.api.get("v1", "Pod", "serves", namespace)["status"]
    assert found["hostIP"] == second_node.address != first.address
    assert found["podIP"].startswith("10.244.1.")
    local_cluster.api.apply(
        pod("asks", namespace, ["-c", ask, found["podIP"]], nodeSelector={HOSTNAME: first.name})
    )
    wait_until(lambda: "hello" in said(local_cluster, "asks", namespace), 30, "the other node's pod answers")


def said(cluster: LocalCluster, name: str, namespace: str) -> str:
    try:
        return cluster.logs(name, namespace)
    except CommandFailed:  # the container has not started
        return ""


def test_a_drain_evicts_as_far_as_the_disruption_budget_allows(
    local_cluster: LocalCluster, second_node: Node, namespace: str
) -> None:
    api, first = local_cluster.api, local_cluster.nodes[0]
    with cordoned(local_cluster, first.name):
        api.apply(deployment("web", namespace, SLEEP, 2))
        local_cluster.wait_deployment("web", namespace)
    budget = {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}
    api.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "web", "namespace": namespace},
            "spec": budget,
        }
    )
    wait_until(
        lambda: (
            api.get("policy/v1", "PodDisruptionBudget", "web", namespace)
            .get("status", {})
            .get("currentHealthy")
            == 2
        ),
        20,
        "the budget counts both",
    )

    def drain(timeout: int) -> None:
        local_cluster.kubectl("drain", second_node.name, "--pod-selector=app=web", f"--timeout={timeout}s")

    try:
        with pytest.raises(CommandFailed, match="would violate the pod's disruption budget"):
            drain(3)
        assert nodes_of_ready(local_cluster, namespace) == [second_node.name] * 2
        # One more than the budget asks for may go, and then the next: the node is cordoned, so they move.
        api.patch("apps/v1", "Deployment", "web", {"spec": {"replicas": 3}}, namespace)
        drain(60)
        wait_until(lambda: nodes_of_ready(local_cluster, namespace) == [first.name] * 3, 60, "all have moved")
    finally:
        local_cluster.kubectl("uncordon", second_node.name)


def test_a_lost_node_is_noticed_and_its_pods_are_replaced(
    local_cluster: LocalCluster, faults: Faults, second_node: Node, namespace: str
) -> None:
    api, first = local_cluster.api, local_cluster.nodes[0]
    web = deployment("web", namespace, SLEEP)
    # Everybody's default is five minutes.
    web["spec"]["template"]["spec"]["tolerations"] = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
        for key in ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
    ]
    with cordoned(local_cluster, first.name):
        api.apply(web)
        local_cluster.wait_deployment("web", namespace)
    (lost,) = pods(local_cluster, namespace)
    assert lost["spec"]["nodeName"] == second_node.name
    with faults.lost_node(second_node.name):

        def unknown(nodes: list[Object]) -> bool:
            return any(
                c["type"] == "Ready" and c["status"] == "Unknown" for c in nodes[0]["status"]["conditions"]
            )

        api.wait_for(
            "v1", "Node", unknown, name=second_node.name, timeout=120, describe="the node's state is unknown"
        )
        wait_until(lambda: nodes_of_ready(local_cluster, namespace) == [first.name], 60, "a pod replaces it")
        gone = api.get("v1", "Pod", lost["metadata"]["name"], namespace)
        assert "deletionTimestamp" in gone["metadata"]  # nobody can confirm that it is gone
    wait_until(
        lambda: api.find("v1", "Pod", lost["metadata"]["name"], namespace) is None, 60, "the node confirms it"
    )


def test_a_volume_of_one_node_keeps_pods_of_the_other_waiting(
    local_cluster: LocalCluster, second_node: Node, namespace: str, tmp_path: Any
) -> None:
    api, first = local_cluster.api, local_cluster.nodes[0]
    (tmp_path / "weights").write_text("seven")
    local_cluster.single_node_volume("disk", tmp_path, namespace)
    read = ["-c", "import time; print(open('/disk/weights').read(), flush=True); time.sleep(600)"]

    def start(name: str, node: Node) -> None:
        volumes = [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]
        manifest = pod(name, namespace, read, volumes=volumes, nodeSelector={HOSTNAME: node.name})
        manifest["spec"]["containers"][0]["volumeMounts"] = [{"name": "disk", "mountPath": "/disk"}]
        api.apply(manifest)

    start("holds", first)
    wait_until(lambda: said(local_cluster, "holds", namespace) == "seven\n", 60, "the first has the disk")
    start("waits", second_node)
    wait_until(
        lambda: [
            m for m in events(local_cluster, namespace, "FailedAttachVolume") if "Multi-Attach error" in m
        ],
        60,
        "the controller refuses to attach it twice",
    )

    def waiting() -> list[str]:
        found = api.get("v1", "Pod", "waits", namespace)["status"].get("containerStatuses", [])
        return [status["state"]["waiting"]["reason"] for status in found]

    wait_until(lambda: waiting() == ["ContainerCreating"], 30, "the kubelet waits for the disk")
    start("shares", first)
    wait_until(lambda: said(local_cluster, "shares", namespace) == "seven\n", 60, "its own node may share it")
    for name in ("holds", "shares"):
        api.delete("v1", "Pod", name, namespace)
    wait_until(lambda: said(local_cluster, "waits", namespace) == "seven\n", 180, "the disk has moved")
