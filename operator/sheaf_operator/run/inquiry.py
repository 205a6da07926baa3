"""Asking for the Events of what stands still. At rest nothing is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired.choice import current_revision
from sheaf_operator.problems.cause import questions
from sheaf_operator.run.memory import Memory

log = logging.getLogger(__name__)
AGAIN = 30.0  # seconds between two requests about the same standstill


class Inquirer:
    def __init__(self, cluster: Cluster, clock: Callable[[], float]) -> None:
        self._cluster, self._clock = cluster, clock

    async def ask(self, observed: Observed, memory: Memory) -> Observed:
        """The observation with what the Events say; an answer that does not come is no obstacle."""
        revision = current_revision(observed)
        asked = questions(observed, revision.hash if revision else None, datetime.now(UTC))
        if not asked:
            memory.events, memory.asked_at = (), float("-inf")
            return replace(observed, events=())
        now = self._clock()
        if now - memory.asked_at >= AGAIN:
            memory.asked_at = now
            lists = (self._cluster.events(observed.namespace, q.kind, q.name) for q in asked)
            try:
                memory.events = tuple(event for found in await asyncio.gather(*lists) for event in found)
            except (ApiError, Unreachable) as error:
                log.info("%s/%s: no events: %s", observed.namespace, observed.name, error)
        return replace(observed, events=memory.events)
