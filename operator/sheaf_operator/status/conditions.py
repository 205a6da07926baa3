"""The conditions of an LLMDeployment, in kstatus's sense. Pure.

Ready        at least one pod that serves; not KServe's Ready, which turns False while a scale-up loads.
Reconciling  the spec is being rolled out. Follows changes of the spec, never the autoscaler.
Stalled      somebody has to do something; the reason says what.
Fits         whether the model fits the accelerator, once a replica has measured it.
AutoscalingActive  whether the scaler decides on fresh measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sheaf_operator.api import quantity
from sheaf_operator.api.quantity import human_replicas
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.api.status import CONDITION_TYPES
from sheaf_operator.cluster.observed import Json, Observed, main_container, revision_of
from sheaf_operator.desired.revision import Revision
from sheaf_operator.problems.deployment import of_deployment
from sheaf_operator.problems.pod import worst
from sheaf_operator.problems.problem import Problem, clip
from sheaf_operator.scaling.decide import Decision

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class State:
    status: Status
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Situation:
    """All that the conditions depend on. `problem` is what stopped the plan or the last write."""

    spec: LLMDeploymentSpec
    observed: Observed
    revision: Revision | None
    problem: Problem | None = None
    applied: bool = True  # the plan had nothing left to write
    capacity: Json | None = None
    decision: Decision | None = None

    @property
    def ready(self) -> int:
        return len(self.observed.ready_pods)

    @property
    def current_ready(self) -> int:
        wanted = self.revision.hash if self.revision else None
        return sum(revision_of(pod) == wanted for pod in self.observed.ready_pods)

    @property
    def old_pods(self) -> int:
        wanted = self.revision.hash if self.revision else None
        return sum(revision_of(pod) != wanted for pod in self.observed.live_pods)

    @property
    def rolled_out(self) -> bool:
        """The present revision has served or is to have no pod, and no pod of another one is left."""
        served = self.current_ready > 0 or self._has_served or self.observed.replicas == 0
        return self.applied and not self.old_pods and served

    @property
    def _has_served(self) -> bool:
        """Whether the status says that this very revision was ready before: it has been rolled out."""
        status = self.observed.status
        return bool(
            self.revision
            and status.get("revision") == self.revision.hash
            and any(p.get("phase") == "Ready" for p in status.get("timeline", []))
        )

    @property
    def pod_problem(self) -> Problem | None:
        """What keeps pods of the present revision from serving."""
        wanted = self.revision.hash if self.revision else None
        pods = [pod for pod in self.observed.live_pods if revision_of(pod) == wanted]
        found = worst(pods, self.spec.accelerator.resource_name)
        return found or of_deployment(self.observed.deployment)


def ready(s: Situation) -> State:
    if s.spec.suspend:
        return State("False", "Suspended", "spec.suspend is true: set it to false to serve again")
    total = s.observed.replicas or 0
    if s.ready:
        if s.current_ready == 0:
            return State(
                "True",
                "ServingPreviousRevision",
                f"{human_replicas(s.ready)} of an earlier revision still serve",
            )
        return State("True", "Serving", f"{s.ready} of {human_replicas(total)} ready")
    if problem := s.problem or s.pod_problem:
        return State("False", problem.reason, problem.message)
    if total == 0 and s.observed.deployment is not None:
        return State("False", "ScaledToZero", "the number of replicas is 0: raise spec.replicas to serve")
    return State("False", "Progressing", _progress(s))


def _progress(s: Situation) -> str:
    if s.observed.inference_service is None:
        return "creating the InferenceService"
    if s.observed.deployment is None:
        return "waiting for KServe to create the Deployment" + _kserve_says(s.observed)
    pods = s.observed.live_pods
    if not pods:
        return "waiting for the first pod"
    if any("running" in main_container(pod).get("state", {}) for pod in pods):
        return "the model is being loaded"
    return "the pod is starting"


def _kserve_says(observed: Observed) -> str:
    """KServe's own complaint, if it has one."""
    status = (observed.inference_service or {}).get("status", {})
    failure = status.get("modelStatus", {}).get("lastFailureInfo", {}).get("message")
    messages = [failure] + [
        c.get("message")
        for c in status.get("conditions", [])
        if c.get("status") == "False" and c.get("reason") not in (None, "Stopped")
    ]
    said = next((m for m in messages if m), None)
    return f" (KServe: {clip(said, 300)})" if said else ""


def reconciling(s: Situation) -> State:
    if s.spec.suspend:
        pods = len(s.observed.pods)
        if pods:
            return State("True", "Stopping", f"{pods} pods are finishing their requests")
        return State("False", "Suspended")
    blocked = stalled(s)
    if blocked.status == "True":  # kstatus: a thing that waits for somebody is not in progress
        return State("False", blocked.reason, blocked.message)
    if s.problem is not None:
        return State("True", s.problem.reason, s.problem.message)
    if s.spec.rollout.paused and s.revision and not s.revision.serves(s.spec):
        return State("False", "RolloutPaused", "the spec differs from what runs: rollout.paused is true")
    if not s.rolled_out:
        if s.old_pods:
            return State("True", "RollingOut", f"{s.old_pods} pods of an earlier revision are still there")
        return State("True", "Progressing", _progress(s))
    return State("False", "UpToDate", "every pod runs the present revision")


def stalled(s: Situation) -> State:
    """The pods' problems count only while the spec is being rolled out: see `autoscaling_active`."""
    problem = s.problem
    if problem is None and not s.spec.suspend and (s.ready == 0 or not s.rolled_out):
        problem = s.pod_problem
    if problem is not None and problem.reason not in ("WaitingForDeletion", "ApplyFailed"):
        return State("True", problem.reason, problem.message)
    return State("False", "Healthy")


def fits(s: Situation) -> State:
    capacity = s.capacity or {}
    weights, tokens = capacity.get("weightsBytes"), capacity.get("kvCacheTokens")
    if weights is None or tokens is None:
        problem = s.pod_problem
        if problem and problem.reason == "OutOfMemory":
            return State("False", problem.reason, problem.message)
        return State("Unknown", "NotMeasured", "known once a replica has loaded the model")
    measured = f"weights {quantity.human_bytes(weights)}, room for {tokens} tokens of KV cache"
    accelerator = s.spec.accelerator
    if accelerator.memory and accelerator.count:
        room = int(quantity.value(accelerator.memory)) * accelerator.count
        if weights > room:
            message = f"{measured}, but accelerator.memory says {quantity.human_bytes(room)}"
            return State("False", "WeightsExceedMemory", f"{message}: correct it or take larger devices")
    longest = s.spec.engine.max_model_len
    if longest and tokens < longest:
        message = f"{measured}: less than one sequence of maxModelLen {longest}"
        return State("False", "KVCacheTooSmall", f"{message}; lower engine.maxModelLen")
    return State("True", "Measured", measured)


def autoscaling_active(s: Situation) -> State:
    policy = s.spec.autoscaling
    if s.spec.suspend:
        return State("False", "Suspended")
    if policy.mode == "Disabled":
        return State("False", "Disabled", "autoscaling.mode is Disabled")
    if s.decision is None:
        return State("Unknown", "NotStarted", "no decision yet: no replica has been ready")
    problem = s.pod_problem
    if problem is not None and s.ready and s.rolled_out:
        return State("False", problem.reason, f"a further replica cannot serve: {problem.message}")
    if s.decision.limiting in ("MissingSamples", "NoReadyReplica"):
        return State("False", s.decision.limiting, s.decision.reason)
    if policy.mode == "Advisory":
        return State("True", "Advisory", "decides and reports, but leaves the count alone")
    return State("True", "Scaling", "decides on fresh measurements")


_RULES = {
    "Ready": ready,
    "Reconciling": reconciling,
    "Stalled": stalled,
    "Fits": fits,
    "AutoscalingActive": autoscaling_active,
}


def conditions(s: Situation, now: str) -> list[Json]:
    """All conditions, in a fixed order. Transition times move only with the status; `now` is RFC 3339."""
    before = {c["type"]: c for c in s.observed.status.get("conditions", [])}
    result = []
    for kind in CONDITION_TYPES:
        state = _RULES[kind](s)
        old = before.get(kind)
        same = old is not None and old.get("status") == state.status
        result.append(
            {
                "type": kind,
                "status": state.status,
                "reason": state.reason,
                "message": state.message[:1000],
                "observedGeneration": s.observed.generation,
                "lastTransitionTime": old["lastTransitionTime"] if same and old else now,
            }
        )
    return result
