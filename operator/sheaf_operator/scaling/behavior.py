"""HPA's behavior: stabilization windows and rate policies, between a wish and the count to have. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from sheaf_operator.api.quantity import human_replicas


@dataclass(frozen=True)
class RatePolicy:
    """At most `value` pods or percent within `period` seconds."""

    type: Literal["Pods", "Percent"]
    value: int
    period: float


@dataclass(frozen=True)
class Limits:
    """One direction's behavior. `window` in seconds; no rates means no limit."""

    window: float = 0.0
    rates: tuple[RatePolicy, ...] = ()
    select: Literal["Max", "Min", "Disabled"] = "Max"


@dataclass(frozen=True)
class Recommendation:
    """A raw wish and the last time it was held; equal ones in a row are one entry."""

    replicas: int
    since: float
    until: float


@dataclass(frozen=True)
class Change:
    """The count went from one value to another at a time."""

    time: float
    before: int
    after: int


def remember(
    up: Limits, down: Limits, past: tuple[Recommendation, ...], current: int, raw: int, now: float
) -> tuple[Recommendation, ...]:
    """The new wish joins the past ones; what no window can look at any more leaves them."""
    horizon = now - max(up.window, down.window)
    entries = [e for e in past if e.until >= horizon]
    # Nothing known about the window (a restart, a long pause): the present count is the best witness.
    entries = entries or [Recommendation(current, now, now)]
    if entries[-1].replicas == raw:
        entries[-1] = replace(entries[-1], until=now)
    else:
        entries.append(Recommendation(raw, now, now))
    return tuple(entries)


def still_counted(up: Limits, down: Limits, changes: tuple[Change, ...], now: float) -> tuple[Change, ...]:
    """Those changes that a rate policy can look at."""
    period = max((r.period for r in (*up.rates, *down.rates)), default=0.0)
    return tuple(c for c in changes if c.time > now - period)


def _recent(recommendations: tuple[Recommendation, ...], window: float) -> list[Recommendation]:
    """The wishes within the window, the present one always included."""
    *past, present = recommendations
    return [e for e in past if e.until > present.until - window] + [present]


def stabilize(
    limits: Limits, current: int, wishes: tuple[Recommendation, ...], raw: int
) -> tuple[int, str, float] | None:
    """The count to hold instead of `raw`, why, and until when; None if the window holds nothing back.

    `limits` are those of the direction from `current` to `raw`; `raw` is the last of `wishes`.
    """
    window = limits.window
    recent = _recent(wishes, window)
    if raw < current:
        top = max(recent, key=lambda e: (e.replicas, e.until))
        held = min(current, top.replicas)
        if held > raw:
            release = max(e.until for e in recent if e.replicas > raw) + window
            return held, f"{human_replicas(top.replicas)} were needed in the last {window:g} s", release
    elif raw > current:
        low = min(recent, key=lambda e: e.replicas)
        held = max(current, low.replicas)
        if held < raw:
            return held, f"held back for the scale-up window of {window:g} s", recent[0].until + window
    return None


def slow_down(
    limits: Limits, current: int, desired: int, changes: tuple[Change, ...], now: float
) -> tuple[int, str] | None:
    """The count that the rate policies allow now, given what has changed already, and why; None if `desired`.

    `limits` are those of the direction from `current` to `desired`.
    """
    if desired == current:
        return None
    up = desired > current
    if limits.select == "Disabled":
        return current, f"but scaling {'up' if up else 'down'} is disabled"
    if not limits.rates:
        return None
    allowed = [_allowed(rate, current, up, changes, now) for rate in limits.rates]
    most = max(allowed) if limits.select == "Max" else min(allowed)
    bounded = min(desired, current + most) if up else max(desired, current - most)
    return None if bounded == desired else (bounded, "slowed down by the behavior's policies")


def _allowed(rate: RatePolicy, current: int, up: bool, changes: tuple[Change, ...], now: float) -> int:
    """By how many replicas this policy lets the count change now."""
    recent = [c.after - c.before for c in changes if c.time > now - rate.period]
    done = sum(d for d in recent if d > 0) if up else -sum(d for d in recent if d < 0)
    start = current - done if up else current + done
    # Rounded up both ways, as HPA does: ten percent of five replicas is one, not never.
    total = rate.value if rate.type == "Pods" else math.ceil(start * rate.value / 100)
    return max(0, total - done)
