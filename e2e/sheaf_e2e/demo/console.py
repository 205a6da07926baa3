"""How the demo speaks: one line per event, with the seconds since its start."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

_DIM, _BOLD, _GREEN, _RED, _OFF = "\033[2m", "\033[1m", "\033[32m", "\033[31m", "\033[0m"
_QUIET_SECONDS = 20.0


class Console:
    """Plain text with a little colour on a terminal; no cursor movement, so that logs stay readable.

    As a context manager it says what is being waited for whenever nothing was said for ``quiet`` seconds.
    """

    def __init__(self, quiet: float = _QUIET_SECONDS) -> None:
        self.start = time.monotonic()
        self._colour = sys.stdout.isatty()
        self._quiet = quiet
        self._spoke = self.start
        self._doing = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._speaker = threading.Thread(target=self._keep_speaking, daemon=True)

    def _style(self, code: str, text: str) -> str:
        return f"{code}{text}{_OFF}" if self._colour else text

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def _print(self, text: str, end: str = "\n") -> None:
        with self._lock:
            print(text, end=end, flush=True)
            self._spoke = time.monotonic()

    def step(self, title: str) -> None:
        """A chapter of the story."""
        self._doing = title
        self._print(f"\n{self._style(_BOLD, f'[{self.elapsed:6.1f} s] {title}')}")

    def say(self, text: str) -> None:
        stamp = self._style(_DIM, f"[{self.elapsed:6.1f} s]")
        for line in text.splitlines() or [""]:
            self._print(f"{stamp}   {line}")

    def good(self, text: str) -> None:
        self.say(self._style(_GREEN, "✓ ") + text)

    def bad(self, text: str) -> None:
        self.say(self._style(_RED, "✗ ") + text)

    def stream(self, text: str) -> None:
        """Part of a streamed answer, without a line end."""
        self._print(text, end="")

    def __enter__(self) -> Console:
        self._speaker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._speaker.join()  # a thread that prints while the interpreter ends aborts it

    def _keep_speaking(self) -> None:
        while not self._ended.wait(max(0.1, self._spoke + self._quiet - time.monotonic())):
            if time.monotonic() - self._spoke >= self._quiet:
                self.say(f"still at it: {self._doing}")
