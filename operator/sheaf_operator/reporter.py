"""Writing an LLMDeployment's status, and the Events for what has changed in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from sheaf_operator import conditions, problems, scaling
from sheaf_operator.api import LLMDeploymentSpec
from sheaf_operator.cluster import Cluster
from sheaf_operator.lease import Lease
from sheaf_operator.memory import Memory
from sheaf_operator.observed import Json, Observed
from sheaf_operator.plan import Plan
from sheaf_operator.problems import Problem
from sheaf_operator.recorder import Recorder
from sheaf_operator.report import build_status
from sheaf_operator.telemetry import Telemetry


class Reporter:
    def __init__(
        self, cluster: Cluster, lease: Lease, telemetry: Telemetry, clock: Callable[[], float]
    ) -> None:
        self._cluster, self._lease, self._telemetry = cluster, lease, telemetry
        self._recorder = Recorder(cluster, clock)

    async def report(self, spec: LLMDeploymentSpec, memory: Memory, plan: Plan, applied: bool) -> None:
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
        await self._write(observed, status)

    async def refuse(self, observed: Observed, error: ValidationError) -> None:
        """A spec that the schema lets through but this operator cannot read, e.g. of a newer version."""
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = Problem("InvalidSpec", problems.clip(f"spec.{where}: {first['msg']}"))
        spec = LLMDeploymentSpec.model_construct()
        situation = conditions.Situation(spec, observed, None, problem, applied=False)
        await self._write(observed, build_status(situation, datetime.now(UTC)))

    async def _write(self, observed: Observed, status: Json) -> None:
        if status == observed.status:
            return
        async with self._lease.writing():
            await self._cluster.apply_status(observed, status)
        self._telemetry.writes.labels("Status").inc()
        await self._recorder.changes(observed, status)
        observed.owner["status"] = status
