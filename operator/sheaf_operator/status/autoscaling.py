"""status.autoscaling: what the scaler wants and why. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.problems.problem import clip
from sheaf_operator.scaling.decide import Decision
from sheaf_operator.scaling.signals import Signal

MAX_DECISIONS = 10
MAX_REASON = 400  # characters: ten decisions and the conditions stay under 16 KiB


def build(decision: Decision, observed: Observed, now: datetime) -> Json:
    """status.autoscaling. It changes only with the wish or what limits it; live values are metrics."""
    before: Json = observed.status.get("autoscaling") or {}
    if before.get("desired") == decision.desired and before.get("limiting") == decision.limiting:
        return before
    decisions: list[Json] = list(before.get("decisions", []))
    current = before.get("desired", observed.replicas or 0)
    if decision.desired != current:
        decisions.insert(
            0,
            {
                "time": stamp(now),
                "from": current,
                "to": decision.desired,
                "limiting": decision.limiting,
                "reason": clip(decision.reason, MAX_REASON),
            },
        )
    result: Json = {
        "desired": decision.desired,
        "limiting": decision.limiting,
        "reason": clip(decision.reason, MAX_REASON),
        "metrics": [_metric(signal, observed.replicas or 0) for signal in decision.signals],
        "decisions": decisions[:MAX_DECISIONS],
    }
    if decision.next_change_after is not None:
        wait = decision.next_change_after - decision.history.recommendations[-1].until
        result["nextChangeAfter"] = stamp(now + timedelta(seconds=max(0.0, wait)))
    return result


def _metric(signal: Signal, current: int) -> Json:
    scale = 100 if signal.type == "KVCacheUtilizationPercent" else 1
    return {
        "type": signal.type,
        "target": round(signal.target * scale),
        "value": math.ceil(signal.value * scale - 1e-9),
        "replicas": min(max(current, signal.at_least), signal.at_most),
    }


def stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
