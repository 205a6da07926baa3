"""One JSON value in a stream of text: where it ends, and whether it still is JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

DEEPEST = 256
_BLANKS = " \t\r\n"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_WORDS = ("true", "false", "null")


class BadJson(ValueError):
    """The text cannot be continued to JSON. ``at`` is the index of the first character that is wrong."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at = at


class JsonValue:
    """``push`` text until it is ``done``.

    What models get wrong in strings is mended: line breaks written as such, and backslashes that escape
    nothing, are escaped.
    """

    def __init__(self) -> None:
        self.done = False
        self._follow: Callable[[str], str | None] = self._value
        self._inside: list[str] = []  # the brackets that are open
        self._atom = ""
        self._is_key = False
        self._hex_left = 0

    def push(self, text: str, at: int = 0) -> tuple[str, int]:
        """What of ``text`` from ``at`` on belongs to the value, and where that ends. Raises ``BadJson``."""
        taken = []
        while at < len(text) and not self.done:
            if self._follow == self._string and (plain := _PLAIN.match(text, at)):
                taken.append(plain[0])
                at = plain.end()
                continue
            try:
                kept = self._follow(text[at])
            except BadJson as error:
                raise BadJson(at) from error
            if kept is None:  # a number: only the character behind it ends it
                break
            taken.append(kept)
            at += 1
        return "".join(taken), at

    def finish(self) -> None:
        """No text follows: a number is done."""
        if self._follow == self._in_atom and not self._inside and _is_atom(self._atom):
            self.done = True

    # Each state takes one character and gives what is kept of it; None if it belongs to what follows.

    def _value(self, c: str, *, first: bool = False) -> str | None:
        if c in _BLANKS:
            return c
        if c == '"':
            self._is_key, self._follow = False, self._string
        elif c in "{[":
            if len(self._inside) == DEEPEST:
                raise BadJson
            self._inside.append(c)
            self._follow = self._first_key if c == "{" else self._first_item
        elif c == "]" and first:
            self._leave()
        elif c in "-0123456789tfn":
            self._atom, self._follow = c, self._in_atom
        else:
            raise BadJson
        return c

    def _first_item(self, c: str) -> str | None:
        return self._value(c, first=True)

    def _key(self, c: str, *, first: bool = False) -> str | None:
        if c == '"':
            self._is_key, self._follow = True, self._string
        elif c == "}" and first:
            self._leave()
        elif c not in _BLANKS:
            raise BadJson
        return c

    def _first_key(self, c: str) -> str | None:
        return self._key(c, first=True)

    def _colon(self, c: str) -> str | None:
        if c == ":":
            self._follow = self._value
        elif c not in _BLANKS:
            raise BadJson
        return c

    def _next(self, c: str) -> str | None:
        if c == ",":
            self._follow = self._key if self._inside[-1] == "{" else self._value
        elif c == ("}" if self._inside[-1] == "{" else "]"):
            self._leave()
        elif c not in _BLANKS:
            raise BadJson
        return c

    def _string(self, c: str) -> str | None:
        if c == "\\":
            self._follow = self._escape
            return ""  # comes with the character that it escapes
        if c < " ":
            return json.dumps(c)[1:-1]
        if self._is_key:
            self._follow = self._colon
        else:
            self._end()
        return c

    def _escape(self, c: str) -> str | None:
        self._follow = self._string
        if c == "u":
            self._hex_left, self._follow = 4, self._hex
        elif c not in '"\\/bfnrt':
            return "\\\\" + (json.dumps(c)[1:-1] if c < " " else c)
        return "\\" + c

    def _hex(self, c: str) -> str | None:
        if c not in "0123456789abcdefABCDEF":
            raise BadJson
        self._hex_left -= 1
        if not self._hex_left:
            self._follow = self._string
        return c

    def _in_atom(self, c: str) -> str | None:
        if c.isalnum() or c in "+-.":
            self._atom += c
            if not (self._atom[0] in "-0123456789" or any(w.startswith(self._atom) for w in _WORDS)):
                raise BadJson
            return c
        if not _is_atom(self._atom):
            raise BadJson
        self._end()
        return None if self.done else self._follow(c)

    def _leave(self) -> None:
        self._inside.pop()
        self._end()

    def _end(self) -> None:
        self._follow = self._next
        self.done = not self._inside


def _is_atom(text: str) -> bool:
    return text in _WORDS or _NUMBER.fullmatch(text) is not None
