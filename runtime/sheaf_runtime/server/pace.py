"""Turns at work that clients can cause at will, so that it takes a bounded share of the processor from the
requests that run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

LONGEST_PAUSE = 5.0  # seconds: whatever one piece of work cost
LOOK_SECONDS = 0.05  # so often is looked whether the engine is idle by now


class Pace:
    """One piece of work at a time, in the order of asking. While the engine is ``busy``, one begins no sooner
    than when those before it have taken ``share`` of a core since they began; while it is idle, at once.

    ``clock`` and ``sleep`` are in seconds, ``cpu`` is the processor's time that this process has used.
    """

    def __init__(
        self,
        busy: Callable[[], bool],
        share: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._busy, self._share = busy, share
        self._clock, self._cpu, self._sleep = clock, cpu, sleep
        self._line = asyncio.Lock()
        self._free_at = 0.0

    async def take(self, before: float = 0.0) -> Turn:
        """Waits for a turn, which has to be ended. ``before``: seconds that the work has cost already."""
        await self._line.acquire()
        try:
            while self._busy() and (rest := self._free_at - self._clock()) > 0:
                await self._sleep(min(rest, LOOK_SECONDS))
        except BaseException:
            self._line.release()
            raise
        began, used = self._clock(), self._cpu() - before

        def end() -> None:
            self._free_at = began + min((self._cpu() - used) / self._share(), LONGEST_PAUSE)
            self._line.release()

        return Turn(end)

    async def charge(self, seconds: float) -> None:
        """Returns when work that is done already, and cost ``seconds``, has had its turn."""
        (await self.take(seconds)).end()


class Turn:
    """``end`` it once its work is done, or is the engine's; ending it again does nothing."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self.ended = False

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self._end()
