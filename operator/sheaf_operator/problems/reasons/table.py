"""Every reason that a condition of an LLMDeployment can have. docs/conditions.md is made of it."""

from __future__ import annotations

from sheaf_operator.problems.reasons import containers, pods, rollout, states
from sheaf_operator.problems.reasons.entry import Reason

GROUPS: dict[str, tuple[Reason, ...]] = {
    "States": states.STATES,
    "Rollouts and other writers": rollout.ROLLOUT,
    "Finding a node": pods.SCHEDULING,
    "Volumes and starting": pods.VOLUMES,
    "Pods that are never created": pods.REFUSED,
    "Images": containers.IMAGES,
    "Containers": containers.CONTAINERS,
    "Fetching the model": containers.DOWNLOADS,
    "The model server ends": containers.CRASHES,
    "Pods that ended": pods.ENDED,
    "KServe": states.KSERVE,
    "Writing": states.WRITES,
    "Fitting the device": states.FITS,
}
REASONS = {reason.name: reason for group in GROUPS.values() for reason in group}
