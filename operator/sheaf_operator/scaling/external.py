"""Mode External: another scaler writes spec.replicas through /scale, and its count is followed. Pure."""

from __future__ import annotations

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.scaling.decide import Decision, History, bounded
from sheaf_operator.scaling.policy import of_spec

ASK_ONCE = (
    "spec.replicas is not set, and an HPA can only change a count that is there: give it a first one with"
    " `kubectl scale llmd/NAME --replicas=N`"
)


def follow(spec: LLMDeploymentSpec, current: int) -> Decision:
    """The other scaler has its own windows and rates, so only the bounds are left to add."""
    if spec.replicas is None:
        wish, limiting, reason = current, "NoExternalCount", ASK_ONCE
    else:
        wish, limiting, reason = spec.replicas, "External", f"/scale says {spec.replicas}"
    desired, limiting, reason = bounded(of_spec(spec.autoscaling), wish, limiting, reason)
    return Decision(desired, wish, limiting, reason, (), History())
