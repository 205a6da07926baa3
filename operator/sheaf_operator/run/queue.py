"""A keyed work queue: one key is never processed twice at the same time, and bursts become one run.

The rules (client-go's): a key that is added while it waits is there once; added while it is being
processed, it runs again afterwards; a failed key comes back after an exponentially growing, jittered delay,
which a success resets. Events in a burst are gathered: the first one is never put off, the others cause one
run per `spacing`. `KeyedQueue` is plain data with the time passed in; `Worker` is the thin asynchronous edge.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)


class KeyedQueue(Generic[Key]):
    """Times are seconds of any monotonic clock. `jitter` returns a factor, 0.5 to 1.0 in production."""

    def __init__(
        self,
        base: float = 0.5,
        cap: float = 30.0,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),
        spacing: float = 0.0,
    ) -> None:
        self._spacing = spacing
        self._started: dict[Key, float] = {}  # within the last `spacing`, the oldest first
        self._base, self._cap, self._jitter = base, cap, jitter
        self._ready: deque[Key] = deque()
        self._waiting: set[Key] = set()  # keys in _ready
        self._running: set[Key] = set()
        self._again: set[Key] = set()  # added while running
        self._due: dict[Key, float] = {}  # the one valid entry of a key in _later
        self._later: list[tuple[float, int, Key]] = []
        self._failures: dict[Key, int] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._ready)

    def failures(self, key: Key) -> int:
        return self._failures.get(key, 0)

    def forget(self, key: Key) -> None:
        """Its failures until now do not count."""
        self._failures.pop(key, None)

    def add(self, key: Key, now: float) -> None:
        """Process `key` as soon as possible, but not within `spacing` of its last start."""
        due = self._started.get(key, -math.inf) + self._spacing
        if due > now and key not in self._running:
            self._add_at(key, due)
        else:
            self._add_now(key)

    def _add_now(self, key: Key) -> None:
        self._due.pop(key, None)
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)

    def add_after(self, key: Key, delay: float, now: float) -> None:
        """Process `key` after `delay`, or earlier if something else asks for it earlier."""
        self._add_at(key, now + delay)

    def _add_at(self, key: Key, due: float) -> None:
        if key in self._waiting or key in self._again or self._due.get(key, math.inf) <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._later, (due, self._sequence, key))

    def take(self, now: float) -> Key | None:
        """The next key to process, which is then running; None if there is none now."""
        self._promote(now)
        if not self._ready:
            return None
        key = self._ready.popleft()
        self._waiting.discard(key)
        self._running.add(key)
        self._start(key, now)
        return key

    def _start(self, key: Key, now: float) -> None:
        self._started.pop(key, None)
        self._started[key] = now
        while (oldest := next(iter(self._started))) != key and self._started[oldest] + self._spacing <= now:
            del self._started[oldest]

    def _promote(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due:
                self._add_now(key)

    def next_due(self) -> float | None:
        """When the next delayed key becomes ready."""
        while self._later and self._due.get(self._later[0][2]) != self._later[0][0]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None

    def done(self, key: Key, now: float) -> None:
        """Processing succeeded."""
        self._failures.pop(key, None)
        self._finish(key, now)

    def fail(self, key: Key, now: float) -> float:
        """Processing failed: the key comes back after the returned delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(self._cap, self._base * float(2 ** min(failures, 32))) * self._jitter()
        self._finish(key, now)
        self.add_after(key, delay, now)
        return delay

    def _finish(self, key: Key, now: float) -> None:
        self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key, now)


class Worker(Generic[Key]):
    """Feeds keys to an asynchronous function, each in a task of its own: none waits for another's pods."""

    def __init__(
        self,
        queue: KeyedQueue[Key],
        process: Callable[[Key], Awaitable[float | None]],
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        """`process` returns after how many seconds it wants to see the key again, or None; it may raise.

        Errors that are not `expected` are logged with where they came from.
        """
        self._expected = expected
        self._queue, self._process = queue, process
        self._wake = asyncio.Event()
        self._alarm = math.inf  # when the loop wakes by itself

    def add(self, key: Key) -> None:
        self._queue.add(key, asyncio.get_running_loop().time())
        self._wake.set()

    def forget(self, key: Key) -> None:
        """What the key stands for is another thing now: its failures do not count any more."""
        self._queue.forget(key)

    async def run(self) -> None:
        """Until cancelled; then the keys in progress are cancelled too."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                while (key := self._queue.take(loop.time())) is not None:
                    group.create_task(self._one(key, loop.time))
                due = self._queue.next_due()
                self._alarm = math.inf if due is None else due
                alarm = None if due is None else loop.call_at(due, self._wake.set)
                await self._wake.wait()
                if alarm is not None:
                    alarm.cancel()

    async def _one(self, key: Key, clock: Callable[[], float]) -> None:
        try:
            again = await self._process(key)
        except Exception as error:
            delay = self._queue.fail(key, clock())
            where = None if isinstance(error, self._expected) else error
            words = "%s: %s: %s; again in %.1f s"
            log.warning(words, key, type(error).__name__, error, delay, exc_info=where)
        else:
            self._queue.done(key, clock())
            if again is not None:
                self._queue.add_after(key, again, clock())
        due = self._queue.next_due()
        if len(self._queue) or (due is not None and due < self._alarm):
            self._wake.set()
