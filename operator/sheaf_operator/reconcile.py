"""One run of the work queue for one LLMDeployment: observe → plan → write → scale → status.

The parts that decide are pure and live elsewhere; this file does their I/O in order and keeps, per key, what
must outlive a run: the last observation, the scaler's history, the last readings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from sheaf_operator import conditions, names, problems, scaling
from sheaf_operator import plan as planning
from sheaf_operator.api import LLMDeploymentSpec
from sheaf_operator.autoscale import Decision, History, decide
from sheaf_operator.cluster import ApiError, Cluster, Unreachable
from sheaf_operator.lease import Lease
from sheaf_operator.observed import Json, Observed, pod_name
from sheaf_operator.plan import Apply, Delete, Plan, Scale
from sheaf_operator.problems import Problem
from sheaf_operator.recorder import Recorder
from sheaf_operator.report import build_status, problem_of
from sheaf_operator.samples import Samples
from sheaf_operator.scrape import Reading, Scraper
from sheaf_operator.settings import Settings
from sheaf_operator.telemetry import Telemetry

log = logging.getLogger(__name__)
Key = tuple[str, str]  # namespace, name
BLOCKED_RETRY = 10.0  # while KServe or a free name is missing
CONFLICT_RETRY = 0.5  # after the Deployment changed between reading and writing


@dataclass
class Memory:
    """What one key keeps between runs. Times are of the reconciler's clock."""

    observed: Observed | None = None
    read_at: float = float("-inf")
    dirty: bool = True
    history: History = field(default_factory=History)
    deployment_uid: str | None = None
    restore: int | None = None  # the count to get back to; 0 if there is none, None before the first decision
    decision: Decision | None = None
    readings: dict[str, Reading | str] = field(default_factory=dict)
    scraped_at: float = float("-inf")
    marked: tuple[str, float] | None = None  # the pod that should go next, and since when


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
        self._cluster, self._scraper, self._lease = cluster, scraper, lease
        self._telemetry, self._settings, self._clock = telemetry, settings, clock
        self._recorder = Recorder(cluster, clock)
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
            await self._refuse(observed, error)
            return None
        plan, failure = Plan(revision=planning.current_revision(observed)), None
        if fresh:
            plan = planning.plan(spec, observed, self._settings.runtime_image)
            plan, failure = await self._execute(observed, plan, memory)
        if plan.problem or plan.actions:
            memory.dirty = True  # look again rather than trust that an event will come
        soon = await self._autoscale(spec, observed, memory)
        applied = failure is None and not any(isinstance(action, Apply) for action in plan.actions)
        await self._report(spec, memory, plan, applied)
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

    # Writing children

    async def _execute(
        self, observed: Observed, plan: Plan, memory: Memory
    ) -> tuple[Plan, ApiError | Unreachable | None]:
        """Carry out the plan in order. An action that fails ends it; the problem becomes part of the plan."""
        for action in plan.actions:
            try:
                async with self._lease.writing():
                    await self._act(observed, action)
            except (ApiError, Unreachable) as error:
                if isinstance(action, Scale) and _changed_meanwhile(error):
                    memory.dirty = True
                    return plan, None
                problem = problem_of(error, action)
                memory.dirty = True
                retry = None if problem.reason in ("NameConflict", "KServeMissing") else error
                return Plan(plan.actions, plan.revision, problem), retry
        return plan, None

    async def _act(self, observed: Observed, action: planning.Action) -> None:
        match action:
            case Apply():
                kind = action.obj["kind"]
                log.info(
                    "%s/%s: applying %s %s",
                    observed.namespace,
                    observed.name,
                    kind,
                    action.obj["metadata"]["name"],
                )
                await self._cluster.apply(action)
            case Delete():
                kind = "ServingRuntime"
                await self._cluster.delete_runtime(observed.namespace, action)
            case Scale():
                kind = "Scale"
                log.info("%s/%s: replicas → %d", observed.namespace, observed.name, action.replicas)
                await self._cluster.scale(observed.namespace, observed.name, action)
        self._telemetry.writes.labels(kind).inc()

    # Scaling

    async def _autoscale(self, spec: LLMDeploymentSpec, observed: Observed, memory: Memory) -> float | None:
        """Scrape, decide, and write one step. Returns when to look again if that is sooner than usual."""
        self._gauges(observed)
        if spec.suspend:
            memory.decision, memory.restore = None, 0  # serving again begins from the minimum
        if spec.suspend or observed.deployment is None:
            memory.readings = {}
            return None
        now = self._clock()
        waiting = memory.marked is not None and now - memory.marked[1] >= self._settings.victim_wait
        if now - memory.scraped_at < self._settings.autoscale_interval * 0.9 and not waiting:
            return None
        memory.scraped_at = now
        before, memory.readings = memory.readings, await self._scraper.read(scaling.addresses(observed))
        self._count_failures(observed, memory)
        if spec.autoscaling.mode != "Builtin" and memory.marked is not None:
            await self._mark(observed, None)
            memory.marked = None
        if spec.autoscaling.mode == "Disabled":
            memory.decision = None
            return None
        samples = scaling.samples(observed, memory.readings, before)
        return await self._decide(spec, observed, memory, samples, now)

    async def _decide(
        self, spec: LLMDeploymentSpec, observed: Observed, memory: Memory, samples: Samples, now: float
    ) -> float | None:
        decision = decide(scaling.policy(spec.autoscaling), samples, memory.history, now)
        decision = scaling.restored(decision, self._to_restore(spec, observed, memory), spec.autoscaling)
        memory.history, memory.decision = decision.history, decision
        self._telemetry.desired.labels(observed.namespace, observed.name).set(decision.desired)
        for signal in decision.signals:
            self._telemetry.signal.labels(observed.namespace, observed.name, signal.type).set(signal.value)
        if spec.autoscaling.mode != "Builtin":
            return None
        return await self._step(observed, memory, decision.desired, now)

    def _to_restore(self, spec: LLMDeploymentSpec, observed: Observed, memory: Memory) -> int:
        """What the Deployment had before KServe made it anew, with one replica; 0 if it has its count."""
        uid = str((observed.deployment or {})["metadata"]["uid"])
        if memory.restore is None:  # whoever decided before us may have gone just then; its last word is kept
            memory.restore = int(observed.status.get("autoscaling", {}).get("desired", 0))
        elif memory.deployment_uid not in (None, uid) and memory.decision is not None:
            memory.restore = memory.decision.desired
        memory.deployment_uid = uid
        reached = (observed.replicas or 0) >= min(memory.restore, spec.autoscaling.max_replicas)
        if reached or spec.autoscaling.mode != "Builtin":
            memory.restore = 0
        return memory.restore

    async def _step(self, observed: Observed, memory: Memory, desired: int, now: float) -> float | None:
        """Up at once; down one replica at a time, and only while one ReplicaSet is live."""
        current = observed.replicas
        if current is None or desired >= current:
            memory.marked = None
            await self._mark(observed, None)
            if current is not None and desired > current:
                return await self._scale(observed, memory, desired, now)
            return None
        if observed.rolling or len(observed.live_pods) > current:
            return None  # an earlier step is still on its way
        pod, needs_mark = scaling.victim(observed, memory.readings)
        if needs_mark and (memory.marked is None or memory.marked[0] != pod):
            await self._mark(observed, pod)
            memory.marked, memory.dirty = (pod, now), True
            return self._settings.victim_wait
        if needs_mark and memory.marked and now - memory.marked[1] < self._settings.victim_wait:
            return self._settings.victim_wait
        memory.marked = None
        return await self._scale(observed, memory, current - 1, now)

    async def _scale(self, observed: Observed, memory: Memory, replicas: int, now: float) -> float | None:
        """Write the count. Returns when to try again if the Deployment is no longer the one observed."""
        memory.dirty = True
        version = (observed.deployment or {})["metadata"]["resourceVersion"]
        try:
            async with self._lease.writing():
                await self._act(observed, Scale(replicas, version))
        except ApiError as error:
            if not _changed_meanwhile(error):
                raise
            log.info(
                "%s/%s: the Deployment changed meanwhile, looking again", observed.namespace, observed.name
            )
            memory.scraped_at = float("-inf")
            return CONFLICT_RETRY
        memory.history = memory.history.applied(now, observed.replicas or 0, replicas)
        return None

    async def _mark(self, observed: Observed, victim: str | None) -> None:
        """Give `victim` the deletion cost and take it from every other pod."""
        for pod in observed.live_pods:
            name = pod_name(pod)
            cost = pod["metadata"].get("annotations", {}).get(names.DELETION_COST)
            wanted = scaling.VICTIM_COST if name == victim else None
            if cost == wanted or (wanted is None and cost != scaling.VICTIM_COST):
                continue
            try:
                async with self._lease.writing():
                    await self._cluster.set_deletion_cost(observed.namespace, name, wanted)
                self._telemetry.writes.labels("Pod").inc()
            except ApiError as error:
                if error.code != 404:
                    raise

    def _gauges(self, observed: Observed) -> None:
        key = (observed.namespace, observed.name)
        self._telemetry.replicas.labels(*key).set(observed.replicas or 0)
        self._telemetry.ready.labels(*key).set(len(observed.ready_pods))

    def _count_failures(self, observed: Observed, memory: Memory) -> None:
        for pod, answer in memory.readings.items():
            if isinstance(answer, str):
                log.info("%s/%s: no metrics from pod %s: %s", observed.namespace, observed.name, pod, answer)
                self._telemetry.scrape_failures.labels(observed.namespace, observed.name).inc()

    # Reporting

    async def _report(self, spec: LLMDeploymentSpec, memory: Memory, plan: Plan, applied: bool) -> None:
        observed = memory.observed
        assert observed is not None
        before = observed.status
        now = datetime.now(UTC)
        capacity = scaling.capacity(memory.readings, before.get("capacity"))
        situation = conditions.Situation(
            spec, observed, plan.revision, plan.problem, applied, capacity, memory.decision
        )
        status = build_status(situation, now)
        if memory.decision is not None:
            status["autoscaling"] = scaling.status(memory.decision, observed, now)
        elif spec.autoscaling.mode != "Disabled" and "autoscaling" in before:
            status["autoscaling"] = before["autoscaling"]
        await self._write_status(observed, status)

    async def _write_status(self, observed: Observed, status: Json) -> None:
        if status == observed.status:
            return
        async with self._lease.writing():
            await self._cluster.apply_status(observed, status)
        self._telemetry.writes.labels("Status").inc()
        await self._recorder.changes(observed, status)
        observed.owner["status"] = status

    async def _refuse(self, observed: Observed, error: ValidationError) -> None:
        """A spec that the schema lets through but this operator cannot read, e.g. of a newer version."""
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = Problem("InvalidSpec", problems.clip(f"spec.{where}: {first['msg']}"))
        spec = LLMDeploymentSpec.model_construct()
        situation = conditions.Situation(spec, observed, None, problem, applied=False)
        await self._write_status(observed, build_status(situation, datetime.now(UTC)))


def _identity(metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    return metadata.get("uid"), metadata.get("generation"), metadata.get("deletionTimestamp")


def _changed_meanwhile(error: ApiError | Unreachable) -> bool:
    """Whether a write of /scale failed because the Deployment is not the observed one any more."""
    return isinstance(error, ApiError) and error.code in (404, 409)
