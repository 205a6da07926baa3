"""One line that says what is going on: rewritten on a terminal, a new one every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time

_EVERY = 10.0


class Progress:
    """``update`` as often as you like; ``done`` closes the line. Elapsed time is added to each."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._start = time.monotonic()
        self._last = self._start
        self._terminal = sys.stderr.isatty()
        self._detail = "starting"

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
            print(self._line(detail), file=sys.stderr, flush=True)
            self._last = now

    def done(self, detail: str) -> None:
        start = "\r\x1b[K" if self._terminal else ""
        print(f"{start}{self._line(detail)}", file=sys.stderr, flush=True)

    def _line(self, detail: str) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{self._title}: {detail} ({minutes}:{seconds:02d})"
