"""Any cluster that the user has, through a kubeconfig: nothing is started but kubectl's proxies to it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from sheaf_e2e.api import Api
from sheaf_e2e.binaries import find_or_build
from sheaf_e2e.cluster import Cluster, Report, to_stderr


class ExternalCluster(Cluster):
    """kubectl carries all requests, so every way to log in that it knows works here too."""

    def __init__(self, kubeconfig: Path, report: Report = to_stderr) -> None:
        super().__init__(report)
        if not kubeconfig.is_file():
            raise FileNotFoundError(f"there is no kubeconfig {kubeconfig}: set SHEAF_E2E_KUBECONFIG to one")
        self.kubeconfig = kubeconfig
        self._proxies: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        self.kubectl_program = shutil.which("kubectl") or find_or_build()["kubectl"]
        try:
            self.api = Api(self._proxy(["proxy", "--port=0"]))
            self.api.list_objects(
                "serving.kserve.io/v1beta1", "InferenceService"
            )  # fails clearly without KServe
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if hasattr(self, "api"):
            self.api.close()
        for proxy in self._proxies:
            proxy.terminate()
            proxy.wait()
            if proxy.stdout:
                proxy.stdout.close()
        self._proxies.clear()

    def _proxy(self, arguments: list[str]) -> str:
        """Start a kubectl that listens on 127.0.0.1 until ``stop``; returns its URL."""
        proxy = subprocess.Popen(
            [self.kubectl_program, f"--kubeconfig={self.kubeconfig}", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._proxies.append(proxy)
        assert proxy.stdout is not None
        for line in proxy.stdout:
            if match := re.search(r"127\.0\.0\.1:(\d+)", line):
                return f"http://127.0.0.1:{match[1]}"
        raise RuntimeError(f"kubectl {' '.join(arguments)} ended with code {proxy.wait()}")

    def _forward(self, namespace: str, kind: str, name: str, address: str, port: int) -> str:
        return self._proxy(["port-forward", "-n", namespace, f"{kind}/{name}", f":{port}"])

    def model_volume(self, name: str, path: Path, namespace: str = "default") -> None:
        if self.api.find("v1", "PersistentVolumeClaim", name, namespace) is None:
            raise LookupError(
                f"this cluster cannot see {path}: "
                f"create a PersistentVolumeClaim {namespace}/{name} that holds it"
            )

    def set_extended_resource(self, name: str, count: int) -> None:
        raise NotImplementedError("only the local cluster can pretend to have devices")
