"""A node: the real kubelet on our CRI runtime. The Service proxy, of which one is enough for all nodes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from typing import Any

import yaml

from localcluster.cluster.api import Api, Object
from localcluster.cluster.control_plane import NODE_NAMES, Credentials, volume_plugins
from localcluster.machine.launcher import Launcher, python
from localcluster.machine.namespace import NODE_IP, SECOND_NODE_IP
from localcluster.setup.binaries import Binaries

_ADDRESSES = (NODE_IP, SECOND_NODE_IP)


class Node:
    """The node ``index``. All nodes see one machine; pods, addresses, folders and kubelets are their own."""

    def __init__(self, launcher: Launcher, index: int) -> None:
        self.launcher = launcher
        self.name = NODE_NAMES[index]
        self.address = _ADDRESSES[index]
        self.pod_network = f"10.244.{index}.0/24"
        suffix = f"-{index + 1}" if index else ""
        self.runtime, self.kubelet = f"cri{suffix}", f"kubelet{suffix}"  # the names of its processes
        self.folder = launcher.folder / f"node{suffix}"
        self.socket = self.folder / "cri.sock"

    def start(self, binaries: Binaries, credentials: Credentials, image_table: Mapping[str, Any]) -> None:
        """Start runtime and kubelet; the node is Ready soon after (see ``wait_ready``)."""
        self.folder.mkdir()
        images = self.folder / "images.json"
        images.write_text(json.dumps(image_table))
        self.launcher.start(
            self.runtime,
            [
                python(),
                "-m",
                "localcluster.cri",
                f"--socket={self.socket}",
                f"--state-dir={self.folder / 'cri'}",
                f"--images={images}",
                f"--node-address={self.address}",
                f"--pod-network={self.pod_network}",
            ],
        )
        config = self.folder / "kubelet.yaml"
        config.write_text(yaml.safe_dump(_kubelet_config(self)))
        self.launcher.wait_ready(self.runtime, self.socket.exists, 30)
        self.launcher.start(
            self.kubelet,
            [
                binaries["kubelet"],
                f"--config={config}",
                f"--kubeconfig={credentials.kubeconfig(f'system:node:{self.name}')}",
                f"--root-dir={self.folder / 'kubelet'}",
                f"--cert-dir={self.folder / 'pki'}",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
                "--housekeeping-interval=60s",  # of cadvisor, which nobody asks
                "--v=0",
            ],
        )

    def wait_ready(self, api: Api, timeout: float = 60) -> None:
        """Until the Node object is Ready and pods may be scheduled to it."""

        def ready(nodes: list[Object]) -> bool:
            if not self.launcher.running(self.kubelet):
                raise RuntimeError(f"the kubelet has ended:\n{self.launcher.log_tail(self.kubelet)}")
            return any(
                c["type"] == "Ready" and c["status"] == "True" and not node["spec"].get("taints")
                for node in nodes
                for c in node["status"].get("conditions", [])
            )

        api.wait_for("v1", "Node", ready, name=self.name, timeout=timeout, describe=f"{self.name} is Ready")

    def cut_power(self) -> None:
        """End the kubelet and every pod at once; nobody is told."""
        for process in (self.kubelet, self.runtime):
            self.launcher.stop_process(process, signal_number=signal.SIGKILL)

    def restore_power(self, api: Api) -> None:
        """Start what ``cut_power`` has ended and wait until the node is Ready."""
        self.socket.unlink(missing_ok=True)
        self.launcher.restart(self.runtime)
        self.launcher.wait_ready(self.runtime, self.socket.exists, 30)
        self.launcher.restart(self.kubelet)
        self.wait_ready(api)

    def remove(self, api: Api) -> None:
        """Take the node out of the cluster, with the pods that are still on it."""
        api.patch("v1", "Node", self.name, {"spec": {"unschedulable": True}})
        for process in (self.kubelet, self.runtime):
            if self.launcher.running(process):
                self.launcher.stop_process(process)
        for pod in api.list_objects("v1", "Pod"):
            if pod["spec"].get("nodeName") == self.name:
                metadata = pod["metadata"]
                api.delete("v1", "Pod", metadata["name"], metadata["namespace"], grace_seconds=0)
        api.delete("v1", "Node", self.name)
        shutil.rmtree(self.folder, ignore_errors=True)


def start_proxy(launcher: Launcher, credentials: Credentials) -> None:
    kubeconfig = credentials.kubeconfig("kube-proxy")
    launcher.start("proxy", [python(), "-m", "localcluster.proxy", f"--kubeconfig={kubeconfig}"])


def set_extended_resource(api: Api, node: str, name: str, count: int) -> None:
    """Let the node claim ``count`` of a resource such as ``nvidia.com/gpu``, so that pods get it."""
    status = {"capacity": {name: str(count)}, "allocatable": {name: str(count)}}
    api.patch("v1", "Node", node, {"status": status}, subresource="status")


def _kubelet_config(node: Node) -> Object:
    """A kubelet without root, cgroups of its own or iptables. Intervals that only cost idle time are long."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "address": node.address,
        "healthzBindAddress": node.address,
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "podCIDR": node.pod_network,
        "podLogsDir": str(node.folder / "pod-logs"),
        "volumePluginDir": str(volume_plugins(node.launcher)),
        "staticPodPath": "",
        # No name server runs; this address refuses at once, where none at all would mean a warning per pod.
        "clusterDNS": [node.address],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "failCgroupV1": False,
        "featureGates": {"KubeletInUserNamespace": True},
        "makeIPTablesUtilChains": False,
        "localStorageCapacityIsolation": False,
        "evictionHard": {
            "memory.available": "1Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "24h",
        "volumeStatsAggPeriod": "-1s",
        "fileCheckFrequency": "1h",
        "syncFrequency": "20s",
        "nodeStatusReportFrequency": "1m",
        "maxPods": 200,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "enableDebuggingHandlers": True,
        "shutdownGracePeriod": "0s",
    }
