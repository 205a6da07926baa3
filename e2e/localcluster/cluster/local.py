"""The local cluster: everything real, in a namespace of this machine, gone without trace when it stops."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localcluster.cluster import control_plane, kserve, node
from localcluster.cluster.api import Object
from localcluster.cluster.base import Cluster
from localcluster.cluster.control_plane import Credentials
from localcluster.cluster.node import Node
from localcluster.cluster.volumes import host_path_claim, single_node_claim
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
    nodes: list[Node]

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
            self.nodes = [self._start_node(0)]
            node.start_proxy(self.launcher, self.credentials)
            if self._with_kserve:
                self.start_kserve()
                self.report(f"KServe reconciles ({time.monotonic() - begin:.1f} s)")
            self.nodes[0].wait_ready(self.api)
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

    def asked_by(self, user: str) -> list[Object]:
        """The API server's audit events of a service account, by its full user name, so far."""
        lines = (self.credentials.folder / control_plane.AUDIT_LOG).read_text().splitlines()
        events = [json.loads(line) for line in lines if f'"{user}"' in line]
        return [event for event in events if event["user"]["username"] == user]

    def _forward(self, namespace: str, kind: str, name: str, address: str, port: int) -> str:
        return f"http://127.0.0.1:{self.launcher.forward(address, port)}"

    def model_volume(self, name: str, path: Path, namespace: str = "default") -> None:
        for obj in host_path_claim(name, self._shown(name, path, namespace), namespace):
            self.api.apply(obj)

    def set_extended_resource(self, name: str, count: int) -> None:
        node.set_extended_resource(self.api, self.nodes[0].name, name, count)

    def single_node_volume(self, name: str, path: Path, namespace: str = "default") -> None:
        """Like ``model_volume``, but ReadWriteOnce: pods of one node at a time may mount it."""
        for obj in single_node_claim(name, self._shown(name, path, namespace), namespace):
            self.api.apply(obj)

    @contextmanager
    def second_node(self) -> Iterator[Node]:
        """A second node inside the block, with as much room as the first: both count the whole machine."""
        added = self._start_node(1)
        self.nodes.append(added)
        try:
            added.wait_ready(self.api)
            yield added
        finally:
            self.nodes.remove(added)
            added.remove(self.api)

    def _start_node(self, index: int) -> Node:
        made = Node(self.launcher, index)
        made.start(self.binaries, self.credentials, self._images)
        return made

    def _shown(self, name: str, path: Path, namespace: str) -> Path:
        """The folder as pods may see it: the kubelet makes a sub-path that is missing, here it must not."""
        shown = self.launcher.folder / "volumes" / f"{namespace}-{name}"
        shown.parent.mkdir(exist_ok=True)
        self.launcher.call("show_readonly", source=str(path.resolve()), target=str(shown))
        return shown
