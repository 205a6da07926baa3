"""One run of the work queue for one LLMDeployment: observe → plan → execute → scale → report.

The parts that decide are pure; `executor`, `scaler` and `reporter` do their I/O.
This file calls them in order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.lease import Lease
from sheaf_operator.cluster.scrape import Scraper
from sheaf_operator.desired import plan as planning
from sheaf_operator.desired.actions import Apply, Plan
from sheaf_operator.desired.choice import current_revision
from sheaf_operator.run.apply import Executor
from sheaf_operator.run.memory import Memory
from sheaf_operator.run.reporter import Reporter
from sheaf_operator.run.scaler import Scaler
from sheaf_operator.run.telemetry import Telemetry
from sheaf_operator.settings import Settings

Key = tuple[str, str]  # namespace, name
BLOCKED_RETRY = 10.0  # while KServe or a free name is missing


class Reconciler:
    def __init__(
        self,
        cluster: Cluster,
        scraper: Scraper,
        lease: Lease,
        telemetry: Telemetry,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._lease = cluster, lease
        self._telemetry, self._settings, self._clock = telemetry, settings, clock
        self._executor = Executor(cluster, lease, telemetry)
        self._scaler = Scaler(cluster, scraper, lease, self._executor, telemetry, settings, clock)
        self._reporter = Reporter(cluster, lease, telemetry, clock)
        self._memory: dict[Key, Memory] = {}

    def touch(self, key: Key) -> None:
        """Something about this key has changed: read it again on its next run."""
        self._memory.setdefault(key, Memory()).dirty = True

    def concerns(self, key: Key, metadata: Mapping[str, Any]) -> bool:
        """Whether an event about the resource itself is news.

        One that changes its status alone is our own writing. Acting on it would also cut a failing key's
        back-off short whenever the error's words change.
        """
        memory = self._memory.get(key)
        if memory is None or memory.observed is None:
            return True
        return _identity(metadata) != _identity(memory.observed.owner["metadata"])

    async def process(self, key: Key) -> float | None:
        """One run. Returns after how many seconds to run again, None for not before something changes."""
        if not self._lease.held:
            self._memory.pop(key, None)  # whoever holds it now may change what is remembered here
            return self._settings.lease_duration / 3
        with self._telemetry.reconcile_seconds.time():
            try:
                again = await self._run(key)
            except Exception:
                self.touch(key)
                self._telemetry.reconciles.labels("error").inc()
                raise
        self._telemetry.reconciles.labels("ok").inc()
        return again

    async def _run(self, key: Key) -> float | None:
        memory = self._memory.setdefault(key, Memory())
        fresh = await self._observe(key, memory)
        observed = memory.observed
        if observed is None:
            self._memory.pop(key, None)
            self._telemetry.forget(*key)
            return None
        if "deletionTimestamp" in observed.owner["metadata"]:
            return None
        try:
            spec = LLMDeploymentSpec.model_validate(observed.owner["spec"])
        except ValidationError as error:
            await self._reporter.refuse(observed, error)
            return None
        plan, failure = Plan(revision=current_revision(observed)), None
        if fresh:
            plan = planning.plan(spec, observed, self._settings.runtime_image)
            plan, failure = await self._executor.execute(observed, plan, memory)
        if plan.problem or plan.actions:
            memory.dirty = True  # look again rather than trust that an event will come
        soon = await self._scaler.run(spec, observed, memory)
        applied = failure is None and not any(isinstance(action, Apply) for action in plan.actions)
        await self._reporter.report(spec, memory, plan, applied)
        if failure is not None:
            raise failure
        return self._next(spec, memory, plan, soon)

    async def _observe(self, key: Key, memory: Memory) -> bool:
        """Read everything again if something changed or the last reading is old. Whether it was read."""
        now = self._clock()
        blocked = memory.observed is not None and not memory.observed.kserve
        if not memory.dirty and not blocked and now - memory.read_at < self._settings.resync_interval:
            return False
        memory.dirty = False  # before reading: an event that arrives meanwhile asks for another run
        try:
            memory.observed = await self._cluster.observe(*key)
        except BaseException:
            memory.dirty = True
            raise
        memory.read_at = now
        self._telemetry.observations.labels(*key).inc()
        return True

    def _next(self, spec: LLMDeploymentSpec, memory: Memory, plan: Plan, soon: float | None) -> float | None:
        if plan.problem is not None:
            return BLOCKED_RETRY
        if soon is not None:
            return soon
        if memory.dirty:
            return self._settings.autoscale_interval
        status = memory.observed.status if memory.observed else {}
        measured = spec.autoscaling.mode == "Disabled" and "capacity" in status
        if spec.suspend or measured:
            return None
        interval = self._settings.autoscale_interval
        left = memory.scraped_at + interval - self._clock()
        return left if left > 0 else interval


def _identity(metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    return metadata.get("uid"), metadata.get("generation"), metadata.get("deletionTimestamp")
