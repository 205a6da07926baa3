"""Calls with a head, a mark and then JSON: DeepSeek's and Kimi's::

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{"a": 1}
<|tool_call_end|><|tool_calls_section_end|>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from sheaf_runtime.parsers.json_value import BadJson, JsonValue
from sheaf_runtime.parsers.scanner import BLANKS, CallScanner, find, held

LONGEST_HEAD = 512
_FENCE = "```"


@dataclass(frozen=True)
class Heads:
    """``section``: marks around all calls, the first of which may be missing. ``head``: what stands between
    ``begin`` and the arguments, with the name as its group."""

    section: tuple[str, str]
    begin: str
    end: str
    head: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.head)

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.section, self.begin, self.end)


class HeadedCalls(CallScanner):
    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self._heads = heads
        self._step_now = self._in_content
        self._value = JsonValue()
        self._begun = False

    def _step(self) -> bool:
        return self._step_now()

    def _in_content(self) -> bool:
        marks = (self._heads.section[0], self._heads.begin)
        at, mark = find(self._rest, marks)
        found = at >= 0
        if not found:
            at = len(self._rest) - (0 if self._final else held(self._rest, marks))
        self._content(self._rest[:at])
        self._rest = self._rest[at:]
        if found:
            self._take_raw(len(mark))
            self._step_now = self._in_head if mark == self._heads.begin else self._in_section
        return found

    def _in_section(self) -> bool:
        """Behind the section's first mark."""
        text = self._rest.lstrip(BLANKS)
        if not text or self._undecided(text, (self._heads.begin,)):
            return False
        if not text.startswith(self._heads.begin):
            return self._no_call()
        self._take_raw(len(self._rest) - len(text) + len(self._heads.begin))
        self._step_now = self._in_head
        return True

    def _in_head(self) -> bool:
        """Up to the arguments' first brace."""
        end = self._rest.find("{")
        if end < 0 and len(self._rest) <= LONGEST_HEAD:
            return False
        head = self._heads.pattern.fullmatch(self._rest, 0, end) if 0 <= end <= LONGEST_HEAD else None
        if head is None:
            return self._no_call()
        self._take_raw(end)
        self._begin(head[1])
        self._value, self._step_now, self._begun = JsonValue(), self._in_arguments, True
        return True

    def _in_arguments(self) -> bool:
        if not self._rest:
            return False
        try:
            piece, at = self._value.push(self._rest, 0)
        except BadJson as error:
            self._take_raw(error.at)
            raw, self._raw, self._begun = self._raw, "", False
            self._break(raw)
            self._step_now = self._in_content
            return True
        self._take_raw(at)
        self._arguments(piece)
        if self._value.done:
            self._raw, self._begun, self._step_now = "", False, self._after_call
        return True

    def _after_call(self) -> bool:
        """The marks that end a call, or all of them, and another call; all else is content."""
        marks = (_FENCE, self._heads.end, self._heads.section[1], self._heads.begin)
        text = self._rest.lstrip(BLANKS)
        if not text or self._undecided(text, marks):
            return False
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        if mark is None or mark == self._heads.begin:
            self._step_now = self._in_content
        else:
            self._rest = text[len(mark) :]
        return True

    def _no_call(self) -> bool:
        raw, self._raw = self._raw, ""
        self._content(raw)
        self._step_now = self._in_content
        return True

    def _run_out(self, ended: bool) -> None:
        while self._step():
            pass
        if not self._begun:  # what there is of a call that is cut off stays one
            self._content(self._raw + self._rest)
