"""Answers of models that write their calls in one of two ways: their first brackets tell which."""

from __future__ import annotations

from sheaf_runtime.parsers.events import Event, Parser
from sheaf_runtime.parsers.scanner import BLANKS


class ByBeginning:
    """``json`` reads what begins with ``{`` or ``[{``, ``other`` all else."""

    thinking = False

    def __init__(self, json: Parser, other: Parser) -> None:
        self._json, self._other = json, other
        self._parser: Parser | None = None
        self._rest = ""

    def push(self, text: str) -> list[Event]:
        if self._parser is not None:
            return self._parser.push(text)
        self._rest += text
        begin = self._rest.lstrip(BLANKS)
        inside = begin[1:].lstrip(BLANKS) if begin[:1] == "[" else begin
        if not inside:  # more text tells
            return []
        return self._choose(self._json if inside[0] == "{" else self._other)

    def _choose(self, parser: Parser) -> list[Event]:
        self._parser, text, self._rest = parser, self._rest, ""
        return parser.push(text) if text else []

    def finish(self, *, ended: bool) -> list[Event]:
        events = [] if self._parser is not None else self._choose(self._other)
        assert self._parser is not None
        return [*events, *self._parser.finish(ended=ended)]
