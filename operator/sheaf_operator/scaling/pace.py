"""How many requests per second one replica takes in, where that and not its slots is the limit. Pure.

A replica that reads long prompts has few requests running and many slots free, and still requests wait for
it. Its slots do not tell how few replicas would do. Its pace does: the requests that it begins per second if
others wait. It is remembered for when enough replicas are there and nothing waits any more: fewer will do
only if what arrives fits their pace. Replicas that are seen to take in more without a queue raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sheaf_operator.cluster.reading import Sample
from sheaf_operator.scaling.samples import SATURATED

RECENT = 60.0  # seconds over which arrivals are averaged
MEMORY = 300.0  # replica-seconds over which the pace is
ENOUGH = 10.0  # replica-seconds before the pace is believed


@dataclass(frozen=True)
class Rate:
    """An average over about the last `seconds` of a count."""

    count: float = 0.0
    seconds: float = 0.0

    def add(self, count: float, seconds: float, memory: float) -> Rate:
        keep = min(1.0, max(0.0, memory - seconds) / self.seconds) if self.seconds else 0.0
        return Rate(self.count * keep + count, self.seconds * keep + seconds)

    @property
    def per_second(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Pace:
    """The last reading (`replicas` that answered, requests `waiting` and `there` at all) and two averages: of
    what arrives at all replicas, and of what one takes in at most.
    """

    time: float = float("-inf")
    replicas: int = 0
    waiting: int = 0
    there: int = 0
    arrived: Rate = Rate()
    most: Rate = Rate()

    def observe(self, now: float, loads: Sequence[Sample]) -> Pace:
        """One more reading."""
        waiting = sum(load.waiting for load in loads)
        there = waiting + sum(load.running for load in loads)
        result = replace(self, time=now, replicas=len(loads), waiting=waiting, there=there)
        seconds = now - self.time
        if not loads or not 0 < seconds <= RECENT:
            return result
        arrived, most = self._arrived(seconds, there, loads), self.most
        limited = [load.begun for load in loads if load.begun is not None and _is_limited(load)]
        if limited and self.waiting:
            most = most.add(sum(limited), seconds * len(limited), MEMORY)
        elif not waiting and most.seconds and arrived.per_second > most.per_second * len(loads):
            most = most.add(arrived.per_second * seconds, seconds * len(loads), MEMORY)
        return replace(result, arrived=arrived, most=most)

    def _arrived(self, seconds: float, there: int, loads: Sequence[Sample]) -> Rate:
        finished = [load.finished for load in loads if load.finished is not None]
        if len(loads) != self.replicas or len(finished) < len(loads):
            return self.arrived  # a replica has come, gone or begun anew: growth is no arrival
        return self.arrived.add(max(0, sum(finished) + there - self.there), seconds, RECENT)

    def replicas_busy(self) -> float:
        """How many replicas the arrivals keep busy; 0 while no pace is known."""
        if self.most.seconds < ENOUGH or not self.most.count:
            return 0.0
        return self.arrived.per_second / self.most.per_second

    def words(self) -> str:
        came, most = self.arrived.per_second, self.most.per_second
        return f"{came:.3g} requests/s arrive and one replica takes in {most:.3g}/s"


def _is_limited(load: Sample) -> bool:
    """Whether requests wait for it although it has slots. Those that have just come are no limit."""
    return load.waiting > 0 and load.oldest_wait >= SATURATED and load.running < (load.slots or 0)
