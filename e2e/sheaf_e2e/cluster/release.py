"""Sheaf's Helm release: the chart of this checkout, installed by Helm's own library in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helm_python import Config

from sheaf_e2e.machine.launcher import CHECKOUT

CHART = CHECKOUT / "charts" / "sheaf"
RELEASE = "sheaf"


class Helm:
    """What `helm` does with this release; each write waits until what it wrote is ready.

    Raises helm_python's HelmError with Helm's own message.
    """

    def __init__(self, kubeconfig: Path, namespace: str, timeout: float = 120) -> None:
        self._config = Config(kubeconfig_path=kubeconfig, namespace=namespace)
        self._options: dict[str, Any] = {"timeout": round(timeout), "wait": "watcher"}

    def close(self) -> None:
        self._config.close()

    def __enter__(self) -> Helm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def revisions(self) -> list[Mapping[str, Any]]:
        """The release's revisions, oldest first; none if it is not installed."""
        if not self._config.list(all_states=True, name_filter=f"^{RELEASE}$"):
            return []
        return list(self._config.history(RELEASE))

    def deploy(self, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> None:
        """Install, or upgrade where it is installed; what `values` leaves out is the chart's default."""
        given = dict(values or {})
        if self.revisions():
            # Without the reset, empty values would mean those of the last revision.
            self._config.upgrade(str(chart), RELEASE, given, reset_values=True, **self._options)
        else:
            self._config.install(str(chart), RELEASE, given, **self._options)

    def rollback(self, revision: int) -> None:
        self._config.rollback(RELEASE, version=revision, **self._options)

    def uninstall(self) -> None:
        self._config.uninstall(RELEASE, **self._options)
