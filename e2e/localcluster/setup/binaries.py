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
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster import obstacles
from localcluster.cache import REMEDY, build_once, cache_root, locked
from localcluster.obstacles import command, require_writable
from localcluster.progress import Report
from localcluster.setup import cri_api, golang

GO_MODULES = Path(__file__).resolve().parents[2] / "go"
KUBERNETES_VERSION = "v1.36.3"
KSERVE_MODULE = "github.com/kserve/kserve"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
_MINIMUM_ETCD = (3, 5, 16)  # older ones break the watches of current API servers
BUILD_BYTES = 9_500_000_000  # at most at once: sources, compiled packages, results
_LEFT_BYTES = 1_000_000_000  # of these at the end of an interrupted build
_LINKER_FLAGS = f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}"

# The resources of KServe that its controller insists on. The two that Sheaf writes come with their full
# schemas; the others as KServe's minimal variant, because a schema costs the API server memory and seconds.
_FULL_CRDS = ("inferenceservices", "servingruntimes")
_MINIMAL_CRDS = ("clusterservingruntimes", "inferencegraphs", "trainedmodels")


@dataclass(frozen=True)
class Binaries:
    """What a local cluster runs. ``kserve`` is a folder: manager, crds.json, webhooks.json."""

    programs: dict[str, Path]
    kserve: Path

    def __getitem__(self, program: str) -> str:
        return str(self.programs[program])


def find_or_build(report: Report | None = None) -> Binaries:
    """Return every program, building what is missing. Raises Obstacle and golang.BuildFailed."""
    programs = _programs()
    if not _complete(programs):
        with locked(golang.work_folder(), report):
            if not _complete(programs):  # whoever held the lock may have built it
                require_room()
                _build(programs, report)
    kubernetes = _folder("kubernetes", "control-plane")
    return Binaries(
        {name: programs.get(name, kubernetes / name) for name in PROGRAMS}, _folder("kserve", "kserve")
    )


def anything_to_build() -> bool:
    """Whether ``find_or_build`` would take minutes."""
    return not _complete(_programs())


def require_room() -> None:
    """Raise Obstacle if the cache folder does not take what a build writes."""
    require_writable(cache_root(), REMEDY)
    # What an interrupted build has left there counts as room.
    kept = sum(file.lstat().st_blocks * 512 for file in golang.work_folder().rglob("*") if file.is_file())
    purpose = "building Kubernetes and KServe"
    obstacles.require_room({cache_root(): max(BUILD_BYTES - kept, _LEFT_BYTES)}, purpose, REMEDY)


def _complete(programs: dict[str, Path]) -> bool:
    """Whether everything is there, with these ``programs`` of the user's."""
    wanted = [_folder("kserve", "kserve"), cri_api.folder()]
    if len(programs) < len(PROGRAMS):
        wanted.append(_folder("kubernetes", "control-plane"))
    return all(folder.is_dir() for folder in wanted)


def _build(programs: dict[str, Path], report: Report | None) -> None:
    if len(programs) < len(PROGRAMS):
        target = _folder("kubernetes", "control-plane")
        build_once(target, lambda folder: _build_control_plane(folder, report), report)
    build_once(_folder("kserve", "kserve"), lambda folder: _build_kserve(folder, report), report)
    cri_api.ensure(report)
    golang.forget()


def _programs() -> dict[str, Path]:
    """Those that the user has."""
    return {name: path for name in PROGRAMS if (path := _users_own(name))}


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


def _build_control_plane(folder: Path, report: Report | None) -> None:
    title = "Kubernetes (once, about 5 minutes on 2 cores)"
    golang.build(GO_MODULES / "control-plane", ".", folder / "control-plane", _LINKER_FLAGS, title, report)
    for name in PROGRAMS:
        (folder / name).symlink_to("control-plane")


def _build_kserve(folder: Path, report: Report | None) -> None:
    module, package = GO_MODULES / "kserve", f"{KSERVE_MODULE}/cmd/manager"
    title = "KServe (once, about 3 minutes on 2 cores)"
    golang.build(module, package, folder / "manager", _LINKER_FLAGS, title, report)
    config = golang.module_sources(module, KSERVE_MODULE, report) / "config"
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


def _main() -> None:
    find_or_build()


if __name__ == "__main__":
    command(_main, golang.BuildFailed)
