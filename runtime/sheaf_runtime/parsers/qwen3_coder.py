"""Qwen3-Coder's calls in XML's clothes, each argument between tags of its own::

    <tool_call>
    <function=read_file>
    <parameter=path>
    a.txt
    </parameter>
    </function>
    </tool_call>

Arguments are text there: their types come from the tool's schema. Values are not escaped, so a tag ends one
only where another tag follows; closing tags, and the outermost one, are forgotten by models at times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sheaf_runtime.parsers.scanner import BLANKS, CallScanner, find, held
from sheaf_runtime.parsers.typed_value import as_json, is_text, properties_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
LONGEST_NAME = 256
_NAME = re.compile(r"[^<>\s]+")
# What may stand behind the tag that ends a value, beside the end of the text.
_BEHIND = {
    END_PARAMETER: (PARAMETER, END_PARAMETER, END_FUNCTION, CLOSE),
    END_FUNCTION: (CLOSE, OPEN, FUNCTION),
    PARAMETER: (),
}


class Qwen3Coder(CallScanner):
    """``schemas``: the parameters of each tool."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        super().__init__()
        self._schemas = schemas
        self._step_now = self._in_content
        self._properties: Mapping[str, Any] = {}
        self._num_parameters = 0
        self._schema: Any = None
        self._value: str | None = None  # of a parameter that is needed whole
        self._at_start = False

    def _step(self) -> bool:
        return self._step_now()

    def _in_content(self) -> bool:
        marks = (OPEN, FUNCTION)
        at, mark = find(self._rest, marks)
        found = at >= 0
        if not found:
            at = len(self._rest) - (0 if self._final else held(self._rest, marks))
        self._content(self._rest[:at])
        self._rest = self._rest[at:]
        if mark == OPEN:
            self._take_raw(len(OPEN))
        if found:
            self._step_now = self._before_function
        return found

    def _before_function(self) -> bool:
        blanks = len(self._rest) - len(self._rest.lstrip(BLANKS))
        name, size, known = self._head(FUNCTION, blanks)
        if not known:
            return False
        self._take_raw(blanks + size)
        if name is None:
            return self._no_call()
        self._raw = ""
        self._begin(name)
        self._properties = properties_of(self._schemas.get(name))
        self._num_parameters = 0
        self._step_now = self._in_function
        return True

    def _in_function(self) -> bool:
        """Between the parameters."""
        self._rest = self._rest.lstrip(BLANKS)
        if not self._rest or self._undecided(self._rest, (PARAMETER, END_PARAMETER, END_FUNCTION, CLOSE)):
            return False
        if self._rest.startswith(END_PARAMETER):  # once too often
            self._rest = self._rest[len(END_PARAMETER) :]
            return True
        if not self._rest.startswith(PARAMETER):
            return self._end_call()
        name, size, known = self._head(PARAMETER, 0)
        if not known:
            return False
        self._rest = self._rest[size:]
        if name is None:  # a tag that names nothing: nothing to call it by
            return True
        self._arguments(
            ("{" if not self._num_parameters else ", ") + json.dumps(name, ensure_ascii=False) + ": "
        )
        self._num_parameters += 1
        self._schema = self._properties.get(name)
        self._value = None if is_text(self._schema) else ""
        if self._value is None:
            self._arguments('"')
        self._at_start, self._step_now = True, self._in_value
        return True

    def _in_value(self) -> bool:
        if self._at_start:
            if not self._rest:
                return False
            self._at_start = False
            self._rest = self._rest.removeprefix("\n")
        end, tag = self._end_of_value()
        if tag is None:
            # The last line break belongs to the tag that may follow.
            end -= self._rest[:end].endswith("\n")
            self._give(self._rest[:end])
            self._rest = self._rest[end:]
            return False
        self._give(self._rest[:end].removesuffix("\n"))
        self._rest = self._rest[end:]
        if tag == END_PARAMETER:
            self._rest = self._rest[len(END_PARAMETER) :]
        self._close_value()
        self._step_now = self._in_function
        return True

    def _end_of_value(self) -> tuple[int, str | None]:
        """Where the value ends and by which tag; without one, where what is surely its text ends."""
        text, at = self._rest, 0
        while True:
            at, tag = find(text, _BEHIND, at)
            if at < 0:
                return len(text) - (0 if self._final else held(text, _BEHIND)), None
            ends = self._ends_here(tag, text[at + len(tag) :])
            if ends is None:
                return at, None
            if ends:
                return at, tag
            at += len(tag)

    def _ends_here(self, tag: str, behind: str) -> bool | None:
        """Whether a tag with this text ``behind`` it ends the value; None: more text tells."""
        if tag == PARAMETER:
            name = _NAME.match(behind)
            end = name.end() if name else 0
            if end == len(behind) and not self._final:
                return None
            return name is not None and behind[end : end + 1] == ">"
        behind = behind.lstrip(BLANKS)
        if behind and not self._undecided(behind, _BEHIND[tag]):
            return behind.startswith(_BEHIND[tag])
        return True if self._final else None

    def _give(self, text: str) -> None:
        if self._value is None:
            self._arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value += text

    def _close_value(self) -> None:
        if self._value is None:
            self._arguments('"')
        else:
            self._arguments(as_json(self._value, self._schema))

    def _end_call(self) -> bool:
        self._arguments("}" if self._num_parameters else "{}")
        for tag in (END_FUNCTION, CLOSE):
            self._rest = (
                self._rest.lstrip(BLANKS) if self._rest.lstrip(BLANKS).startswith(tag) else self._rest
            )
            self._rest = self._rest.removeprefix(tag)
        self._step_now = self._after_call
        return True

    def _after_call(self) -> bool:
        text = self._rest.lstrip(BLANKS)
        if not text or self._undecided(text, (END_FUNCTION, CLOSE)):
            return False
        for tag in (END_FUNCTION, CLOSE):
            if text.startswith(tag):
                self._rest = text[len(tag) :]
                return True
        self._step_now = self._in_content
        return True

    def _head(self, tag: str, at: int) -> tuple[str | None, int, bool]:
        """The name in an opening tag (None: it is no such tag), the size of the tag, and whether that is
        known yet."""
        text = self._rest[at:]
        if not text or self._undecided(text, (tag,)):
            return None, 0, self._final
        if not text.startswith(tag):
            return None, 0, True
        name = _NAME.match(text, len(tag))
        end = name.end() if name else len(tag)
        if end == len(text) and not self._final and end < LONGEST_NAME:
            return None, 0, False
        if name is None or text[end : end + 1] != ">":
            return None, len(tag), True
        return name[0], end + 1, True

    def _no_call(self) -> bool:
        raw, self._raw = self._raw, ""
        self._content(raw)
        self._step_now = self._in_content
        return True

    def _run_out(self, ended: bool) -> None:
        while self._step():
            pass
        if self._step_now == self._in_value:
            self._give(self._rest)
            if self._value is not None or ended:
                self._close_value()
            if ended:
                self._arguments("}")
        elif self._step_now == self._in_function:
            if ended:
                self._end_call()
        else:
            self._content(self._raw + self._rest)
