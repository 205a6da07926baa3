"""One line that says what is going on: rewritten on a terminal, a new one every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Report = Callable[[str], None]
_EVERY = 10.0


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Progress:
    """``update`` as often as you like; ``done`` closes the line. Elapsed time is added to each.

    Lines go to ``report``; without one to stderr, where a terminal shows a single line that changes.
    """

    def __init__(self, title: str, report: Report | None = None) -> None:
        self._title = title
        self._start = time.monotonic()
        self._last = self._start
        self._report = report or to_stderr
        self._terminal = report is None and sys.stderr.isatty()
        self._detail = "starting"

    def start(self) -> None:
        """Say what begins, for what is silent while it runs."""
        self._last = -_EVERY
        self.update(self._detail)

    def again(self) -> None:
        """The same as before, with the time gone on."""
        self.update(self._detail)

    def update(self, detail: str) -> None:
        self._detail = detail
        now = time.monotonic()
        if self._terminal and now - self._last >= 0.1:
            print(f"\r\x1b[K{self._line(detail)}", end="", file=sys.stderr, flush=True)
            self._last = now
        elif not self._terminal and now - self._last >= _EVERY:
            self._report(self._line(detail))
            self._last = now

    def done(self, detail: str) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr)
        self._report(self._line(detail))

    def _line(self, detail: str) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{self._title}: {detail} ({minutes}:{seconds:02d})"
