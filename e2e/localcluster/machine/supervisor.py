"""Process 1 of the local cluster's namespace: starts, signals and reaps processes, carries connections in.

``python -m localcluster.machine.supervisor CONTROL_FD RUN_FOLDER`` is started by a ``Launcher``. It
enters the namespaces and forks. The parent, the keeper, stays outside of the mounts, waits and removes the
run folder; the child is process 1 inside. The launcher never sends bytes over the control socket, only
one end of a new socket pair for each call, so calls are independent of each other; when the launcher goes,
however it goes, the control socket ends, process 1 exits and everything inside is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from localcluster.machine import namespace, syscalls
from localcluster.machine.way_in import WayIn

MAX_MESSAGE = 1 << 20


@dataclass
class Child:
    process: subprocess.Popen[bytes]
    returncode: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[str, Child] = {}
        self._ways_in: set[WayIn] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        loop.add_reader(self._control, self._accept_call)
        await self._done.wait()

    def _accept_call(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        if not message:
            self._done.set()
            return
        task = asyncio.ensure_future(self._serve(socket.socket(fileno=descriptors[0])))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            # The caller has put its whole request into the pair before handing it over: this does not block.
            message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 1)
            request = json.loads(message)
            try:
                result = getattr(self, "call_" + request.pop("call"))(descriptors, **request)
                answer = {"result": await result if inspect.isawaitable(result) else result}
            except Exception as error:  # the caller gets every error of its call; we must go on living
                answer = {"error": f"{type(error).__name__}: {error}"}
            connection.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_sendall(connection, json.dumps(answer).encode())
            except OSError:
                return  # the caller has gone

    def _reap(self) -> None:
        """Collect every ended process, our own and the orphans that process 1 inherits."""
        by_pid = {child.process.pid: child for child in self._children.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if child := by_pid.get(pid):
                child.returncode = child.process.returncode = os.waitstatus_to_exitcode(status)
                child.ended.set()

    def call_start(
        self, _: list[int], name: str, argv: list[str], env: dict[str, str], log: str, cwd: str
    ) -> int:
        """Start a process in a session of its own, output appended to the file ``log``; its pid in here."""
        running = self._children.get(name)
        if running and running.returncode is None:
            raise RuntimeError(f"{name} is already running")
        with open(log, "ab") as output:
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[name] = Child(process)
        return process.pid

    def call_status(self, _: list[int], name: str) -> dict[str, int | None]:
        child = self._children[name]
        return {"pid": child.process.pid, "returncode": child.returncode}

    def call_signal(self, _: list[int], name: str, number: int) -> None:
        """Signal the process and its process group; a process that has ended is no error."""
        child = self._children[name]
        if child.returncode is None:
            os.killpg(child.process.pid, number)

    async def call_wait(self, _: list[int], name: str, timeout: float) -> int | None:
        """The exit code (negative for a signal) once it has ended, None if it runs on after ``timeout``."""
        child = self._children[name]
        try:
            await asyncio.wait_for(child.ended.wait(), timeout)
        except TimeoutError:
            return None
        return child.returncode

    def call_signal_tree(self, _: list[int], pid: int, number: int, match: str = "") -> int:
        """Signal a process and all below it, parents first; of these only the ones with ``match`` in their
        command line. Returns how many there were.
        """
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # ended while we look
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        pending, signalled = [pid], 0
        while pending:
            current = pending.pop(0)
            pending += children.get(current, [])
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                command = Path(f"/proc/{current}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if match in command:
                    os.kill(current, number)
                    signalled += 1
        return signalled

    def call_show_readonly(self, _: list[int], source: str, target: str) -> None:
        """Show the folder ``source`` at the new folder ``target``, where nobody in here can change it."""
        os.mkdir(target)
        syscalls.bind(source, target)
        syscalls.set_readonly(target, True, recursive=True)

    async def call_forward(self, descriptors: list[int], host: str, port: int) -> None:
        """Carry each connection accepted on the passed listening socket to ``host:port`` in here."""
        way_in = WayIn(socket.socket(fileno=descriptors[0]), host, port)
        await way_in.start()
        self._ways_in.add(way_in)


def _inside(control: socket.socket, run_folder: Path) -> None:
    """Process 1: prepare the namespaces, then serve until the launcher goes. Returning ends the namespace."""
    namespace.private_mounts(run_folder)
    child = os.fork()  # pyroute2 is large and needed once: it stays out of the process that lives on
    if child == 0:
        _exit_after(namespace.private_network)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)  # the child has said why
    control.sendall(b"ready")
    asyncio.run(Supervisor(control).run())


def _exit_after(action: Any) -> NoReturn:
    code = 1
    try:
        action()
        code = 0
    except namespace.NamespaceUnavailable as error:
        print(error, file=sys.stderr, flush=True)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    run_folder = Path(sys.argv[2])
    try:
        namespace.enter()
    except namespace.NamespaceUnavailable as error:
        sys.exit(str(error))
    child = os.fork()
    if child == 0:
        namespace.die_with_parent()
        _exit_after(lambda: _inside(control, run_folder))
    # The launcher alone decides when we end. Not before the fork: what is ignored stays ignored in every
    # program started from here.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control.close()
    status = os.waitpid(child, 0)[1]
    if status == 0:  # else the launcher is still there, to read what went wrong
        shutil.rmtree(run_folder, ignore_errors=True)
    sys.exit(status and 1)


if __name__ == "__main__":
    main()
