"""What stands in for a CUDA stream: work is queued and done in its order.

Between two steps every microsecond of Python is one in which the device computes nothing, and no cache holds
any of it: a step reads hundreds of megabytes. So these are the shortest ways there are: a queue and locks
made in C, where futures and events would take five times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Inline:
    """On CUDA the stream itself is the queue: work is done at once, which only enqueues it there."""

    def submit(self, work: Callable[[], None]) -> None:
        with torch.no_grad():
            work()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        with torch.no_grad():
            return function(*args)

    def close(self) -> None:
        pass


class DeviceThread:
    """Everything that computes on a CPU runs here, loading included. Each thread that does gets a pool of
    OpenMP threads, and once there are more threads than cores, they sleep between operations."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="sheaf-device", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """``work`` raises nothing."""
        self._work.put(work)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Waits for the result."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)

        self.submit(work)
        return future.result()

    def close(self) -> None:
        """Lets what is queued finish. May be called twice."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        with torch.no_grad():  # for all of it: to enter and leave a mode takes as long as a small kernel
            for work in iter(self._work.get, None):
                work()
