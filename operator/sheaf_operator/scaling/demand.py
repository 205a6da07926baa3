"""What arrives and what replicas can do with it, measured from one reading to the next. Pure.

Arrivals are what has finished plus the growth of what is there. They are measured once; two answers follow.

How many requests would be running if none had to wait, by Little's law: arrivals per second times the seconds
that a request runs, which are request-seconds divided by requests served. Only while requests wait: before
that the load itself is the answer.

How many replicas the arrivals keep busy, where prompts and not slots are the limit. A replica that reads long
prompts has few requests running and many slots free, and still requests wait for it. Its slots do not tell
how few replicas would do. Its intake does: the requests that it begins per second if others wait. It is
remembered for when enough replicas are there and nothing waits any more. Replicas that are seen to take in
more without a queue raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sheaf_operator.cluster.reading import Sample
from sheaf_operator.scaling.samples import SATURATED

WINDOW = 60.0  # seconds over which arrivals are averaged
MEMORY = 300.0  # replica-seconds over which the intake is
ENOUGH = 10.0  # seconds of queue, or replica-seconds of intake, before either is believed
DRAIN = 600.0  # seconds within which the queue is to be gone: twice what a large model takes to load


@dataclass(frozen=True)
class Interval:
    """Between two readings of the same replicas. `busy` in request-seconds; `begun` is how many more run."""

    end: float
    seconds: float
    replicas: int
    arrived: int
    finished: int
    begun: int
    busy: float


@dataclass(frozen=True)
class Intake:
    """Requests that one replica begins, an average over about the last MEMORY replica-seconds."""

    count: float = 0.0
    seconds: float = 0.0

    def add(self, count: float, seconds: float) -> Intake:
        keep = min(1.0, max(0.0, MEMORY - seconds) / self.seconds) if self.seconds else 0.0
        return Intake(self.count * keep + count, self.seconds * keep + seconds)

    @property
    def rate(self) -> float:
        """Requests per second; 0 while nothing is known."""
        return self.count / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Flow:
    """What a queue is made of: `rate` in requests per second, `service` in seconds that one runs. `stuck`: it
    does not shrink with the replicas that answer now.
    """

    rate: float
    service: float
    stuck: bool

    def running(self, waiting: int) -> float:
        """Requests that must run at once to keep up and to drain those that wait."""
        return (self.rate + waiting / DRAIN) * self.service

    def words(self, waiting: int) -> str:
        return (
            f"{self.rate:.3g} requests/s of {self.service:.3g} s each, and the queue gone within {DRAIN:g} s,"
            f" keep {self.running(waiting):.0f} running"
        )


@dataclass(frozen=True)
class Demand:
    """The last reading (`replicas` that answered, their requests), the intervals before it, and the intake.

    `queue_since` is the reading at which requests began to wait; None while none wait.
    """

    time: float = float("-inf")
    replicas: int = 0
    waiting: int = 0
    running: int = 0
    queue_since: float | None = None
    intervals: tuple[Interval, ...] = ()
    intake: Intake = Intake()

    def observe(self, now: float, loads: Sequence[Sample]) -> Demand:
        """One more reading."""
        waiting = sum(load.waiting for load in loads)
        after = replace(
            self,
            time=now,
            replicas=len(loads),
            waiting=waiting,
            running=sum(load.running for load in loads),
            queue_since=(now if self.queue_since is None else self.queue_since) if waiting else None,
            intervals=tuple(i for i in self.intervals if i.end > now - WINDOW),
        )
        if not 0 < now - self.time <= WINDOW:
            return after
        after = replace(after, intervals=(*after.intervals, *self._interval(after, loads)))
        return replace(after, intake=self._intake(after, loads))

    def _interval(self, after: Demand, loads: Sequence[Sample]) -> tuple[Interval, ...]:
        finished = [load.finished for load in loads if load.finished is not None]
        if not loads or len(loads) != self.replicas or len(finished) < len(loads):
            return ()  # a replica has come, gone or begun anew: growth is no arrival
        done, seconds = sum(finished), after.time - self.time
        begun = after.running - self.running
        arrived = done + begun + after.waiting - self.waiting
        busy = seconds * (after.running + self.running) / 2
        return (Interval(after.time, seconds, len(loads), arrived, done, begun, busy),)

    def _intake(self, after: Demand, loads: Sequence[Sample]) -> Intake:
        seconds = after.time - self.time
        limited = [load.begun for load in loads if load.begun is not None and _is_limited(load)]
        if limited and self.waiting:
            return self.intake.add(sum(limited), seconds * len(limited))
        if not after.waiting and self.intake.seconds and after.rate > self.intake.rate * len(loads):
            return self.intake.add(after.rate * seconds, seconds * len(loads))
        return self.intake

    @property
    def _queued(self) -> tuple[Interval, ...]:
        """The intervals in which requests have waited all the time; none before enough is known of them."""
        if self.queue_since is None:
            return ()
        found = tuple(i for i in self.intervals if i.end - i.seconds >= self.queue_since)
        return found if sum(i.seconds for i in found) >= ENOUGH else ()

    @property
    def rate(self) -> float:
        """Requests that arrive per second: since they began to wait, else within the last minute."""
        intervals = self._queued or self.intervals
        seconds = sum(i.seconds for i in intervals)
        return max(0, sum(i.arrived for i in intervals)) / seconds if seconds else 0.0

    def flow(self) -> Flow | None:
        """None while too little is known. As long as nothing has finished, all that came is still here."""
        queued = self._queued
        finished = sum(i.finished for i in queued)
        if finished <= 0:
            return None
        # Half of those that have begun count: a replica that fills up has finished few as yet.
        through = finished + max(0, sum(i.begun for i in queued)) / 2
        service = sum(i.busy for i in queued) / through
        # What the queue did before the last replica came says nothing about those that answer now.
        since = [i for i in queued if i.replicas == self.replicas]
        grown = sum(i.arrived - i.finished for i in since)
        stuck = grown >= 0 and sum(i.seconds for i in since) >= ENOUGH
        return Flow(self.rate, service, stuck)

    def replicas_busy(self) -> float:
        """How many replicas the arrivals keep busy; 0 while no intake is known."""
        if self.intake.seconds < ENOUGH or not self.intake.count:
            return 0.0
        return self.rate / self.intake.rate

    def words(self) -> str:
        return f"{self.rate:.3g} requests/s arrive and one replica takes in {self.intake.rate:.3g}/s"


def _is_limited(load: Sample) -> bool:
    """Whether requests wait for it although it has slots. Those that have just come are no limit."""
    return load.waiting > 0 and load.oldest_wait >= SATURATED and load.running < (load.slots or 0)
