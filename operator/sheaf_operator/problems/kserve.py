"""Why KServe does not carry out an InferenceService. Pure.

What its controller cannot do it tells in an Event of the InferenceService ("InternalError") and, for a few
causes only, in the status. The other conditions repeat the Deployment's, which is read itself.
"""

from __future__ import annotations

from datetime import datetime

from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.problems.evidence import created, moment, seconds, warnings
from sheaf_operator.problems.problem import Problem, clip

ASK = 10.0  # seconds after which the InferenceService's Events are worth a request
SILENCE = 60.0  # seconds after which KServe should have done or said something
_CONFLICT = "the object has been modified"  # KServe tries again at once
_ECHO = {None, "", "Stopped", "MinimumReplicasUnavailable", "ProgressDeadlineExceeded", "ReplicaSetUpdated"}


def overdue(observed: Observed, revision: str | None, now: datetime) -> float:
    """For how many seconds the InferenceService has not reached the Deployment; 0 when it has."""
    service = observed.inference_service
    if service is None or revision is None or _carried_out(observed, revision):
        return 0.0
    return seconds(_written(service), now)


def of_kserve(observed: Observed, revision: str | None, now: datetime) -> Problem | None:
    """`revision` is the wanted one's hash; None if there is no telling."""
    service = observed.inference_service
    if service is None or revision is None or _carried_out(observed, revision):
        return None
    since = _written(service)
    if observed.stray is not None and seconds(since, now) >= ASK:
        name = observed.stray["metadata"]["name"]
        words = f"Deployment {name} has lost its InferenceService: its pods are neither counted nor scaled"
        return Problem("DeploymentOrphaned", f"{words}, and KServe has not taken it back", since=since)
    if said := _complaint(service, observed):
        return Problem("KServeRefused", f"KServe: {clip(said)}", since=since)
    if seconds(since, now) >= SILENCE:
        what = "the Deployment" if observed.deployment is None else "the new revision's pods"
        return Problem("KServeSilent", f"KServe has not made {what} in {SILENCE:.0f} s", since=since)
    return None


def _carried_out(observed: Observed, revision: str) -> bool:
    """A service that is stopped has no Deployment, as it should be."""
    annotations = (observed.inference_service or {})["metadata"].get("annotations", {})
    if annotations.get(names.KSERVE_STOP) == "true":
        return True
    if observed.deployment is None:
        return False
    made = (observed.deployment, *observed.replica_sets, *observed.pods)
    return any(o["metadata"].get("labels", {}).get(names.LABEL_REVISION) == revision for o in made)


def _written(service: Json) -> datetime | None:
    """When we last wrote the InferenceService."""
    ours = (
        m for m in service["metadata"].get("managedFields", []) if m.get("manager") == names.FIELD_MANAGER
    )
    times = [found for entry in ours if (found := moment(entry.get("time")))]
    return max(times, default=created(service))


def _complaint(service: Json, observed: Observed) -> str | None:
    status = service.get("status", {})
    model = status.get("modelStatus", {})
    failure = model.get("lastFailureInfo", {})
    if model.get("transitionStatus") == "InvalidSpec":
        return str(failure.get("message") or failure.get("reason") or "the InferenceService is invalid")
    for event in warnings(observed.events, service, ("InternalError",)):
        if _CONFLICT not in event["message"]:
            return str(event["message"])
    if observed.deployment is not None:
        return None
    messages = [failure.get("message")] + [
        c.get("message")
        for c in status.get("conditions", [])
        if c.get("status") == "False" and c.get("reason") not in _ECHO
    ]
    return next((str(m) for m in messages if m), None)
