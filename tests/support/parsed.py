"""A parser's events folded into what an answer would hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sheaf_runtime.parsers import Arguments, CallBegun, CallBroken, Event, Parser, Text

# ("text", words), ("thought", words) or (name of the called function, arguments)
Parsed = list[tuple[str, str]]


def parse(make: Callable[[], Parser], text: str, cuts: Iterable[int] = (), *, ended: bool = True) -> Parsed:
    """Hands ``text`` over cut at these places."""
    parser, begin = make(), 0
    events: list[Event] = []
    for cut in (*cuts, len(text)):
        events += parser.push(text[begin:cut])
        begin = cut
    return fold([*events, *parser.finish(ended=ended)])


def fold(events: Iterable[Event]) -> Parsed:
    parts: list[tuple[str, str, str]] = []  # kind, name, text
    for event in events:
        if isinstance(event, CallBroken):
            last = max(index for index, part in enumerate(parts) if part[0] == "call")
            del parts[last]
        elif isinstance(event, CallBegun):
            parts.append(("call", event.name, ""))
        elif isinstance(event, Arguments):
            assert parts[-1][0] == "call", "arguments without a call"
            parts[-1] = (*parts[-1][:2], parts[-1][2] + event.text)
        else:
            assert event.text, "an event of nothing"
            parts.append(("text" if isinstance(event, Text) else "thought", "", event.text))
    merged: Parsed = []
    for kind, name, text in parts:
        if kind != "call" and merged and merged[-1][0] == kind:
            merged[-1] = (kind, merged[-1][1] + text)
        else:
            merged.append((name or kind, text))
    return merged
