"""Why no further pod can be made, as the Deployment says it. Pure."""

from __future__ import annotations

import re

from sheaf_operator.cluster.observed import Json, condition
from sheaf_operator.problems.problem import Lack, Problem, clip

_QUOTA = re.compile(r"requested: (.*?), used:")  # only what exceeds is listed: "requests.cpu=1,pods=1"


def of_deployment(deployment: Json | None) -> Problem | None:
    """Why no further pod can be made: a quota, a webhook, a missing service account."""
    failure = condition(deployment or {}, "ReplicaFailure")
    if failure is None or failure.get("status") != "True":
        return None
    said = failure.get("message", "")
    message = clip(said)
    if "exceeded quota" in said:
        short = _QUOTA.search(said)
        asked = [part.partition("=")[0].strip() for part in short[1].split(",")] if short else []
        lacks = tuple(Lack("Quota", name) for name in sorted(asked))
        return Problem("QuotaExceeded", f"{message}", lacks)
    return Problem("PodsRefused", f"no pod can be created: {message}")
