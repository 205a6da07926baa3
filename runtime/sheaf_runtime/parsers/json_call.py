"""One call written as a JSON object: ``{"name": "f", "arguments": {...}}``, its keys in any order."""

from __future__ import annotations

import json
from collections.abc import Collection

from sheaf_runtime.parsers.json_value import BadJson, JsonValue

ARGUMENT_KEYS = ("arguments", "parameters")
NAME_KEYS = ("name", "tool_name")  # the latter is Cohere's
_BLANKS = " \t\r\n"


class JsonCall:
    """``push`` text until it is ``done``; ``name`` and new arguments come out as they are known.

    With ``names`` only an object that names one of them and has arguments is a call.

    Attributes:
        name: known once the arguments have begun, or the object is done.
        at: how far into the text of the last ``push`` it got.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self.done = False
        self.name: str | None = None
        self.at = 0
        self._names = names
        self._expects = "{"
        self._key: str | None = None  # None while a key is read
        self._value: JsonValue | None = None
        self._text = ""  # of the value, where it is needed whole
        self._read_name: str | None = None
        self._waiting = ""  # arguments that came before the name
        self._has_arguments = self._arguments_done = False

    def push(self, text: str, at: int) -> str:
        """New text of the arguments. Raises ``BadJson``: this is no call."""
        out, self.at = "", at
        try:
            while self.at < len(text) and not self.done:
                if self._value is None:
                    self._between(text[self.at])
                else:
                    out += self._inside(text)
        except BadJson:
            if self.name is None or not self._arguments_done:
                raise
            self.done = True  # a bracket too few or too many behind whole arguments
        if self.done and not self._has_arguments:
            out += "{}"
        return out

    def _between(self, c: str) -> None:
        """One character between keys and values."""
        if c not in _BLANKS:
            if self._expects == "value":
                self._value, self._text = JsonValue(), ""
                return
            if c == '"' and self._expects in ("key", "key or }"):
                self._key, self._value, self._text = None, JsonValue(), ""
                return
            if c == "}" and self._expects in ("key or }", ", or }"):
                self._end()
            elif c == self._expects[0] and c in "{:,":
                self._expects = {"{": "key or }", ":": "value", ",": "key"}[c]
            else:
                raise BadJson
        self.at += 1

    def _inside(self, text: str) -> str:
        """As much of a key or value as there is."""
        assert self._value is not None
        streams = self._key in ARGUMENT_KEYS and (self._text or text[self.at])[0] == "{"
        if streams and not self._text:
            if self._has_arguments:
                raise BadJson
            self._has_arguments = True
        try:
            piece, self.at = self._value.push(text, self.at)
        except BadJson as error:
            self.at = error.at
            raise
        out = ""
        if streams:
            self._text = "{"
            out = self._give(piece)
        else:
            self._text += piece
        if self._value.done:
            self._value = None
            out += self._value_done(streams)
        return out

    def _value_done(self, streamed: bool) -> str:
        if self._key is None:
            self._key, self._expects = json.loads(self._text), ":"
            return ""
        self._expects = ", or }"
        if self._key in NAME_KEYS:
            return self._named(json.loads(self._text))
        if self._key not in ARGUMENT_KEYS:
            return ""
        if streamed:
            self._arguments_done = True
            return ""
        return self._give(self._other_arguments(json.loads(self._text)))

    def _other_arguments(self, value: object) -> str:
        """Arguments that are no object: none at all, or an object written into a string."""
        if self._has_arguments:
            raise BadJson
        self._has_arguments = self._arguments_done = True
        if value in (None, ""):
            return "{}"
        try:
            if isinstance(value, str) and isinstance(json.loads(value), dict):
                return value
        except (ValueError, RecursionError):
            pass
        raise BadJson

    def _named(self, name: object) -> str:
        if not isinstance(name, str) or not name or self._read_name is not None:
            raise BadJson
        if self._names is not None and name not in self._names:
            raise BadJson
        self._read_name = name
        waiting, self._waiting = self._waiting, ""
        return self._give(waiting) if self._has_arguments else ""

    def _give(self, arguments: str) -> str:
        if self._read_name is None:
            self._waiting += arguments
            return ""
        self.name = self._read_name
        return arguments

    def _end(self) -> None:
        if self._read_name is None or (self._names is not None and not self._has_arguments):
            raise BadJson
        self.name, self.done = self._read_name, True
