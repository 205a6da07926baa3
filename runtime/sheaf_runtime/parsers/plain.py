"""Answers without calls."""

from __future__ import annotations

from sheaf_runtime.parsers.events import Event, Text


class Plain:
    """All of it is content."""

    thinking = False

    def push(self, text: str) -> list[Event]:
        return [Text(text)] if text else []

    def finish(self, *, ended: bool) -> list[Event]:
        return []
