"""What one choice of a chat has said, put together from the events of its reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from sheaf_runtime.parsers import Arguments, CallBegun, CallBroken, Event, Text


class Call(msgspec.Struct):
    id: str
    name: str
    arguments: str


class Said:
    def __init__(self, new_call_id: Callable[[], str]) -> None:
        self._new_call_id = new_call_id
        self.thoughts = ""
        self.content = ""
        self.calls: list[Call] = []

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, CallBegun):
                self.calls.append(Call(self._new_call_id(), event.name, ""))
            elif isinstance(event, Arguments):
                self.calls[-1].arguments += event.text
            elif isinstance(event, CallBroken):
                self.calls.pop()
            elif isinstance(event, Text):
                self.content += event.text
            else:
                self.thoughts += event.text
