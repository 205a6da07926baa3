"""The scaling policy that a spec asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_operator.api.autoscaling import Autoscaling, ScaleDown, ScaleUp
from sheaf_operator.scaling.behavior import Limits, RatePolicy

AT_ONCE, AFTER_FIVE_MINUTES = Limits(), Limits(window=300.0)


@dataclass(frozen=True)
class Policy:
    """`queue_target` in waiting requests per replica, `kv_target` a fraction of 1; None switches a signal
    off.
    """

    minimum: int
    maximum: int
    queue_target: float | None = 4.0
    kv_target: float | None = 0.8
    up: Limits = AT_ONCE
    down: Limits = AFTER_FIVE_MINUTES


def of_spec(spec: Autoscaling) -> Policy:
    targets = {metric.type: metric.target for metric in spec.metrics}
    kv = targets.get("KVCacheUtilizationPercent")
    return Policy(
        minimum=spec.min_replicas,
        maximum=spec.max_replicas,
        queue_target=targets.get("QueueDepth"),
        kv_target=None if kv is None else kv / 100,
        up=_limits(spec.behavior.scale_up),
        down=_limits(spec.behavior.scale_down),
    )


def _limits(behavior: ScaleUp | ScaleDown) -> Limits:
    return Limits(
        window=behavior.stabilization_window_seconds,
        rates=tuple(RatePolicy(p.type, p.value, p.period_seconds) for p in behavior.policies),
        select=behavior.select_policy,
    )
