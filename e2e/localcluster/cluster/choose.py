"""Which cluster to use: the one that the user names, else a local one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localcluster.cluster.base import Cluster
from localcluster.cluster.external import ExternalCluster
from localcluster.cluster.local import LocalCluster
from localcluster.progress import Report, to_stderr

KUBECONFIG_VARIABLE = "SHEAF_E2E_KUBECONFIG"


def open_cluster(
    images: Mapping[str, Any], report: Report = to_stderr, *, log_folder: Path | None = None
) -> Cluster:
    """The cluster of ``$SHEAF_E2E_KUBECONFIG`` if that is set, else a local one; not started yet.

    See ``LocalCluster`` for ``images`` and ``log_folder``, of which only that one has a use.
    """
    if path := os.environ.get(KUBECONFIG_VARIABLE):
        return ExternalCluster(Path(path).expanduser(), report=report)
    return LocalCluster(images, report, log_folder=log_folder)
