"""What the parsers of tool calls share: text that waits for more, and blanks around calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from sheaf_runtime.parsers.events import Arguments, CallBegun, CallBroken, Event, Text

BLANKS = " \t\r\n"


def find(text: str, marks: Iterable[str], at: int = 0) -> tuple[int, str]:
    """Where the first of ``marks`` begins in ``text`` and which; ``(-1, "")`` if there is none."""
    found = [(index, -len(mark), mark) for mark in marks if (index := text.find(mark, at)) >= 0]
    return (min(found)[0], min(found)[2]) if found else (-1, "")


def held(text: str, marks: Iterable[str], at: int = 0) -> int:
    """Length of the longest end of ``text`` from ``at`` on that could still become one of ``marks``."""
    longest = 0
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text) - at), longest, -1):
            if text.endswith(mark[:size]):
                longest = size
                break
    return longest


class CallScanner(ABC):
    """Base of the parsers: ``_step`` looks at ``_rest`` and moves on, or says that it needs more text.

    Blanks alone, before the first call, between calls or behind the last one, are no content.
    """

    thinking = False

    def __init__(self) -> None:
        self._rest = ""  # not decided yet
        self._raw = ""  # what is content if no call comes of it
        self._final = False
        self._events: list[Event] = []
        self._blanks = ""
        self._has_words = False  # since the beginning or the last call
        self._blanks_before = ("", False)
        self._num_calls = 0

    def push(self, text: str) -> list[Event]:
        self._rest += text
        return self._run()

    def finish(self, *, ended: bool) -> list[Event]:
        self._final = True
        self._run_out(ended)
        if not self._num_calls and self._blanks:
            self._events.append(Text(self._blanks))
        return self._take_events()

    def _run(self) -> list[Event]:
        while self._step():
            pass
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    @abstractmethod
    def _step(self) -> bool:
        """One move. False: only more text (or its end, if not ``_final``) decides."""

    @abstractmethod
    def _run_out(self, ended: bool) -> None:
        """No more text comes: decides about ``_rest``."""

    def _undecided(self, text: str, marks: Iterable[str]) -> bool:
        """Whether ``text`` may yet become one of ``marks``."""
        return not self._final and any(mark != text and mark.startswith(text) for mark in marks)

    def _take_raw(self, size: int) -> None:
        self._raw += self._rest[:size]
        self._rest = self._rest[size:]

    def _content(self, text: str) -> None:
        if not self._has_words:
            self._blanks += text
            if not self._blanks or self._blanks.isspace():
                return
            text, self._blanks, self._has_words = self._blanks, "", True
        if text:
            self._events.append(Text(text))

    def _begin(self, name: str) -> None:
        self._blanks_before = (self._blanks, self._has_words)
        self._blanks, self._has_words = "", False
        self._num_calls += 1
        self._events.append(CallBegun(name))

    def _arguments(self, text: str) -> None:
        if text:
            self._events.append(Arguments(text))

    def _break(self, raw: str) -> None:
        self._num_calls -= 1
        self._blanks, self._has_words = self._blanks_before
        self._events.append(CallBroken())
        self._content(raw)
