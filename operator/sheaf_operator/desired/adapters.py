"""Which adapters each pod should have. Pure.

A pod learns it from an annotation, which the kubelet shows its runtime as a file: pods that start later or
whose container starts again find it there, also while the operator is away, and no route has to be open.
"""

from __future__ import annotations

import json

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed


def wanted(spec: LLMDeploymentSpec) -> str | None:
    """The annotation; None for no adapters, when there is none."""
    paths = {adapter.name: adapter.path for adapter in spec.model.adapters}
    return json.dumps(paths, sort_keys=True, separators=(",", ":")) if paths else None


def untold(spec: LLMDeploymentSpec, observed: Observed) -> list[Json]:
    """Pods whose annotation is another one; those that were not started for adapters are left alone."""
    text = wanted(spec)
    return [pod for pod in observed.live_pods if _takes_adapters(pod) and _told(pod) != text]


def _told(pod: Json) -> str | None:
    text: str | None = pod["metadata"].get("annotations", {}).get(names.ANNOTATION_ADAPTERS)
    return text


def _takes_adapters(pod: Json) -> bool:
    return any(volume["name"] == names.ADAPTERS_VOLUME for volume in pod["spec"].get("volumes", []))
