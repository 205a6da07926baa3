"""Thoughts before the answer, between marks: ``<think>...</think>`` and its relatives."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_runtime.parsers.events import Event, Parser, Thought
from sheaf_runtime.parsers.scanner import BLANKS, find, held


@dataclass(frozen=True)
class Marks:
    """``begins`` and ``ends`` are different wordings of the marks. ``assumed``: models of this family think
    even where neither prompt nor answer says so. ``calls`` begin a tool call, which ends the thoughts too."""

    begins: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    assumed: bool = False
    calls: tuple[str, ...] = ()

    def opened_by(self, prompt: str) -> bool | None:
        """Whether the answer to ``prompt`` begins inside the thoughts, because the template has opened them,
        or behind them, because it has closed them. None: the answer tells."""
        prompt = prompt.rstrip()
        if prompt.endswith(self.begins):
            return True
        return False if prompt.endswith(self.ends) else None


class Thinking:
    """Splits the thoughts off and hands the rest to ``answer``.

    Attributes:
        thinking: whether the text now is a thought.
    """

    def __init__(self, marks: Marks, answer: Parser, *, opened: bool | None) -> None:
        self._marks, self._answer = marks, answer
        self._rest = ""
        self._begun = False
        self.thinking = marks.assumed if opened is None else opened

    def push(self, text: str) -> list[Event]:
        if self._begun and not self.thinking:
            return self._answer.push(text)
        self._rest += text
        return self._run(final=False)

    def finish(self, *, ended: bool) -> list[Event]:
        return [*self._run(final=True), *self._answer.finish(ended=ended)]

    def _run(self, *, final: bool) -> list[Event]:
        if not self._begun and not self._begin(final):
            return []
        if not self.thinking:
            return self._hand_over()
        marks = self._marks
        at, mark = find(self._rest, marks.ends + marks.calls)
        if at < 0:
            at = len(self._rest) - (0 if final else held(self._rest, marks.ends + marks.calls))
        thought, self._rest = self._rest[:at], self._rest[at:]
        events: list[Event] = [Thought(thought)] if thought else []
        if mark:
            self._rest = self._rest.removeprefix(mark) if mark in marks.ends else self._rest
            self.thinking = False
            events += self._hand_over()
        return events

    def _begin(self, final: bool) -> bool:
        """Reads the mark at the very beginning, which may repeat the template's."""
        text = self._rest.lstrip(BLANKS)
        mark = next((mark for mark in self._marks.begins if text.startswith(mark)), None)
        if mark is None and not final and any(mark.startswith(text) for mark in self._marks.begins):
            return False
        self._begun = True
        if mark is not None:
            self.thinking = True
            self._rest = text[len(mark) :]
        return True

    def _hand_over(self) -> list[Event]:
        text, self._rest = self._rest, ""
        return self._answer.push(text) if text else []
