"""The CRI messages and stubs, generated once per version into the cache from the Go module that go.mod pins.

`ensure()` needs the network the first time (it asks `go` for the module) and nothing later, so it is called
at set-up, before entering a namespace.
"""

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from localcluster.cache import build_once, cache_root
from localcluster.progress import Report
from localcluster.setup import golang

GO_MOD = Path(__file__).parents[2] / "go" / "control-plane" / "go.mod"
PROTO = Path("pkg/apis/runtime/v1/api.proto")


def folder() -> Path:
    """Where the generated modules are, or will be."""
    return cache_root() / f"cri-api-{_pinned_version(GO_MOD.read_text())}-grpcio-{version('grpcio-tools')}"


def ensure(report: Report | None = None) -> Path:
    """The folder that holds the generated modules, made now if it is not there yet."""
    return build_once(folder(), lambda target: _generate(_sources(report) / PROTO, target), report)


def load() -> tuple[Any, Any]:
    """The modules with the messages and with the stubs."""
    folder = str(ensure())
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("cri_v1_pb2"), importlib.import_module("cri_v1_pb2_grpc")


def _pinned_version(go_mod: str) -> str:
    found = re.search(r"^\s*k8s\.io/cri-api\s+(v\S+)", go_mod, re.MULTILINE)
    if not found:
        raise RuntimeError(f"{GO_MOD} does not pin k8s.io/cri-api")
    return found[1]


def _sources(report: Report | None) -> Path:
    return golang.module_sources(GO_MOD.parent, "k8s.io/cri-api", report)


def _generate(proto: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "cri_v1.proto")
        shutil.copyfile(proto, source)
        options = [f"-I{scratch}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, str(source)], check=True)
