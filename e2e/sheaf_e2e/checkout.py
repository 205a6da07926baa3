"""This checkout: where it is, what of it the image names stand for, and a cluster that runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from localcluster.cluster import Cluster, open_cluster
from localcluster.progress import Report, to_stderr

CHECKOUT = Path(__file__).resolve().parents[2]


def image_table() -> dict[str, dict[str, Any]]:
    """What image names stand for on a local cluster: programs of this checkout and of its environment."""
    python = os.path.abspath(sys.executable)
    paths = sorted({str(CHECKOUT), sys.prefix, sys.base_prefix})
    scripts = str(Path(python).parent)
    env = {
        "PATH": f"{scripts}:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
    }

    def image(*entrypoint: str) -> dict[str, Any]:
        return {"entrypoint": list(entrypoint), "env": env, "paths": paths}

    return {
        "ghcr.io/sheaf-dev/sheaf/runtime:*": image(f"{scripts}/sheaf", "serve"),
        "ghcr.io/sheaf-dev/sheaf/operator:*": image(python, "-m", "sheaf_operator"),
        "sheaf/tool:*": image(python),
    }


def open_sheaf_cluster(report: Report = to_stderr, log_folder: Path | None = None) -> Cluster:
    """The cluster of ``$SHEAF_E2E_KUBECONFIG`` if that is set, else a local one; not started yet."""
    return open_cluster(image_table(), report, log_folder=log_folder)
