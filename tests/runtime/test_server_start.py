"""Starts as people have them: folders, environments and descriptors that others did not think of."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import byte_level, write_folder
from serving import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), byte_level())


def test_a_temporary_folder_too_deep_for_a_socket(folder: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    with serving(folder, tmp_path, more_env={"TMPDIR": str(deep)}) as server:
        server.wait_ready()
        server.terminate(signal.SIGINT)
        assert server.wait_exit() == 0
    assert not list(deep.iterdir())


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)])
def test_without_standard_streams(folder: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    with serving(folder, tmp_path, closed=closed) as server:
        server.wait_ready()
        assert server.status("/v1/models") == 200


def test_modules_in_the_working_folder_are_not_run(folder: Path, tmp_path: Path) -> None:
    """It may be the model's, whose code is never run."""
    for name in ("msgspec", "numpy", "json", "torch"):
        (tmp_path / f"{name}.py").write_text("print('FOREIGN CODE', flush=True)\nraise SystemExit(7)\n")
    with serving(folder, tmp_path, "--device", "cpu", real=True, cwd=tmp_path) as server:
        assert server.wait_exit() == 2
        assert "the engine core failed: config.json" in server.output()  # it has read that far
        assert "FOREIGN CODE" not in server.output()


@pytest.fixture
def hang_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the server inherits for SIGHUP."""
    before = signal.signal(signal.SIGHUP, request.param)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("hang_up", [signal.SIG_DFL], indirect=True)
def test_a_terminal_that_hangs_up(folder: Path, tmp_path: Path, hang_up: None) -> None:
    with serving(folder, tmp_path, "--lame-duck", "0") as server:
        server.wait_ready()
        server.terminate(signal.SIGHUP)
        assert server.wait_exit() == 0
        assert "SIGHUP: draining" in server.output()


@pytest.mark.parametrize("hang_up", [signal.SIG_IGN], indirect=True)
def test_nohup(folder: Path, tmp_path: Path, hang_up: None) -> None:
    with serving(folder, tmp_path) as server:
        server.wait_ready()
        os.kill(server.process.pid, signal.SIGHUP)
        server.terminate(signal.SIGINT)
        assert server.wait_exit() == 0
        assert "SIGHUP" not in server.output()
