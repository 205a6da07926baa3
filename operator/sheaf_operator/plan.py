"""What to write, given what is wanted and what is there. Pure: data in, actions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sheaf_operator import names, problems, quantity, render
from sheaf_operator import revision as revisions
from sheaf_operator.api import LLMDeploymentSpec
from sheaf_operator.observed import Json, Observed, owned_by, revision_of
from sheaf_operator.problems import Problem
from sheaf_operator.revision import Revision

HISTORY = 3  # runtimes kept, the present one included


@dataclass(frozen=True)
class Apply:
    """Server-side apply. `create`: refuse if somebody else has made such an object in the meantime."""

    obj: Json
    create: bool


@dataclass(frozen=True)
class Delete:
    """Delete our ServingRuntime, provided it is still the one that was observed."""

    name: str
    uid: str


@dataclass(frozen=True)
class Scale:
    """Set the predictor Deployment's replicas, provided its resourceVersion is still the observed one."""

    replicas: int
    resource_version: str


Action = Apply | Delete | Scale


@dataclass(frozen=True)
class Plan:
    """`revision` is what the InferenceService should use; None if nothing can be rendered."""

    actions: tuple[Action, ...] = ()
    revision: Revision | None = None
    problem: Problem | None = None


def covers(live: Any, wanted: Any, path: tuple[str, ...] = ()) -> bool:
    """Whether `live` already holds everything that `wanted` says, whatever a server or webhook added."""
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None
        return all(covers(live.get(key), value, (*path, key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return not wanted and live is None
        return all(covers(a, b, path) for a, b in zip(live, wanted, strict=True))
    if bool(live == wanted):
        return True
    if live is None:
        return bool(wanted == "")
    return _is_quantity(path) and quantity.same(live, wanted)


def _is_quantity(path: tuple[str, ...]) -> bool:
    return "resources" in path or path[-1:] == ("sizeLimit",)


def _holds(live: Json, wanted: Json) -> bool:
    """`covers` for whole objects; owner references are compared by uid as others may add theirs."""
    metadata = {k: v for k, v in wanted["metadata"].items() if k != "ownerReferences"}
    uid = wanted["metadata"]["ownerReferences"][0]["uid"]
    return owned_by(live, uid) and covers(live, {**wanted, "metadata": metadata})


def current_revision(observed: Observed) -> Revision | None:
    """The revision that the InferenceService uses now."""
    if observed.inference_service is None:
        return None
    model = observed.inference_service.get("spec", {}).get("predictor", {}).get("model", {})
    for runtime in observed.runtimes:
        if runtime["metadata"]["name"] == model.get("runtime"):
            return revisions.read(runtime)
    return None


def choose_revision(spec: LLMDeploymentSpec, observed: Observed, default_image: str) -> Revision:
    current = current_revision(observed)
    if current and (spec.rollout.paused or current.serves(spec)):
        return current
    recorded = [revisions.read(runtime) for runtime in _newest_first(observed)]
    for candidate in recorded:
        if candidate and candidate.serves(spec):
            return candidate
    return render.revision(observed.name, spec, default_image)


def _newest_first(observed: Observed) -> list[Json]:
    """Creation times are whole seconds; within one, the store's own order (resourceVersion) decides."""

    def age(runtime: Json) -> tuple[str, int, str]:
        metadata = runtime["metadata"]
        version = str(metadata.get("resourceVersion", ""))
        order = int(version) if version.isdecimal() else 0
        return str(metadata.get("creationTimestamp", "")), order, str(metadata["name"])

    return sorted(observed.runtimes, key=age, reverse=True)


def choose_strategy(spec: LLMDeploymentSpec, observed: Observed, wanted: Revision) -> render.Strategy:
    """Auto surges; while a rollout is stuck for want of a device it gives up an old pod first.

    That choice stays until no old pod is left, so the strategy does not flap.
    """
    if spec.rollout.strategy != "Auto":
        return spec.rollout.strategy
    old = [pod for pod in observed.live_pods if revision_of(pod) != wanted.hash]
    if not old:
        return "Surge"
    new = [pod for pod in observed.live_pods if revision_of(pod) == wanted.hash]
    live: Json = (observed.inference_service or {}).get("spec", {}).get("predictor", {})
    already = covers(live.get("deploymentStrategy"), render.STRATEGIES["GiveUpFirst"])
    found = [problems.of_pod(pod, spec.accelerator.resource_name) for pod in new]
    stuck = any(p and p.reason in ("InsufficientGPU", "Unschedulable") for p in found)
    return "GiveUpFirst" if stuck or already else "Surge"


def plan(spec: LLMDeploymentSpec, observed: Observed, default_image: str) -> Plan:
    if "deletionTimestamp" in observed.owner["metadata"]:
        return Plan()
    if not observed.kserve:
        return Plan(
            problem=Problem(
                "KServeMissing",
                "the cluster has no InferenceService kind: install KServe, and Sheaf goes on by itself",
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
    if live is None or not _holds(live, runtime):
        actions.append(Apply(runtime, create=live is None))
    desired = render.inference_service(*identity, wanted, strategy, spec.suspend)
    if service is None or not _holds(service, desired):
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
    for runtime in _newest_first(observed):
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
    return [Scale(spec.replicas, observed.deployment["metadata"]["resourceVersion"])]
