"""The fleet's update to the operator's present default image: which model is next. Pure.

One after another in the order of their names, and none more once one has failed. All that is known is read
from the models themselves, so an operator that restarts goes on where the other one stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Observed, is_ready, revision_of
from sheaf_operator.desired.actions import Plan
from sheaf_operator.desired.choice import recorded

# Held: outdated and not to be touched, as it is paused, rolled back or serves nobody anyway.
State = Literal["Current", "Outdated", "Held", "Updating", "Failed"]
Key = tuple[str, str]


def state_of(spec: LLMDeploymentSpec, observed: Observed, plan: Plan) -> State:
    progress, wanted = plan.progress, plan.revision
    if progress is None or wanted is None:
        return "Held"
    if progress.newer_image is None:
        # By the revision, not by the pod's image: admission may have put a mirror's address there.
        left = [recorded(observed, revision_of(pod)) for pod in observed.live_pods]
        return "Updating" if any(r and r.image != wanted.image for r in left) else "Current"
    if progress.left is not None:
        return "Failed" if progress.left[0].image == progress.newer_image else "Held"
    if spec.rollout.paused or not wanted.serves(spec):
        return "Held"
    healthy = spec.suspend or observed.replicas == 0 or any(map(is_ready, observed.live_pods))
    return "Outdated" if healthy else "Held"


def next_up(states: Mapping[Key, State], keys: list[Key], at_once: int) -> Key | None:
    """Nobody while some model has not been looked at yet, or one has failed, or enough are on their way."""
    seen = list(states.values())
    if any(key not in states for key in keys) or "Failed" in seen or seen.count("Updating") >= at_once:
        return None
    return min((key for key, state in states.items() if state == "Outdated"), default=None)
