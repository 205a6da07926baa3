"""The local cluster: everything real, in a namespace of this machine, gone without trace when it stops."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localcluster.cluster import control_plane, kserve, node
from localcluster.cluster.base import Cluster
from localcluster.cluster.control_plane import Credentials
from localcluster.cluster.volumes import host_path_claim
from localcluster.machine.launcher import Launcher
from localcluster.progress import Report, to_stderr
from localcluster.setup.binaries import Binaries, find_or_build


class LocalCluster(Cluster):
    """``images`` says what image names stand for (see ``cri.images``); logs stay in a given ``log_folder``.

    ``with_kserve=False`` leaves KServe out until ``start_kserve``.
    """

    launcher: Launcher
    binaries: Binaries
    credentials: Credentials

    def __init__(
        self,
        images: Mapping[str, Any],
        report: Report = to_stderr,
        *,
        log_folder: Path | None = None,
        with_kserve: bool = True,
    ) -> None:
        super().__init__(report)
        self._images = images
        self._log_folder = log_folder
        self._with_kserve = with_kserve

    def start(self) -> None:
        self.binaries = find_or_build(self.report)
        self.kubectl_program = self.binaries["kubectl"]
        begin = time.monotonic()
        self.launcher = Launcher(self._log_folder)
        try:
            self.credentials, self.api = control_plane.start(self.launcher, self.binaries)
            self.kubeconfig = self.credentials.kubeconfig("admin")
            # Otherwise it keeps what it learns of our short-lived cluster in the home.
            self._kubectl_environment = {"KUBECACHEDIR": str(self.launcher.folder / "kubectl")}
            self.report(f"API server, controllers and scheduler run ({time.monotonic() - begin:.1f} s)")
            node.start(self.launcher, self.binaries, self.credentials, self._images)
            if self._with_kserve:
                self.start_kserve()
                self.report(f"KServe reconciles ({time.monotonic() - begin:.1f} s)")
            node.wait_ready(self.launcher, self.api)
            self.report(f"the node is Ready ({time.monotonic() - begin:.1f} s)")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if hasattr(self, "api"):
            self.api.close()
        self.launcher.stop()

    def start_kserve(self) -> None:
        """Install and start KServe in a cluster that was started without it."""
        kserve.install(self.api, self.binaries)
        kserve.start(self.launcher, self.api, self.binaries, self.credentials)

    def _forward(self, namespace: str, kind: str, name: str, address: str, port: int) -> str:
        return f"http://127.0.0.1:{self.launcher.forward(address, port)}"

    def model_volume(self, name: str, path: Path, namespace: str = "default") -> None:
        # The kubelet makes a sub-path that is missing; in a folder of this machine it must not.
        shown = self.launcher.folder / "volumes" / f"{namespace}-{name}"
        shown.parent.mkdir(exist_ok=True)
        self.launcher.call("show_readonly", source=str(path.resolve()), target=str(shown))
        for obj in host_path_claim(name, shown, namespace):
            self.api.apply(obj)

    def set_extended_resource(self, name: str, count: int) -> None:
        node.set_extended_resource(self.api, name, count)
