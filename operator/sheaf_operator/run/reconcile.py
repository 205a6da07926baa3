"""One run of the work queue for one LLMDeployment: observe → plan → execute → scale → report.

The parts that decide are pure; `executor`, `scaler` and `reporter` do their I/O.
This file calls them in order.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.lease import Lease
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.cluster.scrape import Scraper
from sheaf_operator.desired import plan as planning
from sheaf_operator.desired.actions import Apply, Plan
from sheaf_operator.desired.choice import current_revision
from sheaf_operator.run.adapters import Teller
from sheaf_operator.run.apply import Executor
from sheaf_operator.run.inquiry import Inquirer
from sheaf_operator.run.memory import Memory
from sheaf_operator.run.reporter import Reporter
from sheaf_operator.run.scaler import Scaler
from sheaf_operator.run.telemetry import Telemetry
from sheaf_operator.run.updates import Updates
from sheaf_operator.settings import Settings

Key = tuple[str, str]  # namespace, name
BLOCKED_RETRY = 10.0  # while KServe or a free name is missing
UNSETTLED = 10.0  # between two looks at what may stand still: time itself turns waiting into a stall


class Reconciler:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        scraper: Scraper,
        lease: Lease,
        telemetry: Telemetry,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = lambda: random.uniform(0.92, 1.0),
    ) -> None:
        """`spread` keeps models that were first looked at together from staying together."""
        self._cache, self._lease, self._spread = cache, lease, spread
        self._telemetry, self._settings, self._clock = telemetry, settings, clock
        self._executor = Executor(cluster, lease, telemetry)
        self._scaler = Scaler(cluster, scraper, lease, self._executor, telemetry, settings, clock)
        self._teller = Teller(cluster, lease, telemetry)
        self._inquirer = Inquirer(cluster, clock)
        patience = timedelta(seconds=settings.stall_patience)
        self._reporter = Reporter(cluster, lease, telemetry, settings.cluster_domain, clock, patience)
        self._updates = Updates(settings, clock, lambda: cache.keys)
        self._memory: dict[Key, Memory] = {}

    def touch(self, key: Key) -> None:
        """Something about this key has changed: look at all of it on its next run."""
        self._memory.setdefault(key, Memory()).dirty = True

    def remembers(self, key: Key) -> bool:
        return key in self._memory

    async def process(self, key: Key) -> float | None:
        """One run. Returns after how many seconds to run again, None for not before something changes."""
        if not self._lease.held or not self._cache.complete:
            self._memory.pop(key, None)  # whoever holds the Lease now may change what is remembered here
            return None  # each key is looked at when the Lease has been won and everything is known
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
        fresh, memory = self._observe(key)
        observed = memory.observed
        if observed is None:
            self._memory.pop(key, None)
            self._updates.forget(key)
            self._telemetry.forget(*key)
            return None
        if "deletionTimestamp" in observed.owner["metadata"]:
            return None
        if fresh or not memory.resting:
            known = memory.events
            observed = memory.observed = await self._inquirer.ask(observed, memory)
            fresh = fresh or memory.events != known  # a plan may follow from what the Events say
        try:
            spec = memory.spec = memory.spec or LLMDeploymentSpec.model_validate(observed.owner["spec"])
        except ValidationError as error:
            await self._reporter.refuse(observed, error, memory)
            return self._settings.autoscale_interval if memory.dirty else None
        plan, failure = Plan(revision=memory.revision), None
        if fresh:
            plan = self._plan(key, spec, observed, memory)
            plan, failure = await self._executor.execute(observed, plan, memory, self._clock())
        if plan.problem or plan.actions:
            memory.dirty = True  # look again rather than trust that an event will come
        untold = await self._teller.tell(spec, observed) if fresh else None
        soon, broken = await self._scale(spec, observed, memory)
        applied = failure is None and not any(isinstance(action, Apply) for action in plan.actions)
        await self._reporter.report(spec, memory, plan, applied)
        if failure or broken or untold:
            raise failure or broken or untold  # type: ignore[misc]
        return self._next(spec, memory, plan, soon)

    def _plan(self, key: Key, spec: LLMDeploymentSpec, observed: Observed, memory: Memory) -> Plan:
        want = memory.progress.rollout.want if memory.progress else None
        image, now, renew = self._settings.runtime_image, datetime.now(UTC), self._updates.turn(key)
        plan = planning.plan(spec, observed, image, now, want, renew)
        memory.progress = plan.progress
        waits = float("inf") if plan.again is None else plan.again
        memory.look_at = self._clock() + min(waits, self._updates.note(key, spec, observed, plan))
        return plan

    async def _scale(
        self, spec: LLMDeploymentSpec, observed: Observed, memory: Memory
    ) -> tuple[float | None, Exception | None]:
        """When the scaler wants to go on, or what it raised: the report is written in any case."""
        try:
            return await self._scaler.run(spec, observed, memory), None
        except Exception as error:
            return None, error

    def _observe(self, key: Key) -> tuple[bool, Memory]:
        """Look at everything again if something changed or, unless it is at rest, the last look is old.

        Returns whether that was done. The cache tells of each change: lists find what watches have missed.
        """
        now = self._clock()
        memory = self._memory.setdefault(key, Memory())
        aged = now - memory.read_at >= self._settings.resync_interval and not memory.resting
        old = aged or now >= memory.look_at
        if not memory.dirty and not old:
            return False, memory
        observed = self._cache.observe(*key)
        if memory.observed is not None and observed is not None and observed.uid != memory.observed.uid:
            memory = self._memory[key] = Memory()  # made anew under the same name: nothing of it is known
            self._telemetry.forget(*key)
        memory.observed, memory.read_at, memory.dirty = observed, now, False
        memory.spec, memory.policy = None, None
        memory.revision = current_revision(observed) if observed else None
        self._telemetry.observations.labels(*key).inc()
        return True, memory

    def _next(self, spec: LLMDeploymentSpec, memory: Memory, plan: Plan, soon: float | None) -> float | None:
        if plan.problem is not None:
            return BLOCKED_RETRY
        later = self._scrape_next(spec, memory, soon)
        waits = memory.look_at - self._clock()
        return later if waits == float("inf") else min(max(waits, 0.1), later or waits)

    def _scrape_next(self, spec: LLMDeploymentSpec, memory: Memory, soon: float | None) -> float | None:
        if soon is not None:
            return soon
        if memory.dirty:
            return self._settings.autoscale_interval
        status = memory.observed.status if memory.observed else {}
        measured = spec.autoscaling.mode == "Disabled" and "capacity" in status and not spec.model.adapters
        if spec.suspend or measured:
            return None if memory.settled else UNSETTLED
        interval = self._settings.autoscale_interval
        left = memory.scraped_at + interval - self._clock()
        return (left if left > 0 else interval) * self._spread()
