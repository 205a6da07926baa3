"""From what a run found to what its user reads: the status, and what a failed write means. Pure."""

from __future__ import annotations

from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Json
from sheaf_operator.status.conditions import conditions
from sheaf_operator.status.situation import Situation
from sheaf_operator.status.timeline import timeline


def build_status(s: Situation, domain: str) -> Json:
    """The whole status but for `autoscaling`; `domain` is that of the cluster's Services."""
    observed = s.observed
    revision = s.revision
    deployment = observed.deployment or {}
    result: Json = {
        "observedGeneration": observed.generation,
        "replicas": int(deployment.get("status", {}).get("replicas", 0)),
        "readyReplicas": s.ready,
        "selector": names.selector(observed.name),
        "conditions": conditions(s),
        "timeline": timeline(observed, revision.hash if revision else None),
    }
    if url := _url(s, domain):
        result["url"] = url
    if revision is not None:
        result["image"], result["revision"] = revision.image, revision.hash
    if s.capacity is not None:
        result["capacity"] = s.capacity
    return result


def _url(s: Situation, domain: str) -> str | None:
    """It lasts as long as the InferenceService: what fails meanwhile takes no client its address."""
    observed, service = s.observed, s.observed.inference_service
    known: str | None = observed.status.get("url")
    if service is None:
        return None if observed.kserve else known
    if not observed.owns(service):
        return None
    if s.revision is None:  # a spec that cannot be read tells nothing of TLS
        return known
    tls = bool(s.revision.spec.get("tls"))
    return names.url(observed.name, observed.namespace, domain, tls)
