"""status.adapters: what became of each wanted adapter in the ready pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from sheaf_operator.api.adapters import Adapter
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed, pod_name
from sheaf_operator.cluster.reading import Reading
from sheaf_operator.problems.problem import clip

MAX_MESSAGE = 200  # characters: 32 adapters stay under 16 KiB


def build(spec: LLMDeploymentSpec, observed: Observed, readings: Mapping[str, Reading | str]) -> list[Json]:
    """One entry for each adapter of the spec, in its order. While a ready pod does not answer, what was said
    of this same spec stands.
    """
    pods = [pod_name(pod) for pod in observed.ready_pods]
    answers = [answer for pod in pods if isinstance(answer := readings.get(pod), Reading)]
    before: dict[str, Json] = {}
    if len(answers) < len(pods) and observed.status.get("observedGeneration") == observed.generation:
        before = {entry["name"]: entry for entry in observed.status.get("adapters", [])}
    return [before.get(a.name) or _entry(a, len(pods), answers) for a in spec.model.adapters]


def _entry(adapter: Adapter, pods: int, answers: list[Reading]) -> Json:
    found = [known for a in answers if (known := a.adapters.get(adapter.name)) and known.path == adapter.path]
    ready = sum(known.ready for known in found)
    failed = [known.message for known in found if not known.ready]
    entry: Json = {"name": adapter.name, "readyReplicas": ready}
    if failed:
        message = f"{len(failed)} of {pods} ready replicas cannot have it: {failed[0]}"
        return {**entry, "state": "Failed", "reason": "LoadFailed", "message": clip(message, MAX_MESSAGE)}
    if not pods:
        return {**entry, "state": "Loading", "reason": "NoReadyReplica", "message": "no replica is ready"}
    if ready == pods:
        return {**entry, "state": "Ready", "reason": "Loaded", "message": ""}
    message = f"{ready} of {pods} ready replicas have it"
    return {**entry, "state": "Loading", "reason": "Loading", "message": message}
