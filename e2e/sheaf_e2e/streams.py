"""Streaming requests on a completions endpoint from a thread, while a test does something to the cluster.

Connections are pooled and kept alive and nothing is ever retried: see ``sheaf_runtime.bench.load``, which
also says when a stream counts as complete (a finish reason and ``[DONE]``).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sheaf_runtime.bench.datasets import random_jobs
from sheaf_runtime.bench.load import Job, Outcome, Target, arrival_times, send
from sheaf_runtime.endpoint.session import open_session

VOCABULARY = 256  # token ids that any model here has


class Streams:
    """Either ``rate`` requests per second, whatever became of the earlier ones, or ``clients`` of which each
    sends its next request when its last one has ended. At the end of the block every answer is awaited.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        prompt_tokens: int,
        output_tokens: int,
        rate: float | None = None,
        clients: int | None = None,
        seed: int = 0,
    ) -> None:
        assert (rate is None) != (clients is None)
        self.outcomes: list[Outcome] = []
        self._target = Target(url, model)
        self._rate, self._clients = rate, clients
        self._jobs = iter(random_jobs(5000, prompt_tokens, output_tokens, VOCABULARY, seed))
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._thread.join(180)
        if kind is None:
            assert not self._thread.is_alive(), "some requests have no answer after 180 s"
            if self._error is not None:
                raise self._error

    @property
    def failures(self) -> list[str]:
        """What went wrong with each request that was not answered completely."""
        bad = [o for o in self.outcomes if o.error is not None or not o.complete]
        return [f"{o.error} after {o.output_tokens or len(o.chunk_times)} chunks" for o in bad]

    def wait_answers(self, more: int, timeout: float = 60) -> None:
        """Until this many further requests that were sent from now on are answered."""
        now, deadline = time.perf_counter(), time.monotonic() + timeout
        while sum(o.start >= now for o in self.outcomes) < more:
            assert time.monotonic() < deadline, f"not {more} answers within {timeout:.0f} s: {self.failures}"
            assert self._thread.is_alive(), self._error
            time.sleep(0.05)

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._error = error
            self._started.set()

    async def _run(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        self._started.set()
        async with open_session(self._target.url) as session, asyncio.TaskGroup() as tasks:

            async def one(job: Job) -> None:
                self.outcomes.append(await send(session, self._target, job, time.perf_counter()))

            async def client() -> None:
                while not stop.is_set():
                    await one(next(self._jobs))

            if self._clients is not None:
                for _ in range(self._clients):
                    tasks.create_task(client())
                return
            assert self._rate is not None
            begin = time.monotonic()
            for due, job in zip(arrival_times(5000, self._rate), self._jobs, strict=False):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), max(0.0, begin + due - time.monotonic()))
                if stop.is_set():
                    return
                tasks.create_task(one(job))
