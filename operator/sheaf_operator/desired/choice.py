"""Which revision the pods should have. Pure."""

from __future__ import annotations

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.desired import render
from sheaf_operator.desired import revision as revisions
from sheaf_operator.desired.revision import Revision


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
    recorded = [revisions.read(runtime) for runtime in newest_first(observed)]
    for candidate in recorded:
        if candidate and candidate.serves(spec):
            return candidate
    return render.revision(observed.name, spec, default_image)


def newest_first(observed: Observed) -> list[Json]:
    """Creation times are whole seconds; within one, the store's own order (resourceVersion) decides."""

    def age(runtime: Json) -> tuple[str, int, str]:
        metadata = runtime["metadata"]
        version = str(metadata.get("resourceVersion", ""))
        order = int(version) if version.isdecimal() else 0
        return str(metadata.get("creationTimestamp", "")), order, str(metadata["name"])

    return sorted(observed.runtimes, key=age, reverse=True)
