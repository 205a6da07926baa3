"""What to write, given what is wanted and what is there. Pure: data in, actions out."""

from __future__ import annotations

from datetime import datetime

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.desired import budget, history, render, rollback
from sheaf_operator.desired.actions import Action, Apply, Plan, Progress, Scale
from sheaf_operator.desired.choice import choose_revision, current_revision
from sheaf_operator.desired.drift import of_object
from sheaf_operator.desired.rollout import Want, choose_strategy
from sheaf_operator.problems.problem import Problem


def plan(
    spec: LLMDeploymentSpec,
    observed: Observed,
    default_image: str,
    now: datetime,
    seen: Want | None = None,
    renew: bool = False,
) -> Plan:
    """`seen`: what the last plan's rollout wanted; `renew`: the present default image is to be taken up."""
    if "deletionTimestamp" in observed.owner["metadata"]:
        return Plan()
    if problem := _obstacle(observed):
        return Plan(problem=problem)
    asked = choose_revision(spec, observed, default_image, renew)
    course = rollback.course(spec, observed, current_revision(observed), asked, now)
    wanted = course.wanted
    rollout = choose_strategy(spec, observed, wanted, now, seen)
    actions: list[Action] = []
    for revision, notes in course.notes:
        actions += history.record(observed, revision, notes)
    identity = (observed.name, observed.namespace, observed.uid)
    desired = render.inference_service(*identity, wanted, rollout.strategy, spec.suspend)
    service = observed.inference_service
    if service is None or of_object(service, desired):
        actions.append(Apply(desired, create=service is None))
    actions += history.take_back(observed, wanted)
    actions += history.forgive(spec, observed)
    actions += history.prune(observed, course.needed)
    actions += _fixed_replicas(spec, observed)
    actions += budget.actions(spec, observed)
    newer = None if spec.pod.image or wanted.image == default_image else default_image
    left = course.left or rollback.renewal_left(spec, observed, wanted, newer)
    again = min((t for t in (course.again, rollout.again) if t is not None), default=None)
    return Plan(tuple(actions), wanted, None, Progress(rollout, left, newer), again)


def _obstacle(observed: Observed) -> Problem | None:
    """Why nothing can be written at all."""
    if not observed.kserve:
        return Problem("KServeMissing", "the cluster has no InferenceService kind")
    if names.excess(observed.name, observed.namespace):
        return _too_long(observed)
    service = observed.inference_service
    if service is not None and not observed.owns(service):
        return _conflict(service, observed)
    return None


def _too_long(observed: Observed) -> Problem:
    room = len(observed.name) - names.excess(observed.name, observed.namespace)
    shorter = (
        f"make it anew with a name of at most {room} characters" if room > 0 else "use a shorter namespace"
    )
    return Problem(
        "NameTooLong",
        f"KServe joins name and namespace to {names.predictor_host(observed.name, observed.namespace)}, "
        f"which may have {names.HOST_LABEL} characters: {shorter}",
    )


def _conflict(service: Json, observed: Observed) -> Problem:
    if service["metadata"].get("labels", {}).get(names.LABEL_DEPLOYMENT) == observed.name and any(
        ref.get("kind") == "LLMDeployment" and ref.get("name") == observed.name
        for ref in service["metadata"].get("ownerReferences", [])
    ):
        return Problem(
            "WaitingForDeletion",
            f"InferenceService {observed.name} of an earlier LLMDeployment of this name is being deleted",
        )
    return Problem(
        "NameConflict",
        f"an InferenceService named {observed.name} exists and was not made by Sheaf: "
        "delete it or choose another name; it is left as it is",
    )


def _fixed_replicas(spec: LLMDeploymentSpec, observed: Observed) -> list[Scale]:
    """spec.replicas is honoured whenever the scaler does not write."""
    if spec.replicas is None or spec.suspend or observed.deployment is None:
        return []
    if spec.autoscaling.mode in ("Builtin", "External") or observed.replicas == spec.replicas:
        return []
    return [Scale(spec.replicas)]
