"""What a ServingRuntime's annotations say about its revision, beside the revision itself. Pure.

What served when it was asked for, and that it has failed: an operator that restarts in between goes on where
the other one stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Json
from sheaf_operator.problems.problem import Problem, clip

MAX_MESSAGE = 200  # characters of the failing pod's words that are kept: three conditions repeat them


@dataclass(frozen=True)
class Notes:
    """`fallback`: the hash of what served when this revision was asked for; `failure`: why it was left."""

    fallback: str | None = None
    failure: Problem | None = None

    def annotations(self) -> dict[str, str]:
        found = {}
        if self.fallback is not None:
            found[names.ANNOTATION_FALLBACK] = self.fallback
        if self.failure is not None:
            record = {"reason": self.failure.reason, "said": clip(self.failure.said, MAX_MESSAGE)}
            found[names.ANNOTATION_FAILURE] = json.dumps(record, sort_keys=True)
        return found


def read(runtime: Json | None) -> Notes:
    """Damaged notes are none."""
    annotations = runtime["metadata"].get("annotations", {}) if runtime else {}
    failure = None
    try:
        if text := annotations.get(names.ANNOTATION_FAILURE):
            record = json.loads(text)
            failure = Problem(str(record["reason"]), str(record["said"]))
    except (KeyError, TypeError, ValueError):
        failure = None
    return Notes(annotations.get(names.ANNOTATION_FALLBACK), failure)
