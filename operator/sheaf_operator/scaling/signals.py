"""What each metric alone asks for, as a band of counts. Pure; the rules are told in `decide`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sheaf_operator.api.quantity import human_replicas
from sheaf_operator.scaling.demand import Demand
from sheaf_operator.scaling.samples import SATURATED, Samples

TOLERANCE = 0.1


@dataclass(frozen=True)
class Signal:
    """What one metric alone asks for: a band of counts. `value` is the mean over the replicas that answer."""

    type: str
    target: float
    value: float
    at_least: int
    at_most: int
    words: str


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


def queue_depth(target: float, samples: Samples, demand: Demand) -> Signal:
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
        if any(each.slots is None for each in samples.loads):  # what a queue shows of one is no limit of all
            at_most = max(at_most, samples.current)
        need = f"one replica runs {slots:g} and may keep {target:g} waiting"
        if flow := demand.flow():
            # A queue that does not shrink asks for one more than answer, whatever was measured.
            more = len(samples.loads) + samples.missing + 1 if flow.stuck else 0
            at_least = min(backlog, max(_ceil(flow.running(waiting) / slots), more))
            need += f"; {flow.words(waiting)}" if at_least < backlog else ""
        if (kept := _ceil(demand.replicas_busy() / (1 - TOLERANCE))) > at_most:
            at_most = kept
            need += f"; {demand.words()}"
    words = (
        f"{waiting} requests waiting and {running} running on {human_replicas(len(samples.loads))}; {need}"
    )
    return Signal("QueueDepth", target, waiting / max(1, len(samples.loads)), at_least, at_most, words)


def kv_cache(target: float, samples: Samples) -> Signal:
    used = sum(load.kv for load in samples.loads)
    # Half of what is left to a full cache, if a tenth of the target is more: what is full must exceed it.
    beyond = _ceil(used / (target + min(target * TOLERANCE, (1 - target) / 2)))
    at_least = _ceil(used / target) if samples.current < beyond else beyond
    at_most = max(1, at_least, _ceil(used / (target * (1 - TOLERANCE))))
    average = used / len(samples.loads) if samples.loads else 0.0
    words = f"KV cache {average:.0%} in use on {human_replicas(len(samples.loads))}, target {target:.0%}"
    return Signal("KVCacheUtilizationPercent", target, average, at_least, at_most, words)


def _ceil(value: float) -> int:
    """Rounded up, but 2.0000000001 is 2."""
    return math.ceil(value - 1e-9)
