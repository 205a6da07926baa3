"""The first minutes on a fresh machine: an answer from the runtime while the cluster's programs are built."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from local_server import Server
from localcluster.machine.launcher import Launcher
from localcluster.machine.namespace import die_with_parent
from localcluster.obstacles import PREFIX, Obstacle
from localcluster.setup import binaries

from sheaf_e2e.demo import story
from sheaf_e2e.demo.console import Console

_NICE = 10  # the answer comes first
_SMALL = ["--max-model-len", "2048", "--kv-cache-memory", "256MiB"]


def minutes(model: Path, console: Console) -> None:
    """Where the cluster has to be built first, or cannot be had, answer a question without it.

    Raises Obstacle (after the answer) if there can be no cluster, BuildFailed if its programs do not compile.
    """
    to_build = binaries.anything_to_build()
    try:
        Launcher().stop()  # takes a fraction of a second, and tells whether this machine lets us
        if to_build:
            binaries.require_room()
    except Obstacle:
        console.step("A first answer, without a cluster")
        answer(model, console)
        raise
    if not to_build:
        return
    console.step("A first answer, while Kubernetes and KServe are built in the background (once)")
    with Build(console) as build:
        answer(model, console)
        console.step("The rest of the build, at full speed")
        build.wait()


def answer(model: Path, console: Console) -> None:
    """Ask the very runtime that the pods will run, as a plain process. Raises StoryFailed."""
    with tempfile.TemporaryFile() as log:
        try:
            with Server(model, _SMALL, log, _interrupted_with_us) as server:
                console.say(f"`sheaf serve` is ready after {server.start_s:.1f} s")
                story.ask(server.url, "m", console)
        except RuntimeError as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").strip()[-2000:]
            raise story.StoryFailed(f"{error}:\n{tail}") from None


class Build:
    """``localcluster.setup.binaries`` at low priority beside us; its progress goes to the console."""

    def __init__(self, console: Console) -> None:
        self._failure: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "localcluster.setup.binaries"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_in_background,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(console,), daemon=True)
        self._reader.start()

    def _read(self, console: Console) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if self._failure or line.startswith(PREFIX):
                self._failure.append(line)
            else:
                console.say(line.rstrip())

    def wait(self) -> None:
        """Raises Obstacle with what the build has to say if it failed."""
        code = self._process.wait()
        self._reader.join()
        if code != 0:
            raise Obstacle(
                "".join(self._failure).removeprefix(PREFIX).strip() or f"the build ended with code {code}"
            )

    def __enter__(self) -> Build:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)  # lets it remove what is half built
            self._process.wait()


def _in_background() -> None:
    os.nice(_NICE)
    _interrupted_with_us()


def _interrupted_with_us() -> None:
    """Even if we are killed: it then cleans up after itself."""
    die_with_parent(signal.SIGINT)
