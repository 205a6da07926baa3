"""Which revision the pods should have. Pure."""

from __future__ import annotations

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.desired import notes, render
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


def choose_revision(
    spec: LLMDeploymentSpec, observed: Observed, default_image: str, renew: bool = False
) -> Revision:
    """What the spec asks for. `renew`: with the operator's present default image, unless that has failed."""
    current = current_revision(observed)
    if current and (spec.rollout.paused or (current.serves(spec) and not renew)):
        return current
    fresh = render.revision(observed.name, spec, default_image)
    if current and current.serves(spec):
        failed = notes.read(runtime_of(observed, fresh)).failure
        return current if failed or current.image == fresh.image else fresh
    for candidate in map(revisions.read, newest_first(observed)):
        if candidate and candidate.serves(spec):
            return candidate
    return fresh


def runtime_of(observed: Observed, revision: Revision) -> Json | None:
    """The ServingRuntime in which a revision is recorded."""
    name = names.runtime_name(observed.name, revision.hash)
    return next((r for r in observed.runtimes if r["metadata"]["name"] == name), None)


def recorded(observed: Observed, digest: str | None) -> Revision | None:
    """The revision of this hash, if it is kept."""
    found = (revisions.read(runtime) for runtime in observed.runtimes)
    return next((revision for revision in found if revision and revision.hash == digest), None)


def newest_first(observed: Observed) -> list[Json]:
    """Creation times are whole seconds; within one, the store's own order (resourceVersion) decides."""

    def age(runtime: Json) -> tuple[str, int, str]:
        metadata = runtime["metadata"]
        version = str(metadata.get("resourceVersion", ""))
        order = int(version) if version.isdecimal() else 0
        return str(metadata.get("creationTimestamp", "")), order, str(metadata["name"])

    return sorted(observed.runtimes, key=age, reverse=True)
