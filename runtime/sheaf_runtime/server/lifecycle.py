"""What the server is willing to do: loading, ready, lame, refusing, failed. Plain state, no I/O."""

from __future__ import annotations

import math
import time
from enum import Enum

from sheaf_runtime.server.errors import ApiError


class Phase(Enum):
    LOADING = "loading"
    READY = "ready"
    LAME_DUCK = "lame duck"  # told to stop; still serves those who have not heard of it
    REFUSING = "refusing"  # only what is running goes on
    FAILED = "failed"


class Lifecycle:
    """Moves forward only. ``failure`` says why the engine is gone."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.failure: str | None = None
        self._drains_since = self._refuses_since = math.inf  # by the monotonic clock, like all times here
        self.sought_at = -math.inf

    @property
    def draining(self) -> bool:
        return self.phase in (Phase.LAME_DUCK, Phase.REFUSING)

    def engine_ready(self) -> None:
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def begin_drain(self) -> None:
        if self.phase in (Phase.LOADING, Phase.READY):
            self.phase, self._drains_since = Phase.LAME_DUCK, time.monotonic()

    def end_lame_duck(self) -> None:
        if self.phase is Phase.LAME_DUCK:
            self.phase, self._refuses_since = Phase.REFUSING, time.monotonic()

    def fail(self, message: str) -> None:
        if self.phase is not Phase.FAILED:
            self.phase = Phase.FAILED
            self.failure = message

    def on_request(self, connected_at: float) -> ApiError | None:
        """What a request is told that arrives now: the refusal of a server that shuts down, or None.

        A connection that was open before had no answer since that told its client to close it; its request is
        served. One that was opened after SIGTERM shows that a load balancer still sends clients here:
        ``sought_at`` is when that was seen last.
        """
        if connected_at < self._drains_since:
            return None
        self.sought_at = time.monotonic()
        if connected_at < self._refuses_since:
            return None
        return ApiError(
            503, "this server is shutting down; retry", code="draining", headers={"Retry-After": "1"}
        )

    def refusal(self) -> ApiError | None:
        """The answer to a new request that cannot be served, or None."""
        if self.phase is Phase.LOADING:
            return ApiError(503, "the model is still loading", code="loading", headers={"Retry-After": "2"})
        if self.phase is Phase.FAILED:
            return ApiError(500, str(self.failure), code="engine_dead")
        return None
