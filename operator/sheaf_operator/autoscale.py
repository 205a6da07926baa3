"""How many replicas, and why. Pure: no clock, no I/O.

Two signals, the higher one wins:

QueueDepth. Let L be the requests in the replicas that answer, waiting and running, c what one replica runs
at once, t the target (waiting requests per replica). More replicas are wanted when L exceeds n(c+t), fewer
when L fits into the running slots of fewer with a tenth to spare, L ≤ 0.9·c·(n−1). In between nothing
changes, so a constant load cannot make the count swing. c is the runtime's limit on running sequences, or
what a replica runs beside requests that have been waiting for a while, if that is less.
Under a load that grows while replicas start, L/(c+t) would want the whole backlog to run at once. So once the
flow is known (flow.py: λ requests per second of s seconds each), no more are wanted than run what arrives and
drain the W waiting ones within D = 600 s, n = ceil((λ + W/D)·s/c), or one more than answer if those do not
shrink the queue.

KVCacheUtilizationPercent. Let U be the sum of the replicas' utilizations and τ the target: n = ceil(U/τ),
with HPA's tolerance of a tenth on either side.

n counts the wanted replicas, those that still load included: what is coming is not asked for again. A
replica that is or was ready and gave no sample counts nothing towards more, and forbids less. Scale-down
takes the highest recommendation of the stabilization window, as HPA does; a fresh history begins with the
present count, so nothing shrinks within the first window after a restart, nor after a pause longer than it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from sheaf_operator.flow import Demand, Flow

TOLERANCE = 0.1
SATURATED = 1.0  # seconds that a request waits before the running ones count as all that fit


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
class Policy:
    """`queue_target` in waiting requests per replica, `kv_target` a fraction of 1; None switches a signal
    off.
    """

    minimum: int
    maximum: int
    queue_target: float | None = 4.0
    kv_target: float | None = 0.8
    up: Limits = Limits()
    down: Limits = Limits(window=300.0)


@dataclass(frozen=True)
class Sample:
    """One replica's load. `kv` is the share of its KV blocks in use, `slots` how many sequences it runs at
    most, `finished` how many requests have ended since its last reading (None: not known).
    """

    waiting: int
    running: int
    kv: float
    slots: int | None = None
    queued_tokens: int = 0
    oldest_wait: float = 0.0
    finished: int | None = None


@dataclass(frozen=True)
class Samples:
    """`loads`: of the ready replicas that answered; `missing`: others that are ready or have been; `current`:
    wanted count.
    """

    current: int
    loads: tuple[Sample, ...] = ()
    missing: int = 0

    @property
    def pending(self) -> int:
        return max(0, self.current - len(self.loads) - self.missing)


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


@dataclass(frozen=True)
class History:
    """Past wishes, which `decide` keeps, and past changes, which the caller reports with `applied`."""

    recommendations: tuple[Recommendation, ...] = ()
    changes: tuple[Change, ...] = ()
    flow: Flow = field(default_factory=Flow)

    def applied(self, now: float, before: int, after: int) -> History:
        """The count has really been changed: what the rate policies count."""
        return replace(self, changes=(*self.changes, Change(now, before, after)))


@dataclass(frozen=True)
class Signal:
    """What one metric alone asks for: a band of counts. `value` is the mean over the replicas that answer."""

    type: str
    target: float
    value: float
    at_least: int
    at_most: int
    words: str


@dataclass(frozen=True)
class Decision:
    """`limiting` names the signal or bound that set `desired`; `next_change_after` when a waiting wish may
    act.
    """

    desired: int
    raw: int
    limiting: str
    reason: str
    signals: tuple[Signal, ...]
    history: History
    next_change_after: float | None = None


def decide(policy: Policy, samples: Samples, history: History, now: float) -> Decision:
    """The count to have from `now` on. `now` is in seconds of the clock that the history uses."""
    # Bounds are the user's word: they hold at once, whatever the window or the rates say.
    base = min(max(samples.current, policy.minimum), policy.maximum)
    history = replace(history, flow=_observe(history.flow, samples, now))
    signals = _signals(policy, samples, history.flow.demand())
    raw, limiting, reason = _bound(policy, *_wish(samples, signals))
    history = _remember(policy, history, base, raw, now)
    desired, limiting, reason, next_change = _stabilize(policy, base, history, raw, limiting, reason)
    desired, limiting, reason = _rate(policy, base, desired, limiting, reason, history, now)
    return Decision(desired, raw, limiting, reason, signals, history, next_change)


def _observe(flow: Flow, samples: Samples, now: float) -> Flow:
    finished = [load.finished for load in samples.loads if load.finished is not None]
    waiting = sum(load.waiting for load in samples.loads)
    running = sum(load.running for load in samples.loads)
    known = len(finished) == len(samples.loads)
    return flow.observe(now, len(samples.loads), waiting, running, sum(finished) if known else None)


def _signals(policy: Policy, samples: Samples, demand: Demand | None) -> tuple[Signal, ...]:
    result = []
    if policy.queue_target is not None:
        result.append(_queue(policy.queue_target, samples, demand))
    if policy.kv_target is not None:
        result.append(_kv(policy.kv_target, samples))
    return tuple(result)


def _slots(samples: Samples) -> float | None:
    """Sequences that one replica runs at once; None while nothing is known about it."""
    known = []
    for load in samples.loads:
        # A burst that has just arrived is no limit; what still waits after a while is.
        if load.waiting > 0 and (load.slots is None or load.oldest_wait >= SATURATED):
            known.append(max(1, load.running))
        elif load.slots is not None:
            known.append(max(1, load.slots, load.running))
    return sum(known) / len(known) if known else None


def _queue(target: float, samples: Samples, demand: Demand | None) -> Signal:
    waiting = sum(load.waiting for load in samples.loads)
    running = sum(load.running for load in samples.loads)
    load = waiting + running
    slots = _slots(samples)
    if slots is None:  # no limit reported and no queue: only an idle system can do with less
        at_least, at_most = 0, (1 if load == 0 else max(1, samples.current))
        need = f"{running} running"
    else:
        at_least = backlog = math.ceil(load / (slots + target)) if waiting else 0
        at_most = max(1, at_least, math.ceil(load / (slots * (1 - TOLERANCE))))
        need = f"one replica runs {slots:g} and may keep {target:g} waiting"
        if demand is not None:
            # A queue that does not shrink asks for one more than answer, whatever was measured.
            more = len(samples.loads) + samples.missing + 1 if demand.stuck else 0
            at_least = min(backlog, max(_ceil(demand.running(waiting) / slots), more))
            need += f"; {demand.words(waiting)}" if at_least < backlog else ""
    words = f"{waiting} requests waiting and {running} running on {_count(len(samples.loads))}; {need}"
    return Signal("QueueDepth", target, waiting / max(1, len(samples.loads)), at_least, at_most, words)


def _kv(target: float, samples: Samples) -> Signal:
    used = sum(load.kv for load in samples.loads)
    beyond = _ceil(used / (target * (1 + TOLERANCE)))
    at_least = _ceil(used / target) if samples.current < beyond else beyond
    at_most = max(1, at_least, _ceil(used / (target * (1 - TOLERANCE))))
    average = used / len(samples.loads) if samples.loads else 0.0
    words = f"KV cache {average:.0%} in use on {_count(len(samples.loads))}, target {target:.0%}"
    return Signal("KVCacheUtilizationPercent", target, average, at_least, at_most, words)


def _ceil(value: float) -> int:
    """Rounded up, but 2.0000000001 is 2."""
    return math.ceil(value - 1e-9)


def _count(replicas: int) -> str:
    return f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"


def _wish(samples: Samples, signals: tuple[Signal, ...]) -> tuple[int, str, str]:
    """What the signals ask for before bounds and windows: more beats less, and the highest wins."""
    current = samples.current
    if not samples.loads:
        why = "no replica is ready yet" if samples.missing == 0 else _missing_words(samples)
        return current, "MissingSamples" if samples.missing else "NoReadyReplica", why
    top = max(signals, key=lambda s: s.at_least)
    if top.at_least > current:
        coming = f", {samples.pending} more loading" if samples.pending else ""
        return top.at_least, top.type, f"{top.words}{coming}: {_count(top.at_least)} needed"
    keep = max(signals, key=lambda s: s.at_most)
    if keep.at_most >= current:
        return current, "WithinTargets", f"{keep.words}: {_count(current)} suits"
    if samples.missing:
        return current, "MissingSamples", _missing_words(samples)
    return keep.at_most, keep.type, f"{keep.words}: {_count(keep.at_most)} would do"


def _missing_words(samples: Samples) -> str:
    return f"{_count(samples.missing)} not answering: not scaling down on what is not known"


def _bound(policy: Policy, raw: int, limiting: str, reason: str) -> tuple[int, str, str]:
    if raw > policy.maximum:
        return policy.maximum, "MaxReplicas", f"{reason}, limited by maxReplicas {policy.maximum}"
    if raw < policy.minimum:
        return policy.minimum, "MinReplicas", f"{reason}, but minReplicas is {policy.minimum}"
    return raw, limiting, reason


def _remember(policy: Policy, history: History, current: int, raw: int, now: float) -> History:
    """The new wish joins the history; what no window or rate can look at any more leaves it."""
    horizon = now - max(policy.up.window, policy.down.window)
    entries = [e for e in history.recommendations if e.until >= horizon]
    # Nothing known about the window (a restart, a long pause): the present count is the best witness.
    entries = entries or [Recommendation(current, now, now)]
    if entries[-1].replicas == raw:
        entries[-1] = replace(entries[-1], until=now)
    else:
        entries.append(Recommendation(raw, now, now))
    period = max((r.period for r in (*policy.up.rates, *policy.down.rates)), default=0.0)
    changes = tuple(c for c in history.changes if c.time > now - period)
    return replace(history, recommendations=tuple(entries), changes=changes)


def _recent(history: History, window: float) -> list[Recommendation]:
    """The wishes within the window, the present one always included."""
    *past, present = history.recommendations
    return [e for e in past if e.until > present.until - window] + [present]


def _stabilize(
    policy: Policy, current: int, history: History, raw: int, limiting: str, reason: str
) -> tuple[int, str, str, float | None]:
    if raw < current:
        window = policy.down.window
        recent = _recent(history, window)
        top = max(recent, key=lambda e: (e.replicas, e.until))
        held = min(current, top.replicas)
        if held > raw:
            release = max(e.until for e in recent if e.replicas > raw) + window
            words = f"{reason}; {_count(top.replicas)} were needed in the last {window:g} s"
            return held, "StabilizationWindow", words, release
    elif raw > current:
        window = policy.up.window
        recent = _recent(history, window)
        low = min(recent, key=lambda e: e.replicas)
        held = max(current, low.replicas)
        if held < raw:
            words = f"{reason}; held back for the scale-up window of {window:g} s"
            return held, "StabilizationWindow", words, recent[0].until + window
    return raw, limiting, reason, None


def _rate(
    policy: Policy, current: int, desired: int, limiting: str, reason: str, history: History, now: float
) -> tuple[int, str, str]:
    """HPA's rate policies: what may change within their periods, given what has changed already."""
    if desired == current:
        return desired, limiting, reason
    up = desired > current
    limits = policy.up if up else policy.down
    if limits.select == "Disabled":
        return current, "RatePolicy", f"{reason}, but scaling {'up' if up else 'down'} is disabled"
    if not limits.rates:
        return desired, limiting, reason
    allowed = [_allowed(rate, current, up, history, now) for rate in limits.rates]
    most = max(allowed) if limits.select == "Max" else min(allowed)
    bounded = min(desired, current + most) if up else max(desired, current - most)
    if bounded != desired:
        return bounded, "RatePolicy", f"{reason}, slowed down by the behavior's policies"
    return desired, limiting, reason


def _allowed(rate: RatePolicy, current: int, up: bool, history: History, now: float) -> int:
    """By how many replicas this policy lets the count change now."""
    recent = [c.after - c.before for c in history.changes if c.time > now - rate.period]
    done = sum(d for d in recent if d > 0) if up else -sum(d for d in recent if d < 0)
    start = current - done if up else current + done
    # Rounded up both ways, as HPA does: ten percent of five replicas is one, not never.
    total = rate.value if rate.type == "Pods" else math.ceil(start * rate.value / 100)
    return max(0, total - done)
