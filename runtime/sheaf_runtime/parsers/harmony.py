"""gpt-oss's messages in channels::

    <|channel|>analysis<|message|>thoughts<|end|><|start|>assistant<|channel|>commentary to=functions.f
    <|constrain|>json<|message|>{"a": 1}<|call|>

The analysis channel holds thoughts, a message to ``functions.NAME`` is a call whatever its channel, and all
else (final, the preambles in commentary) is content. The prompt ends with ``<|start|>assistant``.
"""

from __future__ import annotations

import re

from sheaf_runtime.parsers.events import Arguments, CallBegun, Event, Text, Thought
from sheaf_runtime.parsers.scanner import find, held

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
ENDS = (END, "<|call|>", "<|return|>")
CONSTRAIN = "<|constrain|>"
MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_HEADER = re.compile(
    r"\s*(<\|start\|>\w*)?\s*(to=\S*)?\s*(<\|channel\|>\s*\w*)?\s*(to=[^\s<]*)?\s*(<\|constrain\|>\s*\w*)?\s*"
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class Harmony:
    """``with_calls`` is false where the request offers no tools: what a model says to one is content then.

    Attributes:
        thinking: whether the text now is a thought.
    """

    def __init__(self, *, with_calls: bool) -> None:
        self._with_calls = with_calls
        self._rest = ""
        self._final = False
        self._in_header = True
        self._kind: type[Thought] | type[Text] | type[Arguments] = Text
        self._has_body = False
        self._events: list[Event] = []

    @property
    def thinking(self) -> bool:
        return not self._in_header and self._kind is Thought

    def push(self, text: str) -> list[Event]:
        self._rest += text
        while self._header() if self._in_header else self._body():
            pass
        events, self._events = self._events, []
        return events

    def finish(self, *, ended: bool) -> list[Event]:
        self._final = True
        events = self.push("")
        if not self._in_header:
            events += self._end_body()
        return events

    def _header(self) -> bool:
        text = self._rest
        if not text:
            return False
        opening = text.lstrip()
        if not opening.startswith((CHANNEL, START, "to=", *ENDS)):
            undecided = any(mark.startswith(opening) for mark in (CHANNEL, START, "to=", *ENDS))
            if undecided and not self._final:
                return False
            return self._begin_body(Text)  # no header at all: the text itself
        end = text.find(MESSAGE)
        if end < 0:
            if self._final:  # cut off inside a header, or it never was one
                header = _HEADER.match(text)
                assert header is not None
                self._content(text[header.end() :])
            return False
        head, self._rest = text[:end], text[end + len(MESSAGE) :]
        return self._begin_message(head)

    def _content(self, text: str) -> None:
        self._rest = ""
        if text:
            self._events.append(Text(text))

    def _begin_message(self, head: str) -> bool:
        recipient, channel = _RECIPIENT.search(head), _CHANNEL.search(head)
        if recipient and self._with_calls:
            self._events.append(CallBegun(recipient[1].removeprefix("functions.")))
            return self._begin_body(Arguments)
        analysis = channel is not None and channel[1] == "analysis"
        return self._begin_body(Thought if analysis else Text)

    def _begin_body(self, kind: type[Thought] | type[Text] | type[Arguments]) -> bool:
        self._kind, self._in_header, self._has_body = kind, False, False
        return True

    def _body(self) -> bool:
        marks = (*ENDS, START, CHANNEL)
        at, mark = find(self._rest, marks)
        found = at >= 0
        if not found:
            at = len(self._rest) - (0 if self._final else held(self._rest, marks))
        if self._rest[:at]:
            self._has_body = True
            self._events.append(self._kind(self._rest[:at]))
        self._rest = self._rest[at:]
        if found:
            self._events += self._end_body()
            self._rest = self._rest.removeprefix(mark) if mark in ENDS else self._rest
            self._in_header = True
        return found

    def _end_body(self) -> list[Event]:
        return [Arguments("{}")] if self._kind is Arguments and not self._has_body else []
