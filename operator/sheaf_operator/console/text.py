"""The view as lines of text. Pure: width and colours are given."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sheaf_operator.console.view import Pod, View

BAR = 20
DECISIONS = 5
COLOURS = {"good": "32", "busy": "33", "bad": "31", "faint": "2"}
GOOD_WHEN_FALSE = ("Stalled",)
LONGEST = 300  # characters of one message


def render(view: View, width: int, coloured: bool) -> list[str]:
    paint = _colour if coloured else _plain
    return [line.rstrip() for line in _lines(view, width, paint)]


def fitted(lines: list[str], height: int) -> list[str]:
    """What of the lines a terminal of this height shows without scrolling."""
    if len(lines) < height:
        return lines
    shown = max(1, height - 2)
    return [*lines[:shown], f"... and {len(lines) - shown} lines; --once shows them all"]


def _lines(view: View, width: int, paint: Any) -> Iterator[str]:
    conditions = {c["type"]: c for c in view.conditions}
    ready = conditions.get("Ready", {})
    good = ready.get("status") == "True"
    head = f"{view.namespace}/{view.name}"
    yield f"{head}  {paint('good' if good else 'bad', ready.get('reason') or 'no status')}"
    for note in view.notes:
        yield from _wrapped(f"  {clean(note)}", width, paint, "busy")
    for label, value in (("url", view.url), ("image", view.image), ("revision", view.revision)):
        if value:
            yield f"  {label:<9} {clean(value)}"
    yield f"  {'replicas':<9} {_replicas(view)}"
    yield from _pods(view.pods, width, paint)
    if view.decisions:
        yield ""
        yield paint("faint", "LAST DECISIONS")
        for decision in islice(view.decisions, DECISIONS):
            change = f"{decision['from']} → {decision['to']}"
            yield from _wrapped(
                f"  {_clock(decision['time'])}  {change:<7} {clean(decision['reason'])}", width
            )
    if view.conditions:
        yield ""
        yield paint("faint", "CONDITIONS")
        for condition in view.conditions:
            yield from _condition(condition, width, paint)
    if view.timeline and not good:
        yield ""
        steps = ", ".join(f"{phase['phase']} {phase['seconds']} s" for phase in view.timeline)
        yield from _wrapped(f"  so far: {clean(steps)}", width)


def _replicas(view: View) -> str:
    words = f"{view.ready} ready of {view.replicas}"
    if view.desired is not None:
        words += f", {view.desired} wanted"
    if view.bounds is not None:
        words += f" ({view.bounds[0]} to {view.bounds[1]})"
    if view.mode not in ("", "Builtin"):
        words += f", mode {view.mode}"
    if view.limiting:
        words += f", {view.limiting}"
    return words


def _pods(pods: list[Pod], width: int, paint: Any) -> Iterator[str]:
    if not pods:
        return
    name = max(len("POD"), *(len(pod.name) for pod in pods))
    word = max(len("STATE"), *(len(clean(pod.state)) for pod in pods))
    yield ""
    yield paint(
        "faint", f"{'POD':<{name}}  {'STATE':<{word}}  {'RUNS':>5} {'WAITS':>5} {'OLDEST':>7}  KV CACHE"
    )
    for pod in pods:
        level = "good" if pod.state == "Ready" else "busy"
        start = f"{pod.name:<{name}}  {paint(level, f'{clean(pod.state):<{word}}')}"
        if pod.kv is None:
            left = max(10, width - name - word - 25)
            yield f"{start}  {'-':>5} {'-':>5} {'-':>7}  {clean(pod.note)[:left]}"
        else:
            load = f"{pod.running:>5} {pod.waiting:>5} {pod.oldest_wait or 0:>5.1f} s"
            yield f"{start}  {load}  {_bar(pod.kv, paint)} {pod.kv:>4.0%}"


def _bar(share: float, paint: Any) -> str:
    full = round(min(max(share, 0.0), 1.0) * BAR)
    level = "bad" if share > 0.95 else "busy" if share > 0.8 else "good"
    return f"[{paint(level, '#' * full)}{'.' * (BAR - full)}]"


def _condition(condition: dict[str, Any], width: int, paint: Any) -> Iterator[str]:
    kind, status = condition["type"], condition["status"]
    wrong = status == "True" if kind in GOOD_WHEN_FALSE else status == "False" and kind in ("Ready", "Fits")
    label = f"  {kind:<18} {paint('bad' if wrong else 'faint', f'{status:<7}')} "
    text = f"{condition['reason']}: {clean(condition.get('message') or '')}".rstrip(": ")
    first, *rest = textwrap.wrap(text, max(20, width - 29)) or [""]
    yield label + first
    for line in rest:
        yield " " * 29 + line


def _wrapped(text: str, width: int, paint: Any = None, level: str = "") -> Iterator[str]:
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    for line in textwrap.wrap(text, max(40, width), subsequent_indent=indent) or [""]:
        yield paint(level, line) if paint else line


def _clock(time: str) -> str:
    """The time of day of a Kubernetes timestamp."""
    return clean(time)[11:19]


def clean(text: str) -> str:
    """One line without control characters: messages quote containers, which may write what moves a cursor."""
    visible = (" " if unicodedata.category(c).startswith("C") else c for c in text[:LONGEST])
    return " ".join("".join(visible).split())


def _colour(level: str, text: str) -> str:
    return f"\x1b[{COLOURS[level]}m{text}\x1b[0m"


def _plain(_: str, text: str) -> str:
    return text
