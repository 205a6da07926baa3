"""Sheaf's Helm release: the chart of this checkout, installed by Helm's own library in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Config
from localcluster.cluster import Cluster

from sheaf_e2e.checkout import CHECKOUT

CHART = CHECKOUT / "charts" / "sheaf"
RELEASE = "sheaf"
OPERATOR_NAMESPACE = "sheaf-system"
OPERATOR = "sheaf-operator"
OPERATOR_LABELS = f"app.kubernetes.io/name={OPERATOR}"


class Helm:
    """What `helm` does with this release; each write waits until what it wrote is ready.

    Raises helm_python's HelmError with Helm's own message.
    """

    def __init__(
        self, kubeconfig: Path, namespace: str, timeout: float = 120, release: str = RELEASE
    ) -> None:
        self._config = Config(kubeconfig_path=kubeconfig, namespace=namespace)
        self._release = release
        self._options: dict[str, Any] = {"timeout": round(timeout), "wait": "watcher"}

    def close(self) -> None:
        self._config.close()

    def __enter__(self) -> Helm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def revisions(self) -> list[Mapping[str, Any]]:
        """The release's revisions, oldest first; none if it is not installed."""
        if not self._config.list(all_states=True, name_filter=f"^{self._release}$"):
            return []
        return list(self._config.history(self._release))

    def deploy(self, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> None:
        """Install, or upgrade where it is installed; what `values` leaves out is the chart's default."""
        given = dict(values or {})
        if self.revisions():
            # Without the reset, empty values would mean those of the last revision.
            self._config.upgrade(str(chart), self._release, given, reset_values=True, **self._options)
        else:
            self._config.install(str(chart), self._release, given, **self._options)

    def rollback(self, revision: int) -> None:
        self._config.rollback(self._release, version=revision, **self._options)

    def uninstall(self) -> None:
        self._config.uninstall(self._release, **self._options)


def helm(cluster: Cluster) -> Helm:
    """Helm for the operator's release; to be closed, or used as a context manager."""
    return Helm(cluster.kubeconfig, OPERATOR_NAMESPACE)


def install_operator(cluster: Cluster, timeout: float = 120, **values: Any) -> None:
    """Install the Helm chart as a user would (or upgrade), and wait until the operator's pod is Ready."""
    namespace = yaml.safe_load((CHECKOUT / "manifests" / "namespace.yaml").read_text())
    cluster.api.apply(namespace)  # with the restricted Pod Security Standard
    with helm(cluster) as release:
        release.deploy(values)
    cluster.wait_deployment(OPERATOR, OPERATOR_NAMESPACE, timeout)
