"""Writing an LLMDeployment's children: each action of a plan, with the Lease checked before it."""

from __future__ import annotations

import logging
from dataclasses import replace

from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.lease import Lease
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.desired.actions import Action, Apply, Delete, Plan, Scale
from sheaf_operator.problems.write import of_write
from sheaf_operator.run.memory import Memory
from sheaf_operator.run.telemetry import Telemetry

log = logging.getLogger(__name__)


class Executor:
    def __init__(self, cluster: Cluster, lease: Lease, telemetry: Telemetry) -> None:
        self._cluster, self._lease, self._telemetry = cluster, lease, telemetry

    async def execute(
        self, observed: Observed, plan: Plan, memory: Memory, now: float
    ) -> tuple[Plan, ApiError | Unreachable | None]:
        """Carry out the plan in order. An action that fails ends it; the problem becomes part of the plan."""
        memory.contest = memory.contest.look(observed, plan.actions, now)
        rests = [memory.contest.rest(action, now) for action in plan.actions]
        due = tuple(action for action, rest in zip(plan.actions, rests, strict=True) if not rest)
        plan = replace(plan, actions=due)
        memory.look_at = min([memory.look_at, *(now + rest for rest in rests if rest)])
        for action in plan.actions:
            try:
                answer = await self.act(observed, action)
                memory.contest = memory.contest.wrote(action, now, answer)
            except (ApiError, Unreachable) as error:
                if isinstance(action, Scale) and changed_meanwhile(error):
                    memory.dirty = True
                    return plan, None
                created = action.obj if isinstance(action, Apply) and action.create else None
                problem = of_write(error, created)
                memory.dirty = True
                retry = None if problem.reason in ("NameConflict", "KServeMissing") else error
                return replace(plan, problem=problem), retry
        return plan, None

    async def act(self, observed: Observed, action: Action) -> Json | None:
        """One write. Returns the object that was applied, as it is then. Raises what the API server or the
        Lease says.
        """
        where, answer = f"{observed.namespace}/{observed.name}", None
        async with self._lease.writing():
            match action:
                case Apply():
                    kind = str(action.obj["kind"])
                    log.info("%s: applying %s %s", where, kind, action.obj["metadata"]["name"])
                    if action.create:  # the child of one that is gone would be in its namesake's way
                        await self._cluster.confirm(observed)
                    uid = None if action.create else observed.uid_of(action.obj)
                    answer = await self._cluster.apply(action.obj, uid)
                case Delete():
                    kind = action.kind
                    log.info("%s: deleting %s %s", where, kind, action.name)
                    await self._cluster.delete(kind, observed.namespace, action.name, action.uid)
                case Scale():
                    kind = "Scale"
                    log.info("%s: replicas → %d", where, action.replicas)
                    assert observed.deployment is not None
                    await self._cluster.scale(observed.deployment, action.replicas)
        self._telemetry.writes.labels(kind).inc()
        return answer


def changed_meanwhile(error: ApiError | Unreachable) -> bool:
    """Whether a write of /scale failed because the Deployment is not the observed one any more."""
    return isinstance(error, ApiError) and error.code in (404, 409)
