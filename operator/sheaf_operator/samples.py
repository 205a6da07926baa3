"""What was measured of the replicas at one time, as the scaler sees it."""

from __future__ import annotations

from dataclasses import dataclass

SATURATED = 1.0  # seconds that a request waits before the running ones count as all that fit


@dataclass(frozen=True)
class Sample:
    """One replica's load. `kv` is the share of its KV blocks in use, `slots` how many sequences it runs at
    most; `finished` and `begun` count the requests that have ended and begun to run since its last reading
    (None: not known).
    """

    waiting: int
    running: int
    kv: float
    slots: int | None = None
    queued_tokens: int = 0
    oldest_wait: float = 0.0
    finished: int | None = None
    begun: int | None = None


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
