"""A revision: everything that reaches the pods, rendered once and then frozen.

The first time a spec is seen, `render` makes the ServingRuntime's and the InferenceService's pod parts from
it. The result and the spec are kept in an annotation of the immutable ServingRuntime `NAME-HASH`. From then
on the operator applies what was recorded, so a newer operator with other defaults restarts no pod, a hand
edit can be repaired exactly, and going back to an earlier spec finds its runtime again.
"""

from __future__ import annotations

import base64
import json
import lzma
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec

Json = dict[str, Any]

MAX_PLAIN = 16_384  # characters of a record that people can still read
# Fields of the spec that never reach a pod.
_NOT_IN_PODS: Any = {
    "model": {"adapters"},
    "replicas": True,
    "autoscaling": True,
    "rollout": {"strategy", "paused", "patience_seconds", "deadline_seconds"},
    "suspend": True,
    "disruption_budget": True,
    "accelerator": {"memory"},
}


def pod_spec(spec: LLMDeploymentSpec) -> Json:
    """The part of a spec that reaches pods, as JSON without empty fields."""
    parts = spec.model_dump(by_alias=True, exclude_none=True, exclude=_NOT_IN_PODS)
    return {key: value for key, value in parts.items() if (key, value) != ("rollout", {})}


@dataclass(frozen=True)
class Revision:
    """`runtime` is a ServingRuntime's spec, `predictor` the InferenceService's predictor without strategy."""

    hash: str
    spec: Json
    runtime: Json
    predictor: Json

    def annotation(self) -> str:
        """JSON; compressed where it is long, as all annotations of an object may have 256 KiB together."""
        record = {"spec": self.spec, "runtime": self.runtime, "predictor": self.predictor}
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text if len(text) <= MAX_PLAIN else base64.b64encode(lzma.compress(text.encode())).decode()

    @property
    def image(self) -> str:
        return str(self.runtime["containers"][0]["image"])

    def serves(self, spec: LLMDeploymentSpec) -> bool:
        """Whether this revision is what `spec` asks for.

        Both sides are read with this operator's defaults, so fields that are new in this version do not count
        as a change.
        """
        try:
            recorded = LLMDeploymentSpec.model_validate(self.spec)
        except ValidationError:
            return False
        return pod_spec(recorded) == pod_spec(spec)


def read(runtime: Json) -> Revision | None:
    """The revision recorded in a ServingRuntime; None where it is missing or damaged."""
    metadata = runtime["metadata"]
    try:
        text = metadata.get("annotations", {})[names.ANNOTATION_REVISION]
        record = json.loads(text if text.startswith("{") else lzma.decompress(base64.b64decode(text)))
        return Revision(
            hash=metadata["labels"][names.LABEL_REVISION],
            spec=record["spec"],
            runtime=record["runtime"],
            predictor=record["predictor"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, lzma.LZMAError):
        return None
