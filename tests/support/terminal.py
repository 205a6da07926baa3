"""A command on a pseudo-terminal: what a person types and sees."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator

LIMIT = 60.0  # seconds


class Terminal:
    """``seen`` is everything that came so far, with line ends as ``\\n``."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process, self._master = process, master
        self._raw = b""
        self._read_to = 0

    @property
    def seen(self) -> str:
        return self._raw.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Waits until ``text`` comes, behind what an earlier call has waited for; what came up to its end."""
        deadline = time.monotonic() + LIMIT
        while (at := self.seen.find(text, self._read_to)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[self._read_to :]!r}"
            self._more()
        begin, self._read_to = self._read_to, at + len(text)
        return self.seen[begin : self._read_to]

    def insist(self, key: str, text: str) -> None:
        """Types ``key``, and again each second until ``text`` comes: a signal that arrives between a prompt
        and the read behind it waits for the next one."""
        begin, typed = time.monotonic(), 0
        while (at := self.seen.find(text, self._read_to)) < 0:
            passed = time.monotonic() - begin
            assert passed < LIMIT, f"no {text!r} in {self.seen[self._read_to :][:2000]!r}"
            if passed >= typed:
                self.type(key)
                typed += 1
            self._more()
        self._read_to = at + len(text)

    def wait_exit(self) -> int:
        deadline = time.monotonic() + LIMIT
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self._more()
        return self.process.returncode

    def _more(self) -> None:
        ready, _, _ = select.select([self._master], [], [], 0.05)
        if ready:
            self._raw += os.read(self._master, 65536)


@contextlib.contextmanager
def on_terminal(*command: str) -> Iterator[Terminal]:
    """Runs ``sheaf command`` with a terminal of its own, so that Ctrl-C reaches it as from a keyboard."""
    master, slave = pty.openpty()
    # The first terminal that the leader of a session opens is the session's own.
    opened = ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(slave)]
    process = subprocess.Popen(
        [*opened, sys.executable, "-m", "sheaf_runtime", *command],
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "INPUTRC": "/dev/null"},
    )
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
