"""How a change reaches the pods: which old pod may stop before its successor serves. Pure.

Auto surges. It gives up an old pod only when the new one has lacked for a while just what each old pod holds,
and when others serve on; else it waits and says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed, condition, is_ready, revision_of
from sheaf_operator.desired import render
from sheaf_operator.desired.drift import covers
from sheaf_operator.desired.revision import Revision
from sheaf_operator.desired.room import would_free
from sheaf_operator.problems.deployment import of_deployment
from sheaf_operator.problems.pod import of_pod
from sheaf_operator.problems.problem import Lack, Problem


@dataclass(frozen=True)
class Want:
    """What the new pods of a revision lack, and since when that has been seen."""

    revision: str
    lacks: tuple[Lack, ...]
    since: datetime


@dataclass(frozen=True)
class Rollout:
    """`waits`: why it stands still until somebody brings room; `again`: seconds until it may go on."""

    strategy: render.Strategy
    want: Want | None = None
    waits: Problem | None = None
    again: float | None = None


def choose_strategy(
    spec: LLMDeploymentSpec, observed: Observed, wanted: Revision, now: datetime, seen: Want | None = None
) -> Rollout:
    """`seen` is the `want` of the last answer: how long something has been lacking is known from it alone, as
    a pod can be unschedulable for one reason first and for another one later.
    """
    if spec.rollout.strategy != "Auto":
        return Rollout(spec.rollout.strategy)
    live = observed.live_pods
    old = [pod for pod in live if revision_of(pod) != wanted.hash]
    if not old:
        return Rollout("Surge")
    safe = _others_serve(observed, old, now, spec.rollout.patience_seconds)
    missing = _missing(spec, observed, wanted, now)
    if missing is None:
        # Once begun it goes on until no old pod is left, so that the strategy does not flap.
        return Rollout("GiveUpFirst" if safe and _gives_up(observed) else "Surge")
    problem, said = missing
    want = Want(wanted.hash, problem.lacks, now)
    if seen is not None and (seen.revision, seen.lacks) == (want.revision, want.lacks):
        want = seen
    if not all(would_free(pod, problem.lacks, wanted, live, said) for pod in old):
        return Rollout("Surge", want)
    if not safe:
        return Rollout("Surge", want, _needs_capacity(problem))
    left = want.since + timedelta(seconds=spec.rollout.patience_seconds) - now
    if left > timedelta() and not _gives_up(observed):
        return Rollout("Surge", want, again=left.total_seconds())
    return Rollout("GiveUpFirst", want)


def _missing(
    spec: LLMDeploymentSpec, observed: Observed, wanted: Revision, now: datetime
) -> tuple[Problem, str] | None:
    """What keeps a pod of the wanted revision from its place, with the scheduler's own words."""
    for pod in observed.live_pods:
        if revision_of(pod) == wanted.hash:
            problem = of_pod(pod, spec.accelerator.resource_name, now, observed.events)
            if problem and problem.lacks:
                return problem, (condition(pod, "PodScheduled") or {}).get("message", "")
    problem = of_deployment(observed.deployment, observed.replica_sets)
    return (problem, "") if problem and problem.lacks else None


def _others_serve(observed: Observed, old: list[Json], now: datetime, patience: int) -> bool:
    """Whether a pod that serves remains. With two replicas or more the Deployment sees to it: it keeps all
    but one available. With one it ends the old pod, so that one must have been silent for long.
    """
    if (observed.replicas or 0) > 1:
        return True
    return not any(is_ready(pod) for pod in observed.live_pods) and all(
        _silent_since(pod) + timedelta(seconds=patience) <= now for pod in old
    )


def _silent_since(pod: Json) -> datetime:
    turned = (condition(pod, "Ready") or {}).get("lastTransitionTime")
    return datetime.fromisoformat(turned or pod["metadata"]["creationTimestamp"])


def _gives_up(observed: Observed) -> bool:
    live: Json = (observed.inference_service or {}).get("spec", {}).get("predictor", {})
    return covers(live.get("deploymentStrategy"), render.STRATEGIES["GiveUpFirst"])


def _needs_capacity(problem: Problem) -> Problem:
    lacking = ", ".join(lack.name for lack in problem.lacks)
    volume = any(lack.kind == "Volume" for lack in problem.lacks)
    mend = "make the claim ReadWriteMany" if volume else "add room for one more replica"
    return Problem(
        "NeedsCapacity",
        f"the last replica that serves holds what the new one lacks ({lacking}), so it is kept;"
        f" {problem.said}: {mend}",
        problem.lacks,
        problem.since,
    )
