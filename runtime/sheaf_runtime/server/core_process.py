"""The engine core as a child process: started, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys

import msgspec

from sheaf_runtime.config import EngineConfig


class CoreProcess:
    """``python -m sheaf_runtime.engine``, which imports its own while nobody needs it yet, and reads its
    configuration from stdin.

    ``listener`` is the Unix socket on which it listens; it is bound before ``configure``.

    stdin stays open as a lifeline: the core ends when it closes, however this process ended. It has a session
    of its own: a signal to our group (Ctrl-C, a service manager) is ours to answer.
    """

    def __init__(self, process: asyncio.subprocess.Process, listener: socket.socket) -> None:
        self._process = process
        self.listener = listener

    @classmethod
    async def start(cls, command: list[str] | None = None) -> CoreProcess:
        """``command``: another engine core than ours."""
        listener = socket.socket(socket.AF_UNIX)
        # -P: the folder in which it is started is no place for modules; it may be the model's.
        command = command or [sys.executable, "-P", "-m", "sheaf_runtime.engine"]
        process = await asyncio.create_subprocess_exec(
            *command,
            "--socket",
            str(listener.fileno()),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        return cls(process, listener)

    async def configure(self, config: EngineConfig) -> None:
        self.listener.close()
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it died at once; wait() tells
            self._process.stdin.write(msgspec.json.encode(config) + b"\n")
            await self._process.stdin.drain()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit status, negative for a signal."""
        return await self._process.wait()

    def ask_state(self) -> None:
        """Have it write what it is about into its log."""
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(b"state\n")

    async def stop(self, patience: float) -> None:
        """Lets it end by itself for ``patience`` seconds, then kills it."""
        self.listener.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), patience)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-status).name}{hint}"
