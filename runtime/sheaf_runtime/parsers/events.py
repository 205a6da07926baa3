"""What a parser finds in a model's text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Text(NamedTuple):
    """Content: the answer itself."""

    text: str


class Thought(NamedTuple):
    """Reasoning before the answer."""

    text: str


class CallBegun(NamedTuple):
    """A tool call; its arguments follow until another event comes."""

    name: str


class Arguments(NamedTuple):
    """A piece of the arguments, as JSON text, of the call begun last."""

    text: str


class CallBroken(NamedTuple):
    """The call begun last turned out to be none. All of its text follows as content."""


Event = Text | Thought | CallBegun | Arguments | CallBroken


def joined(events: Iterable[Event]) -> list[Event]:
    """The same in as few events as possible."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(last, Text | Thought | Arguments) and type(event) is type(last):
            found[-1] = type(last)(last.text + event.text)
        else:
            found.append(event)
    return found


class Parser(Protocol):
    """One answer's parser. How the text is cut into pieces makes no difference to what comes out."""

    @property
    def thinking(self) -> bool:
        """Whether the text now is a thought."""
        ...

    def push(self, text: str) -> list[Event]: ...

    def finish(self, *, ended: bool) -> list[Event]:
        """What was held back. ``ended``: the model came to its end by itself and was not cut off."""
        ...
