"""Answers without calls, and answers that are the arguments of one call."""

from __future__ import annotations

from sheaf_runtime.parsers.events import Arguments, CallBegun, Event, Text


class Plain:
    """All of it is content."""

    thinking = False

    def push(self, text: str) -> list[Event]:
        return [Text(text)] if text else []

    def finish(self, *, ended: bool) -> list[Event]:
        return []


class OnlyArguments:
    """The call is known beforehand (``tool_choice`` names it): all of the text is its arguments."""

    thinking = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def push(self, text: str) -> list[Event]:
        if not self._begun:
            text = text.lstrip()
        if not text:
            return []
        events: list[Event] = [] if self._begun else [CallBegun(self._name)]
        self._begun = True
        return [*events, Arguments(text)]

    def finish(self, *, ended: bool) -> list[Event]:
        return []
