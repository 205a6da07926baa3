"""Writing an LLMDeployment's status, and the Events for what has changed in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError
from sheaf_operator.cluster.lease import Lease
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.desired.actions import Plan
from sheaf_operator.problems.problem import Problem, clip
from sheaf_operator.run.events import Events
from sheaf_operator.run.memory import Memory, Said
from sheaf_operator.run.telemetry import Telemetry
from sheaf_operator.scaling.samples import capacity_of
from sheaf_operator.status import adapters as adapter_status
from sheaf_operator.status import autoscaling
from sheaf_operator.status.build import build_status
from sheaf_operator.status.situation import Situation

log = logging.getLogger(__name__)
RESAY = 600.0  # seconds after which a status is written again of which the API server has kept less


class Reporter:
    def __init__(
        self,
        cluster: Cluster,
        lease: Lease,
        telemetry: Telemetry,
        domain: str,
        clock: Callable[[], float],
        patience: timedelta,
    ) -> None:
        self._cluster, self._lease, self._telemetry = cluster, lease, telemetry
        self._clock = clock
        self._domain, self._patience = domain, patience
        self._events = Events(cluster, clock)

    async def report(self, spec: LLMDeploymentSpec, memory: Memory, plan: Plan, applied: bool) -> None:
        observed = memory.observed
        assert observed is not None
        before = observed.status
        now = datetime.now(UTC)
        capacity = capacity_of(memory.readings, before.get("capacity"))
        contest = memory.contest.problem(self._clock())
        decision = memory.decision
        adapters = adapter_status.build(spec, observed, memory.readings)
        told = (
            capacity,
            contest,
            adapters,
            decision and (decision.desired, decision.limiting, decision.reason),
        )
        if memory.resting and observed is memory.told_of and told == memory.told:
            return
        situation = Situation(
            spec,
            observed,
            plan.revision,
            now,
            plan.problem,
            applied,
            capacity,
            memory.decision,
            self._patience,
            memory.progress,
            contest,
        )
        memory.settled = situation.settled
        memory.resting = memory.settled and len(observed.ready_pods) == len(observed.pods)
        status = build_status(situation, self._domain)
        if adapters:
            status["adapters"] = adapters
        if memory.decision is not None:
            status["autoscaling"] = autoscaling.build(memory.decision, observed, now)
        elif spec.autoscaling.mode != "Disabled" and "autoscaling" in before:
            status["autoscaling"] = before["autoscaling"]
        await self._write(observed, status, memory)
        memory.told, memory.told_of = told, memory.observed

    async def refuse(self, observed: Observed, error: ValidationError, memory: Memory) -> None:
        """A spec that the schema lets through but this operator cannot read, e.g. of a newer version."""
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = Problem("InvalidSpec", clip(f"spec.{where}: {first['msg']}"))
        spec = LLMDeploymentSpec.model_construct()
        situation = Situation(spec, observed, None, datetime.now(UTC), problem, applied=False)
        await self._write(observed, build_status(situation, self._domain), memory)

    async def _write(self, observed: Observed, status: Json, memory: Memory) -> None:
        """Said once, also when refused: a CRD older than this operator may refuse it or keep less of it, and
        that is no reason to scale any later, nor to write the same for ever. What an API server cannot take
        just now is said again at the next look.
        """
        for condition in status["conditions"]:
            series = self._telemetry.condition.labels(observed.namespace, observed.name, condition["type"])
            series.set(condition["status"] == "True")
        if status == observed.status:
            return
        memory.observed = replace(observed, owner={**observed.owner, "status": status})
        now, said = self._clock(), memory.said
        if said and (said.status, said.kept) == (status, observed.status) and now - said.at < RESAY:
            return
        memory.said = None
        try:
            async with self._lease.writing():
                answer = await self._cluster.write_status(observed, status)
            memory.said = Said(status, answer.get("status", {}), now)
        except ApiError as error:
            if error.refused:
                memory.said = Said(status, observed.status, now)
            else:
                memory.dirty = True
            words = "%s/%s: the API server refused the status (is the CRD of this release installed?): %s"
            log.warning(words, observed.namespace, observed.name, error.message)
            return
        self._telemetry.writes.labels("Status").inc()
        await self._events.changes(observed, status)
