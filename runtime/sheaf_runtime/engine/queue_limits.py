"""Whether one more request may wait, and when a place is likely to be free. Pure: no clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 60.0  # seconds of starts that the rate is measured over
LONGEST = 60  # seconds that anybody is sent away for


class DrainRate:
    """How many requests leave the queue for their first step, per second."""

    def __init__(self) -> None:
        self._starts: deque[tuple[float, int]] = deque()

    def note(self, now: float, count: int) -> None:
        """``count`` requests began at ``now``."""
        if count:
            self._starts.append((now, count))
            self._forget(now)

    def per_second(self, now: float) -> float | None:
        """None as long as nothing is measured. Falls while nothing begins."""
        self._forget(now)
        if not self._starts or now <= self._starts[0][0]:
            return None
        # The first one opens the window: what it began was waiting before.
        count = sum(count for _, count in self._starts) - self._starts[0][1]
        return max(count, 1) / (now - self._starts[0][0])

    def _forget(self, now: float) -> None:
        while self._starts and self._starts[0][0] < now - WINDOW:
            self._starts.popleft()


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """``max_tokens``: prompt tokens that may wait; None: any number."""

    max_requests: int
    max_tokens: int | None

    def problem(
        self, *, running: int, waiting: int, tokens: Callable[[], int], free_seats: int, prompt: int
    ) -> str | None:
        """Why a request of ``prompt`` tokens may not join ``waiting`` requests of ``tokens`` prompt tokens,
        which are only counted where they are bounded.

        Those that the next step can take at once do not wait, and one that finds nobody waiting is always
        let in, however long it is: it could never come in otherwise.
        """
        if waiting >= self.max_requests + free_seats:
            return (
                f"{running} requests are running and {waiting} are waiting (max_waiting_requests is "
                f"{self.max_requests}). Try again later."
            )
        if self.max_tokens is not None and waiting and (queued := tokens()) + prompt > self.max_tokens:
            return (
                f"{waiting} requests with {queued} prompt tokens are waiting, and {prompt} more would exceed "
                f"max_waiting_tokens ({self.max_tokens}). Try again later."
            )
        return None


def retry_after(waiting: int, rate: float | None) -> int:
    """Whole seconds until half of the queue has begun at ``rate`` requests per second, from 1 to 60; then
    there is room again, and those who come back together do not find an engine that has run dry."""
    if rate is None:
        return 1
    return min(LONGEST, max(1, math.ceil(waiting / 2 / rate)))
