"""Real faults in the local cluster: processes die or freeze, pods are cut off, the control plane is away."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from localcluster.cluster import kserve
from localcluster.cluster.local import LocalCluster
from localcluster.cluster.node import Node
from localcluster.machine.launcher import python
from localcluster.setup import cri_api


class Faults:
    """Everything takes effect before the call returns. ``with`` forms undo themselves."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._launcher = cluster.launcher

    def kill_pod(self, pod: str, namespace: str = "default", *, number: int = signal.SIGKILL) -> None:
        """Signal every process of the pod's containers; the kubelet restarts them by its rules."""
        for pid in self._pids(pod, namespace):
            self._launcher.call("signal_tree", pid=pid, number=number)

    def signal_process(self, pod: str, match: str, number: int, namespace: str = "default") -> None:
        """Signal only those of the pod's processes that have ``match`` in their command line.

        Raises LookupError if there is none.
        """
        pids = self._pids(pod, namespace)
        found = [self._launcher.call("signal_tree", pid=p, number=number, match=match) for p in pids]
        if not any(found):
            raise LookupError(f"no process of pod {namespace}/{pod} has {match!r} in its command line")

    @contextmanager
    def frozen_pod(self, pod: str, namespace: str = "default") -> Iterator[None]:
        """Thaws at the end, unless the kubelet has replaced the container meanwhile."""
        pids = self._pids(pod, namespace)
        for pid in pids:
            self._launcher.call("signal_tree", pid=pid, number=signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                self._launcher.call("signal_tree", pid=pid, number=signal.SIGCONT)

    @contextmanager
    def cut_pod(self, pod: str, namespace: str = "default") -> Iterator[None]:
        """Take the pod off the network: nothing gets in or out, and nobody is told. Restored at the end."""
        found = self.cluster.api.get("v1", "Pod", pod, namespace)
        address, node = found["status"]["podIP"], found["status"]["hostIP"]
        self._network(f"network.cut({address!r})")
        try:
            yield
        finally:
            if self._has_address(pod, namespace, address):
                self._network(f"network.restore({address!r}, {node!r})")

    @contextmanager
    def lost_node(self, name: str) -> Iterator[None]:
        """The node loses power, its pods with it, and nobody is told. It starts again at the end."""
        node = self._node(name)
        node.cut_power()
        try:
            yield
        finally:
            node.restore_power(self.cluster.api)

    def stop_component(self, name: str) -> None:
        """Kill a component of the cluster at once, as a crash or a power cut would.

        One of etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kserve, proxy.
        """
        self._launcher.stop_process(name, signal_number=signal.SIGKILL)

    def start_component(self, name: str, timeout: float = 60) -> None:
        """Start it again as it was and wait until it serves, where that can be seen."""
        self._launcher.restart(name)
        if name == "kube-apiserver":
            self._launcher.wait_ready(name, self.cluster.api.healthy, timeout)
        elif name == "kserve":
            kserve.wait_ready(self._launcher, timeout)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """A component is away inside the block."""
        self.stop_component(name)
        try:
            yield
        finally:
            self.start_component(name)

    def _pids(self, pod: str, namespace: str) -> list[int]:
        """The first process of each running container, by the namespace's process numbers."""
        found = self.cluster.api.get("v1", "Pod", pod, namespace)
        statuses = found["status"].get("containerStatuses", [])
        identities = [s["containerID"].partition("://")[2] for s in statuses if "running" in s["state"]]
        if not identities:
            raise LookupError(f"no container of pod {namespace}/{pod} is running")
        messages, stubs = cri_api.load()
        with grpc.insecure_channel(f"unix:{self._node(found['spec']['nodeName']).socket}") as channel:
            runtime = stubs.RuntimeServiceStub(channel)
            answers = [
                runtime.ContainerStatus(messages.ContainerStatusRequest(container_id=i, verbose=True))
                for i in identities
            ]
        return [int(json.loads(answer.info["info"])["pid"]) for answer in answers]

    def _node(self, name: str) -> Node:
        return next(node for node in self.cluster.nodes if node.name == name)

    def _network(self, call: str) -> None:
        self._launcher.run([python(), "-c", f"from localcluster.cri import network; {call}"])

    def _has_address(self, pod: str, namespace: str, address: str) -> bool:
        found = self.cluster.api.find("v1", "Pod", pod, namespace)
        return bool(found and found["status"].get("podIP") == address)
