"""A fleet of models in a local cluster without KServe and model servers, for measuring the operator alone.

Real: etcd, the API server, the Deployment and ReplicaSet controllers, every object. Played: KServe, which
would make each model's Deployment, and the kubelet, which would report its pods ready; their metrics come
from `stub_pods`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from localcluster.cluster import LocalCluster, Object, kserve
from localcluster.machine.launcher import python

NAMESPACE = "default"
MODEL = "sheaf.dev/v1alpha1"
SERVICE = "serving.kserve.io/v1beta1"
POD_PORT = 8000
NOW = "2026-01-01T00:00:00Z"


def every(what: Iterable[Any], do: Callable[[Any], Any]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(do, what))


def model(number: int, replicas: int) -> Object:
    return {
        "apiVersion": MODEL,
        "kind": "LLMDeployment",
        "metadata": {"name": f"model-{number:03}", "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": "pvc://models/some/folder"},
            "accelerator": {"count": 0},
            "resources": {"cpu": "1", "memory": "1Gi"},
            "autoscaling": {"minReplicas": replicas, "maxReplicas": replicas + 2},
        },
    }


def deployment(service: Object, replicas: int) -> Object:
    """As KServe makes it; its pods are left to a scheduler that does not exist."""
    metadata = service["metadata"]
    name = metadata["name"]
    app = {"app": f"isvc.{name}-predictor"}
    labels = {**metadata["labels"], **service["spec"]["predictor"].get("labels", {}), **app}
    owner = {
        "apiVersion": SERVICE,
        "kind": "InferenceService",
        "name": name,
        "uid": metadata["uid"],
        "controller": True,
    }
    container = {
        "name": "kserve-container",
        "image": "nowhere/nothing:1",
        "args": [f"--argument-{n}" for n in range(20)],
        "env": [{"name": f"NAME_{n}", "value": "value"} for n in range(20)],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"{name}-predictor",
            "namespace": NAMESPACE,
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": app},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"schedulerName": "none", "containers": [container]},
            },
        },
    }


def ready_status(address: str) -> Object:
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": NOW}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    container = {
        "name": "kserve-container",
        "image": "nowhere/nothing:1",
        "imageID": "",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": NOW}},
    }
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": conditions,
        "containerStatuses": [container],
    }


class Fleet:
    """`models` of them with `replicas` ready pods each, and the operator as a process beside them."""

    def __init__(self, models: int, replicas: int, settings: dict[str, str]) -> None:
        self.models, self.replicas = models, replicas
        self.cluster = LocalCluster({}, with_kserve=False)
        self._settings = settings

    def __enter__(self) -> Fleet:
        self.cluster.start()
        try:
            self._install()
        except BaseException:
            self.cluster.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.stop()

    @property
    def busy_file(self) -> Path:
        return self.cluster.launcher.folder / "busy"

    def _install(self) -> None:
        kserve.install(self.cluster.api, self.cluster.binaries)
        definition = Path(__file__).parents[1] / "crds" / "llmdeployments.yaml"
        self.cluster.kubectl("apply", "--server-side", "-f", str(definition))
        self.cluster.kubectl("wait", "--for=condition=Established", "crd/llmdeployments.sheaf.dev")
        stub = [python(), str(Path(__file__).with_name("stub_pods.py")), str(POD_PORT), str(self.busy_file)]
        self.cluster.launcher.start("pods", stub)
        self._port = self.cluster.launcher.forward("127.0.0.1", 8080)

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/metrics"

    def start_operator(self) -> None:
        kubeconfig = self.cluster.credentials.kubeconfig("admin", name="operator")
        environment = {"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": NAMESPACE, **self._settings}
        self.cluster.launcher.start("operator", [python(), "-m", "sheaf_operator"], environment)

    def operator_pid(self) -> int:
        """As this side of the namespace knows it."""
        folder = str(self.cluster.launcher.folder)
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if b"sheaf_operator" in command and str((entry / "cwd").readlink()) == folder:
                    return int(entry.name)
            except OSError:
                continue
        raise LookupError("the operator does not run")

    def stop_operator(self) -> None:
        self.cluster.launcher.stop_process("operator")

    def fill(self) -> None:
        """Make the models, then what KServe and the kubelet would make of them."""
        api = self.cluster.api
        every(range(self.models), lambda n: api.create(model(n, self.replicas)))
        services = self._wait_for(SERVICE, "InferenceService", self.models)
        every(services, lambda s: api.create(deployment(s, self.replicas)))
        pods = self._wait_for("v1", "Pod", self.models * self.replicas)
        self.addresses: dict[str, list[str]] = {}
        numbered = [(pod, f"127.1.{n // 250}.{n % 250 + 1}") for n, pod in enumerate(pods)]
        for pod, address in numbered:
            self.addresses.setdefault(pod["metadata"]["labels"]["sheaf.dev/deployment"], []).append(address)

        def report(item: tuple[Object, str]) -> None:
            status = {"status": ready_status(item[1])}
            api.patch("v1", "Pod", item[0]["metadata"]["name"], status, NAMESPACE, subresource="status")

        every(numbered, report)

    def _wait_for(self, version: str, kind: str, count: int, timeout: float = 300) -> list[Object]:
        deadline = time.monotonic() + timeout
        while len(found := self.cluster.api.list_objects(version, kind, NAMESPACE)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} {kind}")
            time.sleep(2)
        return found
