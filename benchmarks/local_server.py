"""``sheaf serve`` as a child process on a free port of 127.0.0.1, for the benchmarks and the demo."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO


class Server:
    """Ready when constructed; ``close`` it, or use it as a context manager.

    ``log`` takes its output (default: ours); ``before_exec`` runs in the child first. Raises RuntimeError if
    it ends before it is ready.
    """

    def __init__(
        self,
        model: Path,
        flags: list[str],
        log: IO[bytes] | None = None,
        before_exec: Callable[[], None] | None = None,
    ) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        start = time.perf_counter()
        command = [sys.executable, "-m", "sheaf_runtime", "serve", str(model), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--served-model-name", "m", *flags]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=before_exec)
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - start

    def _wait_ready(self) -> None:
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/ready", timeout=2).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the server ended before it was ready; its output says why") from None
                time.sleep(0.1)

    def processes(self) -> dict[str, int]:
        """Pids of the API process and of the engine core."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {"api": self.process.pid, "core": int(children[0])}

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
