"""Why a Deployment gets no further pod, as it and its ReplicaSets say. Pure."""

from __future__ import annotations

from sheaf_operator.cluster.observed import Json, condition
from sheaf_operator.problems.evidence import moment
from sheaf_operator.problems.problem import Problem, clip
from sheaf_operator.problems.refused import of_refusal

_NO_REPLICA_SET = {"ReplicaSetCreateError", "FailedCreate"}


def of_deployment(deployment: Json | None, replica_sets: tuple[Json, ...] = ()) -> Problem | None:
    """Why no further pod can be made: a quota, a webhook, a missing service account."""
    for obj in (deployment, *replica_sets):
        for kind, bad in (("ReplicaFailure", "True"), ("Progressing", "False")):
            found = condition(obj or {}, kind)
            if found is None or found.get("status") != bad:
                continue
            if kind == "ReplicaFailure" or found.get("reason") in _NO_REPLICA_SET:
                return of_refusal(found.get("message", ""), moment(found.get("lastTransitionTime")))
    return None


def of_progress(deployment: Json | None) -> Problem | None:
    """That the Deployment gave up waiting, for what no pod of it explains."""
    found = condition(deployment or {}, "Progressing") or {}
    if found.get("status") != "False" or found.get("reason") != "ProgressDeadlineExceeded":
        return None
    words = clip(found.get("message", ""))
    return Problem("ProgressDeadlineExceeded", words, since=moment(found.get("lastTransitionTime")))
