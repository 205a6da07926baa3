"""Rollouts, and others who write what Sheaf writes."""

from __future__ import annotations

from sheaf_operator.problems.reasons.entry import Reason

ROLLOUT = (
    Reason(
        "NeedsCapacity",
        "perhaps",
        "The only replica that serves holds what the new one lacks, and it is not given up for it.",
        "or set `rollout.strategy` to Recreate, which stops it first",
    ),
    Reason(
        "RolledBack",
        "never",
        "A new revision failed for longer than `rollout.deadlineSeconds`; the last good one is back.",
        "change the spec or `rollout.restartedAt`; until then it is not tried again",
    ),
)
