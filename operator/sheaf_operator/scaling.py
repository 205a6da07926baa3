"""Between the pure decision and the resource: policy from spec, samples from pods, status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sheaf_operator.api_scaling import Autoscaling, ScaleDown, ScaleUp
from sheaf_operator.autoscale import Decision, Policy
from sheaf_operator.behavior import Limits, RatePolicy
from sheaf_operator.observed import Json, Observed, fell_silent, is_ready, pod_name
from sheaf_operator.problems import clip
from sheaf_operator.samples import Sample, Samples
from sheaf_operator.scrape import Reading
from sheaf_operator.signals import Signal

MAX_DECISIONS = 10
MAX_REASON = 400  # characters: ten decisions and the conditions stay under 16 KiB


def policy(spec: Autoscaling) -> Policy:
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


def addresses(observed: Observed) -> list[tuple[str, str]]:
    """(pod, ip) of the ready pods."""
    pods = observed.ready_pods
    return [(pod_name(p), p["status"]["podIP"]) for p in pods if p["status"].get("podIP")]


def samples(
    observed: Observed, readings: Mapping[str, Reading | str], before: Mapping[str, Reading | str]
) -> Samples:
    """`before` are the last readings but these: what has finished meanwhile is the difference."""
    ready = [pod_name(pod) for pod in observed.ready_pods]
    loads = tuple(
        _since(before.get(name), answer)
        for name in ready
        if isinstance(answer := readings.get(name), Reading)
    )
    # What a pod does that was ready and is not any more, nobody knows: it is missing, not loading.
    silent = sum(fell_silent(pod) for pod in observed.live_pods)
    return Samples(current=observed.replicas or 0, loads=loads, missing=len(ready) - len(loads) + silent)


def _since(before: Reading | str | None, now: Reading) -> Sample:
    """The sample with what has ended and begun between the two readings."""
    if not isinstance(before, Reading) or before.finished is None or now.finished is None:
        return now.sample
    finished = now.finished - before.finished
    if finished < 0:  # a counter that went down began anew with its container
        return now.sample
    return replace(
        now.sample, finished=finished, begun=max(0, finished + now.sample.running - before.sample.running)
    )


def capacity(readings: Mapping[str, Reading | str], before: Json | None) -> Json | None:
    """Of one replica; the last known one stays while no replica answers."""
    for answer in readings.values():
        if not isinstance(answer, Reading):
            continue
        found = {
            "weightsBytes": answer.weights_bytes,
            "kvCacheTokens": answer.kv_tokens,
            "maxConcurrentSequences": answer.sample.slots,
        }
        return {key: value for key, value in found.items() if value is not None} or before
    return before


def victim(observed: Observed, readings: Mapping[str, Reading | str]) -> tuple[str, bool]:
    """(pod that should go, whether it needs a deletion cost). Unready pods go first by themselves."""
    live = observed.live_pods
    unready = [pod_name(pod) for pod in live if not is_ready(pod)]
    if unready:
        return min(unready), False

    def burden(pod: Json) -> tuple[float, float, str]:
        answer = readings.get(pod_name(pod))
        # A pod that does not answer serves nobody as far as we can see.
        return (*(answer.burden if isinstance(answer, Reading) else (-1, -1)), pod_name(pod))

    return pod_name(min(live, key=burden)), True


def status(decision: Decision, observed: Observed, now: datetime) -> Json:
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


# Any cost below the default of 0 makes the ReplicaSet take this pod first.
VICTIM_COST = "-1000"


def restored(decision: Decision, count: int, spec: Autoscaling) -> Decision:
    """Go straight back to the `count` of before instead of finding it again by load."""
    desired = min(count, spec.max_replicas)
    if desired <= decision.desired:
        return decision
    return replace(
        decision,
        desired=desired,
        limiting="Recreated",
        reason=f"the Deployment lost its count, as one made anew does: {desired} replicas were wanted",
    )
