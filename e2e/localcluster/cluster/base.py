"""A cluster to test against: the local one, or any other through a kubeconfig.

Tests use only what :class:`Cluster` offers; those that need more, such as faults, ask for the local one.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from localcluster.cluster.api import Api, Object
from localcluster.progress import Report, to_stderr


class CommandFailed(RuntimeError):
    """kubectl refused; the message is its error output."""


class Cluster(ABC):
    """A running Kubernetes with KServe. Use as a context manager, or call ``start`` and ``stop``."""

    api: Api
    kubeconfig: Path
    kubectl_program: str

    def __init__(self, report: Report = to_stderr) -> None:
        self.report = report
        self._kubectl_environment: dict[str, str] = {}
        self._urls: dict[tuple[str, int], str] = {}

    @abstractmethod
    def start(self) -> None:
        """Return when pods can run and KServe reconciles. Cleans up after itself if that fails."""

    @abstractmethod
    def stop(self) -> None:
        """Take down all that ``start`` has started."""

    @abstractmethod
    def _forward(self, namespace: str, kind: str, name: str, address: str, port: int) -> str:
        """Return a URL on 127.0.0.1 that leads to that port of a Service or pod."""

    @abstractmethod
    def model_volume(self, name: str, path: Path, namespace: str = "default") -> None:
        """Make a PersistentVolumeClaim ``name`` that holds the folder ``path`` of this machine, read-only."""

    @abstractmethod
    def set_extended_resource(self, name: str, count: int) -> None:
        """Pretend that the node has ``count`` of a resource such as ``nvidia.com/gpu``."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return what it prints. Raises CommandFailed."""
        answer = subprocess.run(
            [self.kubectl_program, *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), **self._kubectl_environment},
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if answer.returncode != 0:
            raise CommandFailed(f"kubectl {' '.join(arguments)}: {answer.stderr.strip()}")
        return answer.stdout

    def url(self, service: str, namespace: str = "default", port: int | None = None) -> str:
        """A URL on 127.0.0.1 for a Service, through its ClusterIP; the first port unless one is named."""
        found = self.api.get("v1", "Service", service, namespace)
        port = port or int(found["spec"]["ports"][0]["port"])
        return self._url(namespace, "service", service, found["spec"]["clusterIP"], port)

    def pod_url(self, pod: str, port: int, namespace: str = "default") -> str:
        """A URL on 127.0.0.1 for one pod, past all Services."""
        found = self.api.get("v1", "Pod", pod, namespace)
        return self._url(namespace, "pod", pod, found["status"]["podIP"], port)

    def _url(self, namespace: str, kind: str, name: str, address: str, port: int) -> str:
        key = (f"{namespace}/{kind}/{name}/{address}", port)
        if key not in self._urls:
            self._urls[key] = self._forward(namespace, kind, name, address, port)
        return self._urls[key]

    def logs(self, pod: str, namespace: str = "default", *arguments: str) -> str:
        return self.kubectl("logs", "-n", namespace, pod, *arguments)

    def wait_deployment(self, name: str, namespace: str = "default", timeout: float = 60) -> Object:
        """The Deployment once all its replicas are of the newest revision and available."""

        def available(objects: list[Object]) -> Object | None:
            for deployment in objects:
                status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
                current = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
                counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
                if current and counts == [wanted] * 3:
                    return deployment
            return None

        try:
            found: Object = self.api.wait_for(
                "apps/v1",
                "Deployment",
                available,
                namespace=namespace,
                name=name,
                timeout=timeout,
                describe=f"Deployment {namespace}/{name} is available",
            )
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.describe(namespace)}") from None
        return found

    def describe(self, namespace: str) -> str:
        """Pods, events and log ends of a namespace, for error messages."""
        parts = [self.kubectl("get", "pods", "-n", namespace, "-o", "wide")]
        parts.append(self.kubectl("get", "events", "-n", namespace, "--sort-by=.lastTimestamp")[-3000:])
        for pod in self.api.list_objects("v1", "Pod", namespace):
            name = pod["metadata"]["name"]
            try:
                parts.append(f"{name}:\n{self.logs(name, namespace, '--tail=15', '--all-containers')}")
            except CommandFailed as error:
                parts.append(f"{name}: {error}")
        return "\n".join(parts)

    @contextmanager
    def new_namespace(self, prefix: str = "test") -> Iterator[str]:
        """A namespace of its own, deleted (without waiting for it) at the end.

        Its name is short: KServe refuses a model whose NAME-predictor-NAMESPACE is over 63 characters.
        """
        name = f"{prefix[:28].rstrip('-')}-{secrets.token_hex(3)}"
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        try:
            yield name
        finally:
            self.api.delete("v1", "Namespace", name)
