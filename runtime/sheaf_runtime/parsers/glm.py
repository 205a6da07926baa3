"""GLM's calls, a name and then keys and values in tags::

    <tool_call>read_file
    <arg_key>path</arg_key>
    <arg_value>a.txt</arg_value>
    </tool_call>

Values are text: their types come from the tool's schema. Line breaks between tags may be missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sheaf_runtime.parsers.scanner import BLANKS, CallScanner, find, held
from sheaf_runtime.parsers.typed_value import as_json, is_text, properties_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, END_KEY = "<arg_key>", "</arg_key>"
VALUE, END_VALUE = "<arg_value>", "</arg_value>"
LONGEST_NAME = 256
_NAME = re.compile(r"\s*([^\s<>{}\"]+)\s*")


class Glm(CallScanner):
    """``schemas``: the parameters of each tool."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        super().__init__()
        self._schemas = schemas
        self._step_now = self._in_content
        self._properties: Mapping[str, Any] = {}
        self._num_arguments = 0
        self._schema: Any = None
        self._value: str | None = None  # of an argument that is needed whole

    def _step(self) -> bool:
        return self._step_now()

    def _in_content(self) -> bool:
        at, _ = find(self._rest, (OPEN,))
        found = at >= 0
        if not found:
            at = len(self._rest) - (0 if self._final else held(self._rest, (OPEN,)))
        self._content(self._rest[:at])
        self._rest = self._rest[at:]
        if found:
            self._take_raw(len(OPEN))
            self._step_now = self._in_name
        return found

    def _in_name(self) -> bool:
        """Up to the first tag, which has to be the one of a key or the end."""
        end = self._rest.find("<")
        if end < 0 and len(self._rest) <= LONGEST_NAME:
            return False
        if self._undecided(self._rest[end:], (KEY, CLOSE)):
            return False
        name = _NAME.fullmatch(self._rest, 0, end) if 0 <= end <= LONGEST_NAME else None
        if name is None or not self._rest.startswith((KEY, CLOSE), end):
            raw, self._raw = self._raw, ""
            self._content(raw)
            self._step_now = self._in_content
            return True
        self._rest, self._raw = self._rest[end:], ""
        self._begin(name[1])
        self._properties = properties_of(self._schemas.get(name[1]))
        self._num_arguments, self._step_now = 0, self._between
        return True

    def _between(self) -> bool:
        """Another key, or the end; models forget the closing tag at times."""
        self._rest = self._rest.lstrip(BLANKS)
        if not self._rest or self._undecided(self._rest, (KEY, CLOSE)):
            return False
        if not self._rest.startswith(KEY):
            self._rest = self._rest.removeprefix(CLOSE)
            self._end_call()
            return True
        text = self._rest[len(KEY) :]
        end, begin = text.find(END_KEY), text.find(VALUE)
        if end < 0 or begin < 0:
            return False
        self._rest = text[begin + len(VALUE) :]
        name = text[:end].strip()
        self._arguments(
            ("{" if not self._num_arguments else ", ") + json.dumps(name, ensure_ascii=False) + ": "
        )
        self._num_arguments += 1
        self._schema = self._properties.get(name)
        self._value = None if is_text(self._schema) and self._schema is not None else ""
        if self._value is None:
            self._arguments('"')
        self._step_now = self._in_value
        return True

    def _in_value(self) -> bool:
        end = self._rest.find(END_VALUE)
        found = end >= 0
        if not found:
            end = len(self._rest) - (0 if self._final else held(self._rest, (END_VALUE,)))
        self._give(self._rest[:end])
        self._rest = self._rest[end:]
        if found:
            self._rest = self._rest[len(END_VALUE) :]
            self._close_value()
            self._step_now = self._between
        return found

    def _give(self, text: str) -> None:
        if self._value is None:
            self._arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value += text

    def _close_value(self) -> None:
        self._arguments('"' if self._value is None else as_json(self._value, self._schema))

    def _end_call(self) -> None:
        self._arguments("}" if self._num_arguments else "{}")
        self._step_now = self._in_content

    def _run_out(self, ended: bool) -> None:
        while self._step():
            pass
        if self._step_now == self._in_value:
            if self._value is not None or ended:
                self._close_value()
            if ended:
                self._end_call()
        elif self._step_now == self._between:
            if ended:
                self._end_call()
        else:
            self._content(self._raw + self._rest)
