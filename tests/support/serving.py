"""A real ``sheaf serve`` process for tests, with the real engine core or the fake one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

FAKE_CORE = Path(__file__).parent / "fake_core.py"
START = """
import sys
from sheaf_runtime.cli import end_on_signals, open_standard_streams
open_standard_streams()
end_on_signals()
from sheaf_runtime.server.launch import main
sys.exit(main(sys.argv[2:], [sys.executable, sys.argv[1]]))
"""
LIMIT = 60.0  # seconds; anything here takes far less on a machine that has time


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Polls until ``condition()`` is true and returns its value."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        time.sleep(0.01)
    return value


class Served:
    """One server process. ``url`` has no trailing slash; ``output()`` is what it printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def get(self, path: str) -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url + path, timeout=LIMIT, verify=False)  # no CA files to load: quick
        return None

    def status(self, path: str) -> int | None:
        response = self.get(path)
        return response.status_code if response else None

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"exited with {self.process.returncode}: {self.output()}"
            return self.status("/ready") == 200

        wait_for(ready, "/ready")

    def terminate(self, signum: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(signum)

    def wait_exit(self, limit: float = LIMIT) -> int:
        return self.process.wait(limit)

    def output(self) -> str:
        return self._log.read_text()

    def metric(self, name: str) -> float:
        """The value of the one series of a metric."""
        response = self.get("/metrics")
        assert response is not None
        lines = [line for line in response.text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        assert len(lines) == 1, lines
        return float(lines[0].rsplit(" ", 1)[1])

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def core_pid(self) -> int:
        (pid,) = self.children()
        return pid

    def handles(self, signum: signal.Signals) -> bool:
        """Whether a handler of its own is in place, as opposed to an interpreter that still starts."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        both = 1 << (signal.SIGTERM - 1) | 1 << (signum - 1)  # Python itself catches SIGINT
        return caught & both == both


@contextlib.contextmanager
def serving(
    model: Path,
    tmp_path: Path,
    *flags: str,
    fake: dict[str, Any] | None = None,
    real: bool = False,
    session: bool = False,
    cwd: Path | None = None,
    closed: Sequence[int] = (),
    more_env: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Starts ``sheaf serve model flags``; not yet ready. Whatever is left of it is killed at the end.

    ``session`` gives it a process group of its own; ``closed`` are descriptors that it does not get."""
    port = free_port()
    log = tmp_path / f"server-{port}.log"
    command = ["-m", "sheaf_runtime", "serve"] if real else ["-c", START, str(FAKE_CORE)]
    env = os.environ | {"FAKE_CORE": json.dumps(fake or {}), "OMP_NUM_THREADS": "1"} | (more_env or {})
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", *command, str(model), "--host", "127.0.0.1", "--port", str(port), *flags],
            stdout=out,
            stderr=out,
            env=env,
            start_new_session=session,
            cwd=cwd,
            preexec_fn=(lambda: [os.close(fd) for fd in closed]) if closed else None,
        )
    try:
        yield Served(process, port, log)
    finally:
        process.kill()
        process.wait()
