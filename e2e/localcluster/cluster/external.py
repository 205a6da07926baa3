"""Any cluster that the user has, through a kubeconfig: nothing is started but ``kubectl proxy``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from localcluster.cluster.api import Api, ApiError
from localcluster.cluster.base import Cluster
from localcluster.cluster.volumes import host_path_claim
from localcluster.obstacles import Obstacle
from localcluster.progress import Report, to_stderr
from localcluster.setup.binaries import find_or_build

# A folder that the cluster's nodes have at the same path, as a kind cluster can be told to.
NODE_SEES_VARIABLE = "SHEAF_E2E_NODE_SEES"


class ExternalCluster(Cluster):
    """kubectl carries all requests, so every way to log in that it knows works here too.

    URLs lead through the API server, which spreads requests over a Service's pods; ``kubectl port-forward``
    would pick one pod for all of them.
    """

    def __init__(self, kubeconfig: Path, report: Report = to_stderr) -> None:
        super().__init__(report)
        if not kubeconfig.is_file():
            raise Obstacle(f"there is no kubeconfig {kubeconfig}; set SHEAF_E2E_KUBECONFIG to one")
        self.kubeconfig = kubeconfig
        self._proxy: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.kubectl_program = shutil.which("kubectl") or find_or_build()["kubectl"]
        try:
            self._proxy_url = self._start_proxy()
            self.api = Api(self._proxy_url)
            self._require_kserve()
        except BaseException:
            self.stop()
            raise

    def _require_kserve(self) -> None:
        try:
            self.api.list_objects("serving.kserve.io/v1beta1", "InferenceService")
        except ApiError as error:
            raise Obstacle(
                f"{self.kubeconfig}: this cluster has no KServe ({error}); install it there"
            ) from None

    def stop(self) -> None:
        if hasattr(self, "api"):
            self.api.close()
        if self._proxy is not None:
            self._proxy.terminate()
            self._proxy.communicate()
            self._proxy = None

    def _start_proxy(self) -> str:
        """Start a kubectl that listens on 127.0.0.1 until ``stop``; returns its URL."""
        arguments = [f"--kubeconfig={self.kubeconfig}", "proxy", "--port=0"]
        self._proxy = subprocess.Popen(
            [self.kubectl_program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._proxy.stdout is not None
        first = self._proxy.stdout.readline()
        if match := re.search(r"127\.0\.0\.1:\d+", first):
            return f"http://{match[0]}"
        words = " ".join((first + self._proxy.stdout.read()).split())
        raise Obstacle(f"kubectl cannot use {self.kubeconfig} ({words}); try: kubectl proxy --kubeconfig=...")

    def _forward(self, namespace: str, kind: str, name: str, address: str, port: int) -> str:
        return f"{self._proxy_url}/api/v1/namespaces/{namespace}/{kind}s/{name}:{port}/proxy"

    def model_volume(self, name: str, path: Path, namespace: str = "default") -> None:
        shared = os.environ.get(NODE_SEES_VARIABLE)
        if shared and path.resolve().is_relative_to(Path(shared).resolve()):
            for obj in host_path_claim(name, path, namespace):
                self.api.apply(obj)
        elif self.api.find("v1", "PersistentVolumeClaim", name, namespace) is None:
            raise Obstacle(
                f"this cluster cannot see {path}; create a PersistentVolumeClaim {namespace}/{name} that "
                f"holds it, or name a folder around it that the nodes have too in {NODE_SEES_VARIABLE}"
            )

    def set_extended_resource(self, name: str, count: int) -> None:
        raise NotImplementedError("only the local cluster can pretend to have devices")
