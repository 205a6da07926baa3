"""How many requests would be running if none had to wait, from the readings of the last minute. Pure.

Little's law: arrivals per second times the seconds that a request runs. Arrivals are what has finished plus
the growth of what is there; a request runs for request-seconds divided by requests served. Measured only
while requests wait: before that the load itself is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 60.0  # seconds that are looked back
ENOUGH = 10.0  # seconds of queue before anything is said
DRAIN = 600.0  # seconds within which the queue is to be gone: twice what a large model takes to load


@dataclass(frozen=True)
class Interval:
    """Between two readings of the same replicas. `busy` in request-seconds; `begun` is how many more run."""

    end: float
    replicas: int
    seconds: float
    arrived: float
    finished: int
    begun: int
    busy: float


@dataclass(frozen=True)
class Demand:
    """`rate` in requests per second, `service` in seconds that one runs. `stuck`: the queue does not shrink
    with the replicas that answer now.
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
class Flow:
    """The last reading (`replicas` that answered, their requests) and the intervals before it."""

    time: float = float("-inf")
    replicas: int = 0
    waiting: int = 0
    running: int = 0
    intervals: tuple[Interval, ...] = ()

    def observe(self, now: float, replicas: int, waiting: int, running: int, finished: int | None) -> Flow:
        """One more reading. `finished` since the last one; None if not known of every replica."""
        seconds = now - self.time
        known = tuple(i for i in self.intervals if i.end > now - WINDOW) if waiting else ()
        # Where a replica has come or gone, growth is no arrival: that interval is left out.
        if self.waiting and waiting and finished is not None and replicas == self.replicas:
            arrived = finished + waiting + running - self.waiting - self.running
            begun = running - self.running
            busy = seconds * (running + self.running) / 2
            if 0 < seconds <= WINDOW:
                known = (*known, Interval(now, replicas, seconds, arrived, finished, begun, busy))
        return Flow(now, replicas, waiting, running, known)

    def demand(self) -> Demand | None:
        """None while too little is known. As long as nothing has finished, all that came is still here."""
        seconds = sum(i.seconds for i in self.intervals)
        finished = sum(i.finished for i in self.intervals)
        if seconds < ENOUGH or finished <= 0:
            return None
        arrived = max(0.0, sum(i.arrived for i in self.intervals))
        # Half of those that have begun count: a replica that fills up has finished few as yet.
        through = finished + max(0, sum(i.begun for i in self.intervals)) / 2
        service = sum(i.busy for i in self.intervals) / through
        # What the queue did before the last replica came says nothing about those that answer now.
        since = [i for i in self.intervals if i.replicas == self.replicas]
        grown = sum(i.arrived - i.finished for i in since)
        stuck = grown >= 0 and sum(i.seconds for i in since) >= ENOUGH
        return Demand(arrived / seconds, service, stuck)
