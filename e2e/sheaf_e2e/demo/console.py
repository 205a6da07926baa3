"""How the demo speaks: one line per event, with the seconds since its start."""

from __future__ import annotations

import sys
import time

_DIM, _BOLD, _GREEN, _RED, _OFF = "\033[2m", "\033[1m", "\033[32m", "\033[31m", "\033[0m"


class Console:
    """Plain text with a little colour on a terminal; no cursor movement, so that logs stay readable."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self._colour = sys.stdout.isatty()

    def _style(self, code: str, text: str) -> str:
        return f"{code}{text}{_OFF}" if self._colour else text

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def step(self, title: str) -> None:
        """A chapter of the story."""
        print(f"\n{self._style(_BOLD, f'[{self.elapsed:6.1f} s] {title}')}", flush=True)

    def say(self, text: str) -> None:
        stamp = self._style(_DIM, f"[{self.elapsed:6.1f} s]")
        for line in text.splitlines() or [""]:
            print(f"{stamp}   {line}", flush=True)

    def good(self, text: str) -> None:
        self.say(self._style(_GREEN, "✓ ") + text)

    def bad(self, text: str) -> None:
        self.say(self._style(_RED, "✗ ") + text)

    def stream(self, text: str) -> None:
        """Part of a streamed answer, without a line end."""
        print(text, end="", flush=True)
