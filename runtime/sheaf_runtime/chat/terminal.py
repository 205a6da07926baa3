"""How a conversation looks: text as it comes, thoughts and remarks dim."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

# What a model writes must not steer the terminal: all control characters but tab and line feed.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Screen:
    """``out`` takes the answer and nothing else where it is no terminal; remarks go to stderr then."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.is_terminal = out.isatty()
        self._coloured = (
            self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        )
        self._dim = self._open_line = False

    def thought(self, text: str) -> None:
        if self.is_terminal and text:
            self._write(text, dim=True)

    def text(self, text: str) -> None:
        if not text:
            return
        if self._dim and self._open_line:
            self._write("\n", dim=True)
        self._write(text, dim=False)

    def remark(self, text: str) -> None:
        """One line about the conversation."""
        self.end_line()
        if self.is_terminal:
            self._write(f"[{text}]\n", dim=True)
            self._write("", dim=False)
        else:
            print(f"sheaf chat: {text}", file=sys.stderr)

    def error(self, text: object) -> None:
        self.end_line()
        print(f"sheaf chat: {text}", file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """So that what follows begins at the left."""
        if self._open_line:
            self._write("\n", dim=False)
        elif self._dim:
            self._write("", dim=False)

    def _write(self, text: str, *, dim: bool) -> None:
        if self.is_terminal:
            text = _CONTROLS.sub("", text)
        if dim != self._dim and self._coloured:
            self.out.write(_DIM if dim else _PLAIN)
        self._dim = dim
        if text:
            self._open_line = not text.endswith("\n")
        self.out.write(text)
        self.out.flush()
