"""Calls written as JSON objects between marks: most families, told apart by a ``Format``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sheaf_runtime.parsers.json_call import JsonCall
from sheaf_runtime.parsers.json_value import BadJson
from sheaf_runtime.parsers.named_call import NamedCall
from sheaf_runtime.parsers.scanner import BLANKS, CallScanner, find, held


@dataclass(frozen=True)
class Format:
    """``opens`` and ``closes`` are marks around calls, or lists of them; closing ones may be missing.
    ``bare``: calls may stand at the very beginning without a mark, and only a known tool's name makes them
    calls then. ``named``: a call may also be written as its name and then its arguments."""

    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    bare: bool = False
    named: bool = False


class JsonCalls(CallScanner):
    def __init__(self, format_: Format, names: Collection[str]) -> None:
        super().__init__()
        self._format = format_
        self._names = names
        self._step_now = self._at_beginning if format_.bare else self._in_content
        self._marked = False  # a mark stood before
        self._in_list = False
        self._call: JsonCall | NamedCall | None = None
        self._begun = False

    def _step(self) -> bool:
        return self._step_now()

    def _at_beginning(self) -> bool:
        text = self._rest.lstrip(BLANKS)
        if not text:
            return False
        self._step_now = self._before_call if text[0] in "{[" else self._in_content
        return True

    def _in_content(self) -> bool:
        at, mark = find(self._rest, self._format.opens)
        found = at >= 0
        if not found:
            at = len(self._rest) - (0 if self._final else held(self._rest, self._format.opens))
        self._content(self._rest[:at])
        self._rest = self._rest[at:]
        if found:
            self._take_raw(len(mark))
            self._marked, self._step_now = True, self._before_call
        return found

    def _before_call(self) -> bool:
        """Behind a mark, a separator or the beginning of a list."""
        self._take_raw(len(self._rest) - len(self._rest.lstrip(BLANKS)))
        text = self._rest
        if not text:
            return False
        if text[0] == "[" and not self._in_list:
            if self._undecided(text, self._format.opens):  # a mark may begin with the same bracket
                return False
            if text.startswith(self._format.opens):
                self._no_call()
            else:
                self._take_raw(1)
                self._in_list = True
            return True
        if text[0] == "{":
            self._call = JsonCall(None if self._marked else self._names)
        elif self._format.named and self._marked and not self._in_list:
            self._call = NamedCall()
        else:
            self._no_call()
            return True
        self._begun, self._step_now = False, self._in_call
        return True

    def _in_call(self) -> bool:
        assert self._call is not None
        call = self._call
        if not self._rest:
            return False
        try:
            arguments = call.push(self._rest, 0)
        except BadJson:
            self._take_raw(call.at)
            self._no_call(begun=self._begun)
            return True
        self._take_raw(call.at)
        if call.name is not None:
            if not self._begun:
                self._begun = True
                self._begin(call.name)
            self._arguments(arguments)
        if call.done:
            self._raw, self._step_now = "", self._after_call
        return True

    def _after_call(self) -> bool:
        """Another call, the end of the list or a closing mark; all else is content."""
        text = self._rest.lstrip(BLANKS)
        marks = (*self._format.closes, *self._format.opens)
        if not text or self._undecided(text, marks):
            return False
        if self._in_list and text[0] in ",]":
            self._in_list = text[0] == ","
            self._rest = text[1:]
            if self._in_list:
                self._step_now = self._before_call
        elif not self._in_list and text[0] in "{;" and not text.startswith(marks):
            self._separated()
            return bool(self._rest) and self._step_now != self._after_call
        else:
            # A bracket too many is a slip of the model's, if the mark follows it.
            behind = text.lstrip(BLANKS + "}")
            if self._undecided(behind, self._format.closes):
                return False
            close = next((mark for mark in self._format.closes if behind.startswith(mark)), "")
            if close:
                self._rest = behind[len(close) :]
            self._in_list = self._marked = False
            self._step_now = self._in_content
        return True

    def _separated(self) -> None:
        """A call may follow at once, or behind a semicolon (Llama)."""
        text = self._rest.lstrip(BLANKS + ";")
        if text[:1] == "{":
            self._take_raw(len(self._rest) - len(text))
            self._step_now = self._before_call
        elif text:
            self._step_now = self._in_content

    def _no_call(self, *, begun: bool = False) -> None:
        raw, self._raw = self._raw, ""
        if begun:
            self._break(raw)
        else:
            self._content(raw)
        self._marked = self._in_list = False
        self._step_now = self._in_content

    def _run_out(self, ended: bool) -> None:
        while self._step():
            pass
        if self._step_now == self._in_call and self._begun:
            return  # cut off: what there is of it stays a call
        self._content(self._raw + self._rest)
