"""Which adapters may be in the running batch, and whose turn it is. Pure: no clock, no device.

At most so many different adapters run at once. Requests of those that run join them; a request of another one
waits until a place is free, and others pass it meanwhile. After ``PATIENCE`` seconds nobody with an adapter
passes it any more, so that the places empty: a busy adapter keeps nobody out for longer than that and what
then still runs.

An adapter that is not in memory is asked for when its request's turn comes, and keeps its place while it is
read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sheaf_runtime.engine.request import Request

PATIENCE = 5.0


class AdapterRoom:
    """``loaded`` adapters are in memory, the least recently used first; ``wanted`` are to be read. ``active``
    ones run, or have a place kept: they stay in memory."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.loaded: OrderedDict[int, None] = OrderedDict()
        self.wanted: dict[int, None] = {}
        self.active: set[int] = set()
        self._closed = False
        self._now = 0.0

    def plan(self, running: Iterable[Request], now: float) -> None:
        """A step is planned from here on."""
        self.active = {r.adapter for r in running if r.adapter is not None}
        self.active.update(self.wanted)
        self._closed, self._now = False, now

    def keeps_out(self, request: Request) -> bool:
        """Whether a request cannot begin because of its adapter."""
        adapter = request.adapter
        if adapter is None:
            return False
        if adapter not in self.active:
            return len(self.active) >= self.places
        return adapter in self.wanted

    def reads_for(self, request: Request) -> bool:
        """Whether nothing but an adapter that is read keeps a request from beginning, while nobody runs."""
        adapter = request.adapter
        return adapter is not None and (adapter in self.wanted or len(self.wanted) >= self.places)

    def takes(self, request: Request) -> bool:
        """Whether a request may begin, as far as its adapter goes; asked in the order of their ranks. Its
        place is kept for it then, even where it finds no pages yet."""
        adapter = request.adapter
        if adapter is None:
            return True
        if self._closed:
            return False
        if adapter not in self.active:
            if len(self.active) >= self.places:
                self._closed = self._now - request.arrival_time >= PATIENCE
                return False
            self.active.add(adapter)
        if adapter not in self.loaded:
            self.wanted[adapter] = None
            return False
        self.loaded.move_to_end(adapter)
        return True

    def spare(self) -> int | None:
        """The adapter in memory that is least missed; None: all of them are needed."""
        return next((adapter for adapter in self.loaded if adapter not in self.active), None)
