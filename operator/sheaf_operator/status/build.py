"""From what a run found to what its user reads: the status, and what a failed write means. Pure."""

from __future__ import annotations

from datetime import datetime

from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Json
from sheaf_operator.status import conditions
from sheaf_operator.status.autoscaling import stamp
from sheaf_operator.status.timeline import timeline


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
        "conditions": conditions.conditions(s, stamp(now)),
        "timeline": timeline(observed, revision.hash if revision else None),
    }
    if observed.inference_service is not None and s.problem is None:
        result["url"] = names.url(observed.name, observed.namespace)
    if revision is not None:
        result["image"], result["revision"] = revision.image, revision.hash
    if s.capacity is not None:
        result["capacity"] = s.capacity
    return result
