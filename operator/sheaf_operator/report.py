"""From what a run found to what its user reads: the status, and what a failed write means. Pure."""

from __future__ import annotations

from datetime import datetime

from sheaf_operator import conditions, names, problems, scaling
from sheaf_operator.cluster import ApiError, KindMissing, Unreachable
from sheaf_operator.observed import Json
from sheaf_operator.plan import Action, Apply
from sheaf_operator.problems import Problem
from sheaf_operator.timeline import timeline


def build_status(s: conditions.Situation, now: datetime) -> Json:
    """The whole status but for `autoscaling`."""
    observed = s.observed
    revision = s.revision
    deployment = observed.deployment or {}
    result: Json = {
        "observedGeneration": observed.generation,
        "replicas": int(deployment.get("status", {}).get("replicas", 0)),
        "readyReplicas": s.ready,
        "selector": names.selector(observed.name),
        "conditions": conditions.conditions(s, scaling.stamp(now)),
        "timeline": timeline(observed, revision.hash if revision else None),
    }
    if observed.inference_service is not None and s.problem is None:
        result["url"] = names.url(observed.name, observed.namespace)
    if revision is not None:
        result["image"], result["revision"] = revision.image, revision.hash
    if s.capacity is not None:
        result["capacity"] = s.capacity
    return result


def problem_of(error: ApiError | Unreachable, action: Action) -> Problem:
    """What a write that failed means to the user."""
    if isinstance(error, KindMissing):
        return Problem("KServeMissing", "the cluster has no InferenceService kind: install KServe")
    if isinstance(error, Unreachable):
        return Problem("ApplyFailed", str(error))
    if isinstance(action, Apply) and action.create and error.code == 409:
        metadata = action.obj["metadata"]
        words = f"{action.obj['kind']} {metadata['name']} exists and was not made by Sheaf"
        return Problem("NameConflict", f"{words}: delete it or choose another name")
    if error.permanent:
        return Problem("Rejected", problems.clip(f"the API server refused: {error.message}"))
    return Problem("ApplyFailed", problems.clip(error.message))
