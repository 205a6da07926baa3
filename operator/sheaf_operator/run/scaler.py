"""Scaling one LLMDeployment: read its pods' metrics, decide, and write one step. `decide` decides."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError
from sheaf_operator.cluster.lease import Lease
from sheaf_operator.cluster.observed import Observed, pod_name
from sheaf_operator.cluster.scrape import Scraper
from sheaf_operator.desired.actions import Scale
from sheaf_operator.run.apply import Executor, changed_meanwhile
from sheaf_operator.run.memory import Memory
from sheaf_operator.run.telemetry import Telemetry
from sheaf_operator.scaling import policy, samples, victim
from sheaf_operator.scaling.decide import History, decide, restored
from sheaf_operator.scaling.external import follow
from sheaf_operator.scaling.samples import Samples
from sheaf_operator.settings import Settings

log = logging.getLogger(__name__)
WRITES = ("Builtin", "External")  # modes in which the count is written one step at a time
CONFLICT_RETRY = 0.5  # after the Deployment changed between reading and writing


class Scaler:
    def __init__(
        self,
        cluster: Cluster,
        scraper: Scraper,
        lease: Lease,
        executor: Executor,
        telemetry: Telemetry,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._cluster, self._scraper, self._lease, self._executor = cluster, scraper, lease, executor
        self._telemetry, self._settings, self._clock = telemetry, settings, clock

    async def run(self, spec: LLMDeploymentSpec, observed: Observed, memory: Memory) -> float | None:
        """Scrape, decide, and write one step. Returns when to look again if that is sooner than usual."""
        self._count_replicas(observed)
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
        before, memory.readings = memory.readings, await self._scraper.read(samples.addresses(observed))
        self._count_scrapes(observed, memory)
        if spec.autoscaling.mode not in WRITES and memory.marked is not None:
            await self._mark(observed, None)
            memory.marked = None
        if spec.autoscaling.mode == "Disabled":
            memory.decision = None
            return None
        if spec.autoscaling.mode == "External":
            memory.decision = follow(spec, observed.replicas or 0)
            memory.history = History()
            self._telemetry.desired.labels(observed.namespace, observed.name).set(memory.decision.desired)
            return await self._step(observed, memory, memory.decision.desired, now)
        measured = samples.of_replicas(observed, memory.readings, before)
        return await self._decide(spec, observed, memory, measured, now)

    async def _decide(
        self, spec: LLMDeploymentSpec, observed: Observed, memory: Memory, measured: Samples, now: float
    ) -> float | None:
        memory.policy = memory.policy or policy.of_spec(spec.autoscaling)
        decision = decide(memory.policy, measured, memory.history, now)
        decision = restored(decision, self._to_restore(spec, observed, memory), spec.autoscaling)
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
        pod, needs_mark = victim.choose(observed, memory.readings)
        if needs_mark and (memory.marked is None or memory.marked[0] != pod):
            await self._mark(observed, pod)
            memory.marked, memory.dirty = (pod, now), True
            return self._settings.victim_wait
        if needs_mark and memory.marked and now - memory.marked[1] < self._settings.victim_wait:
            return self._settings.victim_wait
        memory.marked = None
        return await self._scale(observed, memory, current - 1, now)

    async def _scale(self, observed: Observed, memory: Memory, replicas: int, now: float) -> float | None:
        """Write the count. Returns when to try again if the Deployment is no longer the one observed, or if
        somebody else writes it all the time.
        """
        action = Scale(replicas)
        if rest := memory.contest.rest(action, now):
            return min(rest, self._settings.autoscale_interval)
        memory.dirty = True
        try:
            await self._executor.act(observed, action)
        except ApiError as error:
            if not changed_meanwhile(error):
                raise
            log.info(
                "%s/%s: the Deployment changed meanwhile, looking again", observed.namespace, observed.name
            )
            memory.scraped_at = float("-inf")
            return CONFLICT_RETRY
        memory.contest = memory.contest.wrote(action, now)
        memory.history = memory.history.applied(now, observed.replicas or 0, replicas)
        return None

    async def _mark(self, observed: Observed, chosen: str | None) -> None:
        """Give `chosen` the deletion cost and take it from every other pod."""
        for pod in observed.live_pods:
            name = pod_name(pod)
            cost = pod["metadata"].get("annotations", {}).get(names.DELETION_COST)
            wanted = victim.COST if name == chosen else None
            if cost == wanted or (wanted is None and cost != victim.COST):
                continue
            try:
                async with self._lease.writing():
                    await self._cluster.set_deletion_cost(pod, wanted)
                self._telemetry.writes.labels("Pod").inc()
            except ApiError as error:
                if error.code not in (404, 409):  # gone, and perhaps another one in its place
                    raise

    def _count_replicas(self, observed: Observed) -> None:
        series = self._telemetry.of(observed.namespace, observed.name)
        series.replicas.set(observed.replicas or 0)
        series.ready.set(len(observed.ready_pods))

    def _count_scrapes(self, observed: Observed, memory: Memory) -> None:
        failures = {pod: words for pod, words in memory.readings.items() if isinstance(words, str)}
        for pod, words in failures.items():
            log.info("%s/%s: no metrics from pod %s: %s", observed.namespace, observed.name, pod, words)
        series = self._telemetry.of(observed.namespace, observed.name)
        series.scrapes.inc(len(memory.readings))
        series.scrape_failures.inc(len(failures))
