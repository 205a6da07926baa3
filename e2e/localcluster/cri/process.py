"""Start a container's command through `container_init` and watch it, from the event loop."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from localcluster.cri.container_init import Spec

_SOURCES = str(Path(__file__).parents[2])
_BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from localcluster.cri.container_init import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""
_READ = 64 * 1024
_LARGEST_PIPE = 1024 * 1024  # what can still be in a pipe when its command has ended


class StartError(Exception):
    """The command could not be started; the message says why."""


class Process:
    """A running command. `exit_code` is set after its end and all its output; 128 + n stands for signal n."""

    def __init__(self, pid: int, outputs: dict[int, Callable[[bytes], None]]) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self._outputs = outputs
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)
        for fd in outputs:
            self._loop.add_reader(fd, self._read, fd)

    async def wait(self) -> int:
        """The exit code, once the command has ended."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal to the command; nothing happens if it has ended."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """End the command and what it started in its session."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.signal(signal.SIGKILL)

    def duplicate_pidfd(self) -> int:
        """A descriptor of the command to enter its namespaces with; the caller closes it."""
        return os.dup(self._pidfd)

    def _read(self, fd: int) -> bool:
        """Pass on what can be read now; false when there is nothing left."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return False
        if data:
            self._outputs[fd](data)
            return True
        self._close_output(fd)
        return False

    def _close_output(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._outputs[fd]
        os.close(fd)

    def _reap(self) -> None:
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return
        for fd in list(self._outputs):
            for _ in range(_LARGEST_PIPE // _READ):
                if not self._read(fd):
                    break
        for fd in list(self._outputs):  # a process that outlives the command may hold them; it is not heard
            self._close_output(fd)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        exited = result.si_code == os.CLD_EXITED
        self.exit_code = result.si_status if exited else 128 + result.si_status
        self._ended.set_result(self.exit_code)


async def launch(
    spec: Spec, on_stdout: Callable[[bytes], None], on_stderr: Callable[[bytes], None]
) -> Process:
    """Start the command of `spec` and return once it runs. Raises StartError if it does not come to that."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    spec_fd = os.memfd_create("spec")
    os.write(spec_fd, spec.to_json())
    os.lseek(spec_fd, 0, os.SEEK_SET)
    stdout, stdout_end = os.pipe()
    stderr, stderr_end = os.pipe()
    os.set_blocking(stdout, False)
    os.set_blocking(stderr, False)
    outputs = {stdout: on_stdout, stderr: on_stderr}
    try:
        inherited = [spec_fd, theirs.fileno(), *(fd for fd, _ in spec.namespaces)]
        init = subprocess.Popen(  # noqa: ASYNC220 (it takes a millisecond)
            [sys.executable, "-I", "-S", "-c", _BOOT, _SOURCES, str(spec_fd), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=stdout_end,
            stderr=stderr_end,
            pass_fds=inherited,
            env={},
        )
    except OSError:
        ours.close()
        for fd in outputs:
            os.close(fd)
        raise
    finally:
        theirs.close()
        for fd in (spec_fd, stdout_end, stderr_end):
            os.close(fd)
    with ours:
        return await _hand_over(init, ours, outputs)


async def _hand_over(
    init: subprocess.Popen[bytes], control: socket.socket, outputs: dict[int, Callable[[bytes], None]]
) -> Process:
    """Follow `container_init` to the moment the command is running, as a child of this process."""
    loop = asyncio.get_running_loop()
    received = b""
    while b"\n" not in received and (data := await loop.sock_recv(control, _READ)):
        received += data
    await asyncio.to_thread(init.wait)
    pid, _, message = received.partition(b"\n")
    if not pid or pid == b"0":
        for fd in outputs:
            os.close(fd)
        raise StartError(message.decode(errors="replace") or f"container_init failed ({init.returncode})")
    process = Process(int(pid), outputs)
    await loop.sock_sendall(control, b"g")
    while data := await loop.sock_recv(control, _READ):
        message += data
    if message:
        await process.wait()
        raise StartError(message.decode(errors="replace"))
    return process
