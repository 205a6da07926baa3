"""Start a container's command through `container_init` and watch it, from the event loop."""

import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterable
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

    def __init__(
        self, pid: int, outputs: dict[int, Callable[[bytes], None]], input_fd: int | None = None
    ) -> None:
        self.pid = pid
        self._input = input_fd  # of a terminal it is the same as the output
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

    async def write(self, data: bytes) -> None:
        """Give the command input; it is lost if the command takes none or has ended."""
        while data and self._input is not None:
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                await self._input_has_room(self._input)
            except OSError:  # it has closed its end
                self.end_input()

    async def _input_has_room(self, fd: int) -> None:
        room = asyncio.Event()
        self._loop.add_writer(fd, room.set)
        try:
            await room.wait()
        finally:
            self._loop.remove_writer(fd)

    def end_input(self) -> None:
        """Let the command read the end of its input."""
        if self._input is not None:
            self._loop.remove_writer(self._input)
            os.close(self._input)
            self._input = None

    def resize(self, width: int, height: int) -> None:
        """Tell the command's terminal its size."""
        if self._input is not None:
            with suppress(OSError):
                fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def duplicate_pidfd(self) -> int:
        """A descriptor of the command to enter its namespaces with; the caller closes it."""
        return os.dup(self._pidfd)

    def _read(self, fd: int) -> bool:
        """Pass on what can be read now; false when there is nothing left."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal says that nobody is left on its other side
                raise
            data = b""
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
        self.end_input()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        exited = result.si_code == os.CLD_EXITED
        self.exit_code = result.si_status if exited else 128 + result.si_status
        self._ended.set_result(self.exit_code)


async def launch(
    spec: Spec,
    on_stdout: Callable[[bytes], None],
    on_stderr: Callable[[bytes], None],
    *,
    with_input: bool = False,
) -> Process:
    """Start the command of `spec` and return once it runs. Raises StartError if it does not come to that.

    On a terminal (`spec.terminal`) everything is stdout. Without input it reads the end of it at once.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    spec_fd = os.memfd_create("spec")
    os.write(spec_fd, spec.to_json())
    os.lseek(spec_fd, 0, os.SEEK_SET)
    outputs, input_fd, ends = _open_ends(spec.terminal, with_input, on_stdout, on_stderr)
    try:
        inherited = [spec_fd, theirs.fileno(), *(fd for fd, _ in spec.namespaces)]
        init = subprocess.Popen(  # noqa: ASYNC220 (it takes a millisecond)
            [sys.executable, "-I", "-S", "-c", _BOOT, _SOURCES, str(spec_fd), str(theirs.fileno())],
            stdin=ends[0],
            stdout=ends[1],
            stderr=ends[2],
            pass_fds=inherited,
            env={},
        )
    except OSError:
        ours.close()
        _close(outputs, input_fd)
        raise
    finally:
        theirs.close()
        for fd in {spec_fd, *ends} - {subprocess.DEVNULL}:
            os.close(fd)
    with ours:
        return await _hand_over(init, ours, outputs, input_fd)


def _open_ends(
    terminal: bool, with_input: bool, on_stdout: Callable[[bytes], None], on_stderr: Callable[[bytes], None]
) -> tuple[dict[int, Callable[[bytes], None]], int | None, tuple[int, int, int]]:
    """Our ends of the command's output and input, and the command's three."""
    if terminal:
        ours, theirs = os.openpty()
        outputs, ends = {ours: on_stdout}, (theirs, theirs, theirs)
        input_fd: int | None = os.dup(ours)
    else:
        (stdout, stdout_end), (stderr, stderr_end) = os.pipe(), os.pipe()
        outputs = {stdout: on_stdout, stderr: on_stderr}
        stdin_end, input_fd = os.pipe() if with_input else (subprocess.DEVNULL, None)
        ends = (stdin_end, stdout_end, stderr_end)
    for fd in (*outputs, *([] if input_fd is None else [input_fd])):
        os.set_blocking(fd, False)
    return outputs, input_fd, ends


def _close(outputs: Iterable[int], input_fd: int | None) -> None:
    for fd in (*outputs, *([] if input_fd is None else [input_fd])):
        os.close(fd)


async def _hand_over(
    init: subprocess.Popen[bytes],
    control: socket.socket,
    outputs: dict[int, Callable[[bytes], None]],
    input_fd: int | None,
) -> Process:
    """Follow `container_init` to the moment the command is running, as a child of this process."""
    loop = asyncio.get_running_loop()
    received = b""
    while b"\n" not in received and (data := await loop.sock_recv(control, _READ)):
        received += data
    await asyncio.to_thread(init.wait)
    pid, _, message = received.partition(b"\n")
    if not pid or pid == b"0":
        _close(outputs, input_fd)
        raise StartError(message.decode(errors="replace") or f"container_init failed ({init.returncode})")
    process = Process(int(pid), outputs, input_fd)
    await loop.sock_sendall(control, b"g")
    while data := await loop.sock_recv(control, _READ):
        message += data
    if message:
        await process.wait()
        raise StartError(message.decode(errors="replace"))
    return process
