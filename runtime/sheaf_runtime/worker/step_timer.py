"""How long the device was busy with one step: its forward and its sampler, not the time between them."""

from __future__ import annotations

from time import perf_counter

import torch


class HostTimer:
    """For a device that is done when the call returns. Adds up what happens inside ``with``."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._seconds -= perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds += perf_counter()

    def seconds(self) -> float:
        return self._seconds


class CudaTimer:
    """For a stream, on which a call only enqueues: events before and behind it."""

    def __init__(self) -> None:
        self._begins: list[torch.cuda.Event] = []
        self._ends: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        self._begins.append(_recorded())

    def __exit__(self, *_: object) -> None:
        self._ends.append(_recorded())

    def seconds(self) -> float:
        """Waits for the stream to get there."""
        milliseconds = 0.0
        for begin, end in zip(self._begins, self._ends, strict=True):
            end.synchronize()
            milliseconds += begin.elapsed_time(end)
        return milliseconds / 1000


def _recorded() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
