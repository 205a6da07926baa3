"""Which cluster to use: the one that the user names, else a local one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sheaf_e2e.cluster.base import Cluster
from sheaf_e2e.cluster.external import ExternalCluster
from sheaf_e2e.cluster.local import LocalCluster
from sheaf_e2e.progress import Report, to_stderr

KUBECONFIG_VARIABLE = "SHEAF_E2E_KUBECONFIG"


def open_cluster(report: Report = to_stderr, **local_options: Any) -> Cluster:
    """The cluster of ``$SHEAF_E2E_KUBECONFIG`` if that is set, else a local one; not started yet."""
    if path := os.environ.get(KUBECONFIG_VARIABLE):
        return ExternalCluster(Path(path).expanduser(), report=report)
    return LocalCluster(report=report, **local_options)
