"""Calls written as Python's: ``[weather(city="Paris", days=2), now()]`` (Llama 4, ToolACE), or one a line
between marks (OLMo 3). A call comes out once it is whole; one that is cut off is content."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sheaf_runtime.parsers.scanner import BLANKS, CallScanner, find, held

LONGEST_NAME = 256
DEEPEST = 64
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_CLOSES = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Style:
    """``opens`` and ``closes`` are marks around the calls. ``bare``: a list of calls of known tools may stand
    at the very beginning without a mark."""

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    bare: bool = True


class Pythonic(CallScanner):
    def __init__(self, style: Style, names: Collection[str]) -> None:
        super().__init__()
        self._style, self._names = style, names
        self._step_now = self._at_beginning if style.bare else self._in_content
        self._marked = self._in_list = False
        self._brackets = _Brackets()

    def _step(self) -> bool:
        return self._step_now()

    def _at_beginning(self) -> bool:
        text = self._rest.lstrip(BLANKS)
        if not text:
            return False
        self._step_now = self._before_call if text[0] == "[" else self._in_content
        return True

    def _in_content(self) -> bool:
        at, mark = find(self._rest, self._style.opens)
        found = at >= 0
        if not found:
            at = len(self._rest) - (0 if self._final else held(self._rest, self._style.opens))
        self._content(self._rest[:at])
        self._rest = self._rest[at:]
        if found:
            self._take_raw(len(mark))
            self._marked, self._step_now = True, self._before_call
        return found

    def _before_call(self) -> bool:
        self._take_raw(len(self._rest) - len(self._rest.lstrip(BLANKS)))
        if not self._rest:
            return False
        if self._rest[0] == "[" and not self._in_list:
            self._take_raw(1)
            self._in_list = True
            return True
        if self._rest[0] == "]" and self._in_list and "[" not in self._raw:  # behind a last comma
            self._raw, self._rest, self._in_list = "", self._rest[1:], False
            self._step_now = self._after_call
            return True
        name = _NAME.match(self._rest)
        end = name.end() if name else 0
        if name is not None and end == len(self._rest) and end <= LONGEST_NAME:
            return False
        known = name is not None and (self._marked or name[0] in self._names)
        if not known or self._rest[end : end + 1] != "(":
            return self._no_call()
        self._brackets, self._step_now = _Brackets(), self._in_call
        return True

    def _in_call(self) -> bool:
        end = self._brackets.end(self._rest)
        if end == 0:
            return False
        call = None if end < 0 else _read(self._rest[:end])
        if call is None:
            return self._no_call()
        self._rest, self._raw = self._rest[end:], ""
        self._begin(call[0])
        self._arguments(call[1])
        self._step_now = self._after_call
        return True

    def _after_call(self) -> bool:
        """Another call, the end of the list, or a closing mark; all else is content."""
        text = self._rest.lstrip(BLANKS + ("" if self._in_list else ";"))
        marks = self._style.closes
        if not text or self._undecided(text, marks):
            return False
        if self._in_list and text[0] in ",]":
            self._in_list = text[0] == ","
            self._rest = text[1:]
            if self._in_list:
                self._step_now = self._before_call
            return True
        close = next((mark for mark in marks if text.startswith(mark)), None)
        if close is not None:
            self._rest = text[len(close) :]
        elif self._marked and not self._in_list and _NAME.match(text):
            self._rest, self._step_now = text, self._before_call
            return True
        self._marked = self._in_list = False
        self._step_now = self._in_content
        return True

    def _no_call(self) -> bool:
        raw, self._raw = self._raw, ""
        self._content(raw)
        self._marked = self._in_list = False
        self._step_now = self._in_content
        return True

    def _run_out(self, ended: bool) -> None:
        while self._step():
            pass
        self._content(self._raw + self._rest)


class _Brackets:
    """Finds the end of a call in a text that grows."""

    def __init__(self) -> None:
        self._inside: list[str] = []
        self._quote, self._at = "", 0

    def end(self, text: str) -> int:
        """Behind the bracket that closes the call; 0: more text tells; -1: it is none."""
        while self._at < len(text):
            c, three = text[self._at], text[self._at : self._at + 3]
            size = 1
            if self._quote:
                if c == "\\":
                    size = 2
                elif c == self._quote[0] and len(three) < len(self._quote):
                    return 0
                elif three.startswith(self._quote):
                    size, self._quote = len(self._quote), ""
            elif c in "\"'":  # three of them begin a text of lines, two are one that is empty
                if len(three) < 3:
                    return 0
                self._quote = c * 3 if three == c * 3 else c
                size = len(self._quote)
            elif c in _CLOSES:
                self._inside.append(_CLOSES[c])
                if len(self._inside) > DEEPEST:
                    return -1
            elif c in ")]}":
                if not self._inside or self._inside.pop() != c:
                    return -1
                if not self._inside:
                    return self._at + 1
            self._at += size
        return 0


def _read(text: str) -> tuple[str, str] | None:
    """Name and arguments (JSON) of one call, which has keywords alone; None: it is none."""
    name, _, rest = text.partition("(")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in what a model wrote
            call = ast.parse(f"_({rest}", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            return None
        arguments = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
        return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_key(key): _value(value) for key, value in pairs}
    return ast.literal_eval(node)


def _key(node: ast.expr | None) -> str:
    key = None if node is None else ast.literal_eval(node)
    if not isinstance(key, str):
        raise ValueError
    return key
