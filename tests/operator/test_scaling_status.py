from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.cluster.reading import Reading, Sample
from sheaf_operator.scaling import policy, samples, victim
from sheaf_operator.scaling.decide import Decision, History, restored
from sheaf_operator.scaling.signals import Signal
from sheaf_operator.status import autoscaling

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OURS = k.revision(k.spec())


def reading(blocks: int = 0, running: int = 0, **more: Any) -> Reading:
    return Reading(Sample(waiting=0, running=running, kv=0.0, slots=8), blocks_live=blocks, **more)


def decision(desired: int = 2, limiting: str = "QueueDepth", **more: Any) -> Decision:
    signals = (
        Signal("QueueDepth", 4, 2.5, 2, 3, "w"),
        Signal("KVCacheUtilizationPercent", 0.8, 0.333, 1, 1, "w"),
    )
    return Decision(desired, desired, limiting, "because", signals, History(), **more)


def test_the_policy_speaks_the_specs_language() -> None:
    given = k.spec(
        autoscaling={
            "minReplicas": 2,
            "maxReplicas": 5,
            "metrics": [{"type": "KVCacheUtilizationPercent", "target": 70}],
            "behavior": {
                "scaleDown": {
                    "stabilizationWindowSeconds": 60,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 30}],
                }
            },
        }
    )
    asked = policy.of_spec(given.autoscaling)
    assert (asked.minimum, asked.maximum) == (2, 5)
    assert asked.queue_target is None
    assert asked.kv_target == 0.7
    assert asked.down.window == 60
    assert asked.down.rates[0].period == 30
    assert asked.up.window == 0


def test_the_defaults_are_both_signals() -> None:
    asked = policy.of_spec(k.spec().autoscaling)
    assert (asked.queue_target, asked.kv_target, asked.down.window) == (4, 0.8, 300)


def test_samples_tell_silent_pods_from_loading_ones() -> None:
    observed = k.settled(k.spec(), replicas=4, ready=2)
    found = samples.of_replicas(observed, {"p0": reading(running=1), "p1": "no answer"}, {})
    assert (found.current, len(found.loads), found.missing, found.pending) == (4, 1, 1, 2)


def test_a_pod_that_was_ready_is_missing_until_its_container_starts_anew() -> None:
    def missing(turned: str, started: str) -> int:
        observed = k.settled(k.spec(), replicas=2, ready=1)
        status = observed.pods[1]["status"]
        (ready,) = [c for c in status["conditions"] if c["type"] == "Ready"]
        ready["lastTransitionTime"] = turned
        status["containerStatuses"][0]["state"]["running"]["startedAt"] = started
        return samples.of_replicas(observed, {"p0": reading()}, {}).missing

    before, later = "2026-01-01T00:00:13Z", "2026-01-01T00:05:00Z"
    assert missing(turned="2026-01-01T00:00:11Z", started=before) == 0
    assert missing(turned=later, started=before) == 1
    assert missing(turned=later, started=later) == 0


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(10, 17, 7), (10, 10, 0), (10, 3, None), (None, 3, None), (3, None, None), ("silent", 3, None)],
)
def test_what_has_finished_is_the_difference_of_two_readings(before: Any, now: Any, expected: Any) -> None:
    observed = k.settled(k.spec(), replicas=1, ready=1)
    last = {"p0": before if before == "silent" else reading(finished=before)}
    (load,) = samples.of_replicas(observed, {"p0": reading(finished=now)}, last).loads
    assert load.finished == expected
    (first,) = samples.of_replicas(observed, {"p0": reading(finished=now)}, {}).loads
    assert first.finished is None


def test_only_ready_pods_are_asked() -> None:
    assert samples.addresses(k.settled(k.spec(), replicas=3, ready=1)) == [
        ("p0", "http://10.0.0.0:8000/metrics")
    ]


@pytest.mark.parametrize(
    ("observed", "readings", "expected"),
    [
        (k.settled(k.spec(), replicas=2, ready=1), {"p0": reading(0)}, ("p1", False)),
        (k.settled(k.spec(), replicas=2, ready=2), {"p0": reading(5), "p1": reading(3)}, ("p1", True)),
        (k.settled(k.spec(), replicas=2, ready=2), {"p0": reading(3, 1), "p1": reading(3, 2)}, ("p0", True)),
        (k.settled(k.spec(), replicas=2, ready=2), {"p0": reading(3), "p1": "silent"}, ("p1", True)),
    ],
    ids=["unready first", "least KV", "then fewest requests", "silent"],
)
def test_the_victim(observed: Observed, readings: dict[str, Any], expected: tuple[str, bool]) -> None:
    assert victim.choose(observed, readings) == expected


def test_a_decision_becomes_status() -> None:
    status = autoscaling.build(decision(next_change_after=None), k.settled(k.spec()), NOW)
    assert status["desired"] == 2
    assert status["decisions"] == [
        {"time": "2026-01-01T00:00:00Z", "from": 1, "to": 2, "limiting": "QueueDepth", "reason": "because"}
    ]
    assert status["metrics"] == [
        {"type": "QueueDepth", "target": 4, "value": 3, "replicas": 2},
        {"type": "KVCacheUtilizationPercent", "target": 80, "value": 34, "replicas": 1},
    ]


def test_status_changes_only_with_the_wish_or_its_limit() -> None:
    observed = k.settled(k.spec())
    first = autoscaling.build(decision(), observed, NOW)
    seen = replace(observed, owner=k.owner(status={"autoscaling": first}))
    assert autoscaling.build(replace(decision(), reason="other numbers"), seen, NOW) == first
    other = autoscaling.build(decision(limiting="StabilizationWindow"), seen, NOW)
    assert other["limiting"] == "StabilizationWindow"
    assert other["decisions"] == first["decisions"]


def test_ten_decisions_are_kept_newest_first() -> None:
    observed = k.settled(k.spec())
    status: dict[str, Any] = {}
    for desired in range(2, 20):
        status = autoscaling.build(decision(desired), observed, NOW)
        observed = replace(observed, owner=k.owner(status={"autoscaling": status}))
    assert [d["to"] for d in status["decisions"]] == list(range(19, 9, -1))


def test_capacity_is_what_a_replica_measured() -> None:
    measured = {"p": reading(kv_tokens=100, weights_bytes=5)}
    expected = {"weightsBytes": 5, "kvCacheTokens": 100, "maxConcurrentSequences": 8}
    assert samples.capacity_of(measured, None) == expected
    assert samples.capacity_of({"p": "silent"}, expected) == expected
    assert samples.capacity_of({}, None) is None


def test_a_deployment_made_anew_goes_back_to_its_count() -> None:
    spec = k.spec(autoscaling={"maxReplicas": 4}).autoscaling
    assert restored(decision(1), 3, spec).desired == 3
    assert restored(decision(1), 9, spec).desired == 4
    assert restored(decision(3), 2, spec).desired == 3
    assert restored(decision(1), 0, spec).desired == 1
