"""The engine core as a child process: started, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import msgspec

from sheaf_runtime.config import EngineConfig


class CoreProcess:
    """``python -m sheaf_runtime.engine``, which reads its configuration from stdin.

    stdin stays open as a lifeline: the core ends when it closes, however this process ended. It has a session
    of its own: a signal to our group (Ctrl-C, a service manager) is ours to answer.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, config: EngineConfig, listener: int, command: list[str] | None = None
    ) -> CoreProcess:
        """``listener`` is the descriptor of the socket on which it listens."""
        # -P: the folder in which it is started is no place for modules; it may be the model's.
        command = command or [sys.executable, "-P", "-m", "sheaf_runtime.engine"]
        process = await asyncio.create_subprocess_exec(
            *command,
            "--socket",
            str(listener),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=[listener],
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it died at once; wait() tells
            process.stdin.write(msgspec.json.encode(config) + b"\n")
            await process.stdin.drain()
        return cls(process)

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
