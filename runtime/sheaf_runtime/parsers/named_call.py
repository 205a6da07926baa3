"""One call written as its name and then its arguments: ``name{...}``, ``name[ARGS]{...}`` (Mistral)."""

from __future__ import annotations

import re

from sheaf_runtime.parsers.json_value import BadJson, JsonValue

LONGEST_NAME = 256
_HEAD = re.compile(r"([\w.:/-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*")
_IN_HEAD = re.compile(r"[\w.:/\[\]-]")


class NamedCall:
    """As ``JsonCall``."""

    def __init__(self) -> None:
        self.done = False
        self.name: str | None = None
        self.at = 0
        self._head = ""
        self._value: JsonValue | None = None

    def push(self, text: str, at: int) -> str:
        """New text of the arguments. Raises ``BadJson``: this is no call."""
        self.at = at
        while self._value is None:
            if self.at == len(text):
                return ""
            self._in_head(text[self.at])
        try:
            piece, self.at = self._value.push(text, self.at)
        except BadJson as error:
            self.at = error.at
            raise
        self.done = self._value.done
        return piece

    def _in_head(self, c: str) -> None:
        if c == "{":
            match = _HEAD.fullmatch(self._head)
            if match is None:
                raise BadJson
            self.name, self._value = match[1], JsonValue()
            return
        blank = c.isspace()
        if not (blank or (_IN_HEAD.match(c) and self._head == self._head.rstrip())):
            raise BadJson
        if len(self._head) == LONGEST_NAME:
            raise BadJson
        self._head += c
        self.at += 1
