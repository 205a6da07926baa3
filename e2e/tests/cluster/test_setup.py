"""Parts of the local cluster that need no cluster: versions, keys, progress, images."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from localcluster.cache import build_once
from localcluster.cluster import control_plane
from localcluster.progress import Progress
from localcluster.setup import binaries, golang


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("kube-apiserver", "Kubernetes v1.36.0", True),
        ("kubelet", "Kubernetes v1.35.9", False),
        ("kubectl", "Client Version: v1.36.3\nKustomize Version: v5.8.1", True),
        ("kubectl", "Client Version: v1.30.14", False),
        ("etcd", "etcd Version: 3.5.16\nGit SHA: x", True),
        ("etcd", "etcd Version: 3.5.1\nGit SHA: x", False),
        ("etcd", "usage: etcd", False),
    ],
)
def test_programs_that_the_user_has_must_fit(name: str, output: str, expected: bool) -> None:
    assert binaries.fits(name, output) is expected


def test_a_fitting_program_of_the_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "etcd"
    program.write_text("#!/bin/sh\necho etcd Version: 3.6.8\n")
    program.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert binaries._users_own("etcd") == program
    program.write_text("#!/bin/sh\necho etcd Version: 3.4.0\n")
    assert binaries._users_own("etcd") is None


def test_a_failed_build_shows_the_compiler_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "modules" / "broken"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module example.com/broken\n\ngo 1.26\n")
    (module / "main.go").write_text("package main\n\nfunc main() { undefinedFunction() }\n")
    target = tmp_path / "cache" / "broken"
    target.parent.mkdir()
    monkeypatch.setenv("SHEAF_CACHE", str(tmp_path / "cache"))
    with pytest.raises(golang.BuildFailed, match="undefinedFunction"):
        build_once(target, lambda folder: golang.build(module, ".", folder / "x", "", "broken", None))
    golang.forget()
    assert [path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")] == []


def test_the_cache_name_changes_with_the_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = binaries._key("control-plane")
    copy = tmp_path / "control-plane"
    shutil.copytree(binaries.GO_MODULES / "control-plane", copy)
    monkeypatch.setattr(binaries, "GO_MODULES", tmp_path)
    assert binaries._key("control-plane") == before
    with open(copy / "go.sum", "a") as sums:
        sums.write("example.com/x v1.0.0 h1:abc=\n")
    assert binaries._key("control-plane") != before


def test_signing_keys_are_valid_and_fresh() -> None:
    first, second = control_plane._signing_key(), control_plane._signing_key()
    assert first != second
    der = base64.b64decode(first.split("-----")[2])
    assert (der[0], der[1]) == (0x30, len(der) - 2)
    if openssl := shutil.which("openssl"):
        check = subprocess.run([openssl, "ec", "-noout", "-check"], input=first.encode(), capture_output=True)
        assert check.returncode == 0, check.stderr


def test_progress_off_a_terminal_is_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("localcluster.progress.time.monotonic", lambda: now)
    progress = Progress("Building")
    for step in range(25):
        now = 100.0 + step
        progress.update(f"{step} of 25")
    progress.done("finished")
    assert capsys.readouterr().err.splitlines() == [
        "Building: 10 of 25 (0:10)",
        "Building: 20 of 25 (0:20)",
        "Building: finished (0:24)",
    ]
