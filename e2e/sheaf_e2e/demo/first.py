"""The first minutes on a fresh machine: an answer from the runtime while the cluster's programs are built."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from local_server import Server

from sheaf_e2e.binaries import BuildFailed
from sheaf_e2e.demo import story
from sheaf_e2e.demo.console import Console

_NICE = 10  # the answer comes first


def answer(model: Path, console: Console) -> None:
    """Ask the very runtime that the pods will run, as a plain process. Raises StoryFailed."""
    with tempfile.TemporaryFile() as log:
        try:
            with Server(model, ["--max-model-len", "2048", "--kv-cache-memory", "256MiB"], log) as server:
                console.say(f"`sheaf serve` is ready after {server.start_s:.1f} s")
                story.ask(server.url, "m", console)
        except RuntimeError as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").strip()[-2000:]
            raise story.StoryFailed(f"{error}:\n{tail}") from None


class Build:
    """``python -m sheaf_e2e.binaries`` at low priority beside us; its progress goes to our stderr."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sheaf_e2e.binaries"],
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: os.nice(_NICE) and None,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Raises BuildFailed; what it has to say is on stderr already."""
        if self._process.wait() != 0:
            raise BuildFailed("the cluster's programs could not be built; the reason is above")

    def __enter__(self) -> Build:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            # SIGINT lets it remove what is half built; its compilers are in the same process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)
            self._process.wait()
