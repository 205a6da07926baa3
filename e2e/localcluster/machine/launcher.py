"""Starts the namespace and its process 1 from outside, and talks to it. Nothing survives the launcher."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from localcluster.cache import cache_root
from localcluster.machine.namespace import NamespaceUnavailable
from localcluster.machine.supervisor import MAX_MESSAGE

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class ComponentFailed(RuntimeError):
    """A program of the cluster ended or did not get ready; the message ends with the end of its log."""


class Launcher:
    """A namespace with named processes in it.

    ``folder`` is a new temporary folder, the same path inside and outside; it is removed when the namespace
    ends. Process logs are ``log_folder/NAME.log``: inside ``folder`` unless another place is given, which
    then stays.
    """

    def __init__(self, log_folder: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sheaf-rig-"))
        self.log_folder = log_folder or self.folder / "logs"
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._starts: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._keeper_log = self.folder / "keeper.log"
        with theirs, open(self._keeper_log, "wb") as output:
            self._keeper = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "localcluster.machine.supervisor",
                    str(theirs.fileno()),
                    str(self.folder),
                ],
                env=self.environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        try:
            self._control.settimeout(30)
            if self._control.recv(16) != b"ready":
                self._keeper.wait(30)
                raise NamespaceUnavailable(self._keeper_output())
            self._control.settimeout(None)
        except BaseException:
            self.stop()
            raise

    def _keeper_output(self) -> str:
        try:
            return self._keeper_log.read_text(errors="replace").strip()
        except OSError:
            return "the namespace ended and said nothing"

    def environment(self, extra: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """A small, known environment for programs of the cluster, this environment's first in PATH."""
        scripts = Path(sys.executable).parent
        return {
            "PATH": f"{scripts}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "SHEAF_CACHE": str(cache_root()),
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(PACKAGE_ROOT),
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
            **extra,
        }

    def call(self, method: str, descriptors: list[int] | None = None, /, **arguments: Any) -> Any:
        """Call ``call_METHOD`` of the supervisor and wait for its answer. Safe from any thread."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            request = json.dumps({"call": method, **arguments}).encode()
            socket.send_fds(ours, [request], descriptors or [])
            try:
                socket.send_fds(self._control, [b"c"], [theirs.fileno()])
            except OSError as error:
                raise ComponentFailed(f"the namespace has ended: {self._keeper_output() or error}") from error
            theirs.close()
            message = ours.recv(MAX_MESSAGE)
        if not message:
            raise ComponentFailed(f"the namespace has ended: {self._keeper_output()}")
        answer = json.loads(message)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def start(self, name: str, argv: list[str], env: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start a process inside; its output goes to its log file."""
        self._starts[name] = (argv, dict(env))
        self.call(
            "start",
            name=name,
            argv=[str(argument) for argument in argv],
            env=self.environment(env),
            log=str(self.log_path(name)),
            cwd=str(self.folder),
        )

    def run(self, argv: list[str], timeout: float = 30) -> str:
        """Run a command inside to its end and return its output; raises RuntimeError if it fails."""
        name = f"run-{secrets.token_hex(4)}"
        self.start(name, argv)
        code = self.call("wait", name=name, timeout=timeout)
        if code is None:
            self.stop_process(name, signal_number=9)
        output = self.log_path(name).read_text(errors="replace")
        self.log_path(name).unlink()
        if code != 0:
            raise RuntimeError(f"{argv} ended with code {code}: {output}")
        return output

    def restart(self, name: str) -> None:
        """Start a stopped process again as it was started before."""
        self.start(name, *self._starts[name])

    def stop_process(self, name: str, *, signal_number: int = 15, timeout: float = 10) -> int:
        """Signal, wait, and kill what is still there after ``timeout`` seconds; returns the exit code."""
        self.call("signal", name=name, number=signal_number)
        code = self.call("wait", name=name, timeout=timeout)
        if code is None:
            self.call("signal", name=name, number=9)
            code = self.call("wait", name=name, timeout=10)
        return int(code)

    def running(self, name: str) -> bool:
        return name in self._starts and self.call("status", name=name)["returncode"] is None

    def log_path(self, name: str) -> Path:
        return self.log_folder / f"{name}.log"

    def forward(self, host: str, port: int, local_port: int = 0) -> int:
        """Carry connections from 127.0.0.1 out here to ``host:port`` in there; returns the local port."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", local_port))
            listener.listen(512)
            local = int(listener.getsockname()[1])
            self.call("forward", [listener.fileno()], host=host, port=port)
        return local

    def wait_ready(self, name: str, ready: Callable[[], bool], timeout: float) -> None:
        """Poll ``ready`` until it is true. Raises ComponentFailed if the process ends first or time is up."""
        deadline = time.monotonic() + timeout
        while not ready():
            code = self.call("wait", name=name, timeout=0.05)
            if code is not None:
                raise ComponentFailed(f"{name} ended with code {code}:\n{self.log_tail(name)}")
            if time.monotonic() > deadline:
                raise ComponentFailed(f"{name} is not ready after {timeout:.0f} s:\n{self.log_tail(name)}")

    def log_tail(self, name: str, lines: int = 15) -> str:
        try:
            text = self.log_path(name).read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """End everything inside at once and wait until it is gone, folder included."""
        self._control.close()
        try:
            self._keeper.wait(30)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def python() -> str:
    """The interpreter of this environment, for programs of the cluster that are Python."""
    return os.path.abspath(sys.executable)
