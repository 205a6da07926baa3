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
    Reason(
        "ImageOutdated",
        "never",
        "The operator's default image is newer than the one that runs: an update of Sheaf restarts no pod.",
        "set `rollout.restartedAt` to the present time, or operator.imageUpdates to Rolling in the chart",
    ),
    Reason("ImageCurrent", "alone", "The operator's default image runs, or the one that `pod.image` names."),
    Reason(
        "CountContested",
        "never",
        "Somebody else writes the Deployment's number of replicas, again and again.",
        "point it at the LLMDeployment with autoscaling.mode External, or remove it; Sheaf writes less and"
        " less often meanwhile",
    ),
    Reason(
        "FieldsContested",
        "never",
        "Somebody else changes what Sheaf wrote, again and again: a webhook, a VerticalPodAutoscaler.",
        "stop it for these objects, or write what it wants into the spec; Sheaf repairs less and less often"
        " meanwhile",
    ),
)
