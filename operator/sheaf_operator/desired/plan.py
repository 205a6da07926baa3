"""What to write, given what is wanted and what is there. Pure: data in, actions out."""

from __future__ import annotations

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed, owned_by
from sheaf_operator.desired import render
from sheaf_operator.desired import revision as revisions
from sheaf_operator.desired.actions import Action, Apply, Delete, Plan, Scale
from sheaf_operator.desired.choice import choose_revision, current_revision, newest_first
from sheaf_operator.desired.drift import holds
from sheaf_operator.desired.revision import Revision
from sheaf_operator.desired.rollout import choose_strategy
from sheaf_operator.problems.problem import Problem

HISTORY = 3  # runtimes kept, the present one included


def plan(spec: LLMDeploymentSpec, observed: Observed, default_image: str) -> Plan:
    if "deletionTimestamp" in observed.owner["metadata"]:
        return Plan()
    if not observed.kserve:
        return Plan(
            problem=Problem(
                "KServeMissing",
                "the cluster has no InferenceService kind",
            )
        )
    if names.excess(observed.name, observed.namespace):
        return Plan(problem=_too_long(observed))
    service = observed.inference_service
    if service is not None and not observed.owns(service):
        return Plan(problem=_conflict(service, observed))
    wanted = choose_revision(spec, observed, default_image)
    strategy = choose_strategy(spec, observed, wanted)
    identity = (observed.name, observed.namespace, observed.uid)
    actions: list[Action] = []
    runtime = render.serving_runtime(*identity, wanted)
    live = next(
        (r for r in observed.runtimes if r["metadata"]["name"] == runtime["metadata"]["name"]),
        None,
    )
    if live is None or not holds(live, runtime):
        actions.append(Apply(runtime, create=live is None))
    desired = render.inference_service(*identity, wanted, strategy, spec.suspend)
    if service is None or not holds(service, desired):
        actions.append(Apply(desired, create=service is None))
    actions += _take_back(observed, wanted)
    actions += _prune(observed, wanted)
    actions += _fixed_replicas(spec, observed)
    return Plan(tuple(actions), wanted)


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


def _take_back(observed: Observed, wanted: Revision) -> list[Apply]:
    """Orphans of an earlier LLMDeployment of this name, so that the history goes on and nothing is left over.

    They are written as they were recorded: no pod notices.
    """
    orphans = [r for r in observed.runtimes if not owned_by(r, observed.uid)]
    recorded = [found for runtime in orphans if (found := revisions.read(runtime))]
    return [
        Apply(render.serving_runtime(observed.name, observed.namespace, observed.uid, found), create=False)
        for found in recorded
        if found.hash != wanted.hash
    ]


def _prune(observed: Observed, wanted: Revision) -> list[Delete]:
    """Keep the wanted runtime, the one in use and the newest others, `HISTORY` in all."""
    current = current_revision(observed)
    keep = {wanted.hash} | ({current.hash} if current else set())
    result = []
    for runtime in newest_first(observed):
        metadata = runtime["metadata"]
        digest = metadata.get("labels", {}).get(names.LABEL_REVISION)
        if digest in keep or not owned_by(runtime, observed.uid):
            continue
        if len(keep) < HISTORY:
            keep.add(digest)
        else:
            result.append(Delete(metadata["name"], metadata["uid"]))
    return result


def _fixed_replicas(spec: LLMDeploymentSpec, observed: Observed) -> list[Scale]:
    """spec.replicas is honoured whenever the built-in scaler does not write."""
    if spec.replicas is None or spec.suspend or observed.deployment is None:
        return []
    if spec.autoscaling.mode == "Builtin" or observed.replicas == spec.replicas:
        return []
    return [Scale(spec.replicas)]
