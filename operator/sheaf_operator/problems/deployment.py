"""Why no further pod can be made, as the Deployment says it. Pure."""

from __future__ import annotations

from sheaf_operator.cluster.observed import Json, condition
from sheaf_operator.problems.problem import Problem, clip


def of_deployment(deployment: Json | None) -> Problem | None:
    """Why no further pod can be made: a quota, a webhook, a missing service account."""
    failure = condition(deployment or {}, "ReplicaFailure")
    if failure is None or failure.get("status") != "True":
        return None
    message = clip(failure.get("message", ""))
    if "exceeded quota" in message:
        return Problem("QuotaExceeded", f"{message}: raise the quota or lower the resources")
    return Problem("PodsRefused", f"no pod can be created: {message}")
