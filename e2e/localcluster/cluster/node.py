"""The node: the real kubelet on our CRI runtime, and the Service proxy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from localcluster.cluster.api import Api, Object
from localcluster.cluster.control_plane import Credentials
from localcluster.machine.launcher import Launcher, python
from localcluster.machine.namespace import NODE_IP, NODE_NAME
from localcluster.setup.binaries import Binaries


def start(
    launcher: Launcher, binaries: Binaries, credentials: Credentials, image_table: Mapping[str, Any]
) -> None:
    """Start runtime, kubelet and Service proxy; the node is Ready soon after (see ``wait_ready``)."""
    folder = launcher.folder / "node"
    folder.mkdir()
    images, socket = folder / "images.json", folder / "cri.sock"
    images.write_text(json.dumps(image_table))
    launcher.start(
        "cri",
        [
            python(),
            "-m",
            "localcluster.cri",
            f"--socket={socket}",
            f"--state-dir={folder / 'cri'}",
            f"--images={images}",
        ],
    )
    kubeconfig = credentials.kubeconfig("kube-proxy")
    launcher.start("proxy", [python(), "-m", "localcluster.proxy", f"--kubeconfig={kubeconfig}"])
    config = folder / "kubelet.yaml"
    config.write_text(yaml.safe_dump(_kubelet_config(folder, socket)))
    launcher.wait_ready("cri", socket.exists, 30)
    launcher.start(
        "kubelet",
        [
            binaries["kubelet"],
            f"--config={config}",
            f"--kubeconfig={credentials.kubeconfig(f'system:node:{NODE_NAME}')}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'pki'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_IP}",
            "--housekeeping-interval=60s",  # of cadvisor, which nobody asks
            "--v=0",
        ],
    )


def _kubelet_config(folder: Path, socket: Path) -> Object:
    """A kubelet without root, cgroups of its own or iptables. Intervals that only cost idle time are long."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "address": NODE_IP,
        "healthzBindAddress": "127.0.0.1",
        "containerRuntimeEndpoint": f"unix://{socket}",
        "podCIDR": "10.244.0.0/24",
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "staticPodPath": "",
        # No name server runs; this address refuses at once, where none at all would mean a warning per pod.
        "clusterDNS": [NODE_IP],
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


def wait_ready(launcher: Launcher, api: Api, timeout: float = 60) -> Object:
    """The Node object once it is Ready and pods may be scheduled to it."""

    def ready(nodes: list[Object]) -> Object | None:
        if not launcher.running("kubelet"):
            raise RuntimeError(f"the kubelet has ended:\n{launcher.log_tail('kubelet')}")
        for node in nodes:
            conditions = {c["type"]: c["status"] for c in node["status"].get("conditions", [])}
            if conditions.get("Ready") == "True" and not node["spec"].get("taints"):
                return node
        return None

    node: Object = api.wait_for("v1", "Node", ready, timeout=timeout, describe="the node is Ready")
    return node


def set_extended_resource(api: Api, name: str, count: int) -> None:
    """Let the node claim ``count`` of a resource such as ``nvidia.com/gpu``, so that pods get it."""
    status = {"capacity": {name: str(count)}, "allocatable": {name: str(count)}}
    api.patch("v1", "Node", NODE_NAME, {"status": status}, subresource="status")
