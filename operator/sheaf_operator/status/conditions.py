"""The conditions of an LLMDeployment, in kstatus's sense. Pure.

Ready        at least one pod that serves; not KServe's Ready, which turns False while a scale-up loads.
Reconciling  the spec is being rolled out. Follows changes of the spec, never the autoscaler.
Stalled      somebody has to do something; the reason says what.
Fits         whether the model fits the accelerator, once a replica has measured it.
AutoscalingActive  whether the scaler decides on fresh measurements.
"""

from __future__ import annotations

from collections.abc import Callable

from sheaf_operator.api import quantity
from sheaf_operator.api.quantity import human_replicas
from sheaf_operator.api.status import CONDITION_TYPES
from sheaf_operator.cluster.observed import Json
from sheaf_operator.problems.problem import Problem
from sheaf_operator.problems.terminating import of_terminating
from sheaf_operator.status.autoscaling import stamp
from sheaf_operator.status.progress import progress
from sheaf_operator.status.rollout import contested, given_up, image_current, rolled_back
from sheaf_operator.status.situation import MAX_TEXT, Situation, State, told


def ready(s: Situation) -> State:
    if s.spec.suspend:
        return State("False", "Suspended", "spec.suspend is true: set it to false to serve again")
    total = s.observed.replicas or 0
    if s.ready:
        if s.current_ready == 0 or s.back:
            return State(
                "True",
                "ServingPreviousRevision",
                f"{human_replicas(s.ready)} of an earlier revision still serve",
            )
        return State("True", "Serving", f"{s.ready} of {human_replicas(total)} ready")
    if problem := s.problem or s.pod_problem:
        return told("False", problem)
    if total == 0 and s.observed.deployment is not None:
        return State("False", "ScaledToZero", "the number of replicas is 0: raise spec.replicas to serve")
    return State("False", "Progressing", progress(s.observed))


def reconciling(s: Situation) -> State:
    blocked = _standstill(s)
    if blocked:  # kstatus: a thing that waits for somebody is not in progress
        return told("False", blocked)
    if s.spec.suspend:
        pods = len(s.observed.pods)
        if pods:
            return State("True", "Stopping", f"{pods} pods are finishing their requests")
        return State("False", "Suspended")
    if s.problem is not None:
        return told("True", s.problem)
    if s.spec.rollout.paused and s.revision and not s.revision.serves(s.spec):
        return State("False", "RolloutPaused", "the spec differs from what runs: rollout.paused is true")
    if not s.rolled_out:
        if s.pod_problem:
            return told("True", s.pod_problem)
        if s.old_pods:
            return State("True", "RollingOut", f"{s.old_pods} pods of an earlier revision are still there")
        return State("True", "Progressing", progress(s.observed))
    return State("False", "UpToDate", "every pod runs the present revision")


def stalled(s: Situation) -> State:
    problem = _standstill(s)
    return told("True", problem) if problem else State("False", "Healthy")


def _standstill(s: Situation) -> Problem | None:
    """What waits for somebody.

    The pods' problems count while the spec is being rolled out or nothing serves; see `autoscaling_active`.
    """
    problem = s.problem or (given_up(s) if s.back else None)
    if problem is None and s.spec.suspend:
        problem = of_terminating(list(s.observed.pods), s.now)
    elif problem is None and (s.ready == 0 or not s.rolled_out):
        problem = s.pod_problem
    return problem if problem and s.stands(problem) else None


def fits(s: Situation) -> State:
    capacity = s.capacity or {}
    weights, tokens = capacity.get("weightsBytes"), capacity.get("kvCacheTokens")
    if weights is None or tokens is None:
        problem = s.pod_problem
        if problem and problem.reason in ("OutOfMemory", "DeviceOutOfMemory"):
            return told("False", problem)
        return State("Unknown", "NotMeasured", "known once a replica has loaded the model")
    measured = f"weights {quantity.human_bytes(weights)}, room for {tokens} tokens of KV cache"
    accelerator = s.spec.accelerator
    if accelerator.memory and accelerator.count:
        room = int(quantity.value(accelerator.memory)) * accelerator.count
        if weights > room:
            message = f"{measured}, but accelerator.memory says {quantity.human_bytes(room)}"
            return told("False", Problem("WeightsExceedMemory", message))
    longest = s.spec.engine.max_model_len
    if longest and tokens < longest:
        message = f"{measured}: less than one sequence of maxModelLen {longest}"
        return told("False", Problem("KVCacheTooSmall", message))
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
        return told("False", problem, "a further replica cannot serve: ")
    if s.decision.limiting in ("MissingSamples", "NoReadyReplica", "NoExternalCount"):
        return State("False", s.decision.limiting, s.decision.reason)
    if policy.mode == "Advisory":
        return State("True", "Advisory", "decides and reports, but leaves the count alone")
    if policy.mode == "External":
        return State("True", "External", "follows spec.replicas, which another scaler writes through /scale")
    return State("True", "Scaling", "decides on fresh measurements")


_RULES: dict[str, Callable[[Situation], State | None]] = {
    "Ready": ready,
    "Reconciling": reconciling,
    "Stalled": stalled,
    "Fits": fits,
    "AutoscalingActive": autoscaling_active,
    "ImageCurrent": image_current,
    "RolledBack": rolled_back,
    "Contested": contested,
}


def conditions(s: Situation) -> list[Json]:
    """All conditions, in a fixed order. Transition times move only with the status."""
    before = {c["type"]: c for c in s.observed.status.get("conditions", [])}
    result = []
    for kind in CONDITION_TYPES:
        state = _RULES[kind](s)
        if state is None:
            continue
        old = before.get(kind)
        same = old is not None and old.get("status") == state.status
        result.append(
            {
                "type": kind,
                "status": state.status,
                "reason": state.reason,
                "message": state.message[:MAX_TEXT],
                "observedGeneration": s.observed.generation,
                "lastTransitionTime": old["lastTransitionTime"] if same and old else stamp(s.now),
            }
        )
    return result
