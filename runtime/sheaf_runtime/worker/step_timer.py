"""How long the device was busy with one step: its forward and its sampler, not the time between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class HostTimer:
    """For a device that is done when the call returns. ``timer(function)`` adds up what its calls take."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            begin = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._seconds += perf_counter() - begin

        return timed

    def seconds(self) -> float:
        return self._seconds


class CudaTimer:
    """For a stream, on which a call only enqueues: events before and behind it."""

    def __init__(self) -> None:
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            begin, end = _event(), _event()
            begin.record()
            result = function(*args, **kwargs)
            end.record()
            self._spans.append((begin, end))
            return result

        return timed

    def seconds(self) -> float:
        """Waits for the stream to get there."""
        for _, end in self._spans:
            end.synchronize()
        milliseconds: float = sum(begin.elapsed_time(end) for begin, end in self._spans)
        return milliseconds / 1000


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
