from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sheaf_operator.cluster.reading import Sample
from sheaf_operator.scaling.behavior import Limits, RatePolicy, Recommendation
from sheaf_operator.scaling.decide import Decision, History, decide
from sheaf_operator.scaling.policy import Policy
from sheaf_operator.scaling.samples import Samples

POLICY = Policy(minimum=1, maximum=10, queue_target=4, kv_target=0.8, down=Limits(window=300))
IDLE = Sample(waiting=0, running=0, kv=0.0, slots=8)


def load(waiting: int = 0, running: int = 0, kv: float = 0.0, slots: int | None = 8) -> Sample:
    return Sample(waiting=waiting, running=running, kv=kv, slots=slots)


def settled_history(replicas: int, since: float = -10_000.0) -> History:
    """The scaler has wanted `replicas` until now, for so long that no window holds anything back."""
    return History((Recommendation(replicas, since, 0.0),))


def a_decision() -> Decision:
    return decide(POLICY, Samples(1, (IDLE,)), History(), 0.0)


CASES: list[tuple[str, Samples, int, str, str]] = [
    ("idle at the minimum", Samples(1, (IDLE,)), 1, "WithinTargets", "suits"),
    ("a queue below the target", Samples(1, (load(4, 8),)), 1, "WithinTargets", ""),
    (
        "a queue above the target",
        Samples(1, (load(5, 8),)),
        2,
        "QueueDepth",
        "5 requests waiting and 8 running",
    ),
    ("a long queue asks for what it needs", Samples(1, (load(28, 8),)), 3, "QueueDepth", "3 replicas needed"),
    ("KV alone, nothing waiting", Samples(1, (load(0, 4, 0.95),)), 2, "KVCacheUtilizationPercent", "95%"),
    ("KV within tolerance", Samples(1, (load(0, 4, 0.87),)), 1, "WithinTargets", ""),
    ("the higher signal wins", Samples(1, (load(5, 8, 0.99),)), 2, "QueueDepth", ""),
    ("KV beats queue", Samples(2, (load(3, 8, 1.0), load(3, 8, 1.0))), 3, "KVCacheUtilizationPercent", ""),
    ("what is loading counts", Samples(3, (load(28, 8),)), 3, "WithinTargets", ""),
    ("more than what is loading", Samples(2, (load(28, 8),)), 3, "QueueDepth", "1 more loading"),
    ("bounded above", Samples(1, (load(999, 8),)), 10, "MaxReplicas", "maxReplicas 10"),
    ("nobody ready", Samples(2), 2, "NoReadyReplica", "no replica is ready"),
    (
        "ready but silent",
        Samples(2, (), missing=2),
        2,
        "MissingSamples",
        "2 replicas not answering",
    ),
    ("silence forbids less", Samples(3, (IDLE, IDLE), missing=1), 3, "MissingSamples", "not scaling down"),
    ("silence allows more", Samples(2, (load(40, 8),), missing=1), 4, "QueueDepth", ""),
    ("idle and old", Samples(5, (IDLE,) * 5), 1, "QueueDepth", "1 replica would do"),
    ("running requests hold their replicas", Samples(3, (load(0, 6),) * 3), 3, "WithinTargets", ""),
    ("fits into fewer", Samples(3, (load(0, 2),) * 3), 1, "QueueDepth", "1 replica would do"),
    ("a runtime without slots holds", Samples(3, (load(0, 2, slots=None),) * 3), 3, "WithinTargets", ""),
]


@pytest.mark.parametrize(
    ("samples", "desired", "limiting", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_decisions(samples: Samples, desired: int, limiting: str, words: str) -> None:
    decision = decide(POLICY, samples, settled_history(1), 0.0)
    assert (decision.desired, decision.limiting) == (desired, limiting)
    assert words in decision.reason


def test_a_switched_off_signal_says_nothing() -> None:
    queue_only = Policy(1, 10, queue_target=4, kv_target=None)
    assert decide(queue_only, Samples(1, (load(0, 1, 1.0),)), History(), 0.0).desired == 1
    kv_only = Policy(1, 10, queue_target=None, kv_target=0.8)
    assert decide(kv_only, Samples(1, (load(99, 8, 0.1),)), History(), 0.0).desired == 1


def test_bounds_hold_at_once() -> None:
    """They are the user's word: no window and no rate applies."""
    slow = Limits(window=300, rates=(RatePolicy("Pods", 1, 600),), select="Min")
    policy = Policy(3, 5, up=slow, down=slow)
    assert decide(policy, Samples(1, (IDLE,)), History(), 0.0).desired == 3
    assert decide(policy, Samples(9, (IDLE,) * 9), History(), 0.0).desired == 5


def test_scale_down_waits_for_the_window_and_says_until_when() -> None:
    history = History()
    busy = Samples(3, (load(0, 8),) * 3)
    history = decide(POLICY, busy, history, 0.0).history
    idle = Samples(3, (IDLE,) * 3)
    for now in (5.0, 100.0, 299.0):
        decision = decide(POLICY, idle, history, now)
        assert (decision.desired, decision.limiting) == (3, "StabilizationWindow")
        assert decision.next_change_after == 300.0
        history = decision.history
    assert decide(POLICY, idle, history, 301.0).desired == 1


def test_a_restart_shrinks_nothing_within_the_first_window() -> None:
    idle = Samples(4, (IDLE,) * 4)
    history = History()
    for now in range(0, 300, 5):
        decision = decide(POLICY, idle, history, float(now))
        assert decision.desired == 4
        history = decision.history
    assert decide(POLICY, idle, history, 301.0).desired == 1


def test_the_window_keeps_the_highest_of_the_past() -> None:
    """A dip between two peaks lets nobody go."""
    history = History()
    for now, running in ((0.0, 8), (100.0, 0), (200.0, 8), (400.0, 0)):
        decision = decide(POLICY, Samples(3, (load(0, running),) * 3), history, now)
        assert decision.desired == 3
        history = decision.history
    assert decide(POLICY, Samples(3, (IDLE,) * 3), history, 499.0).desired == 3
    assert decide(POLICY, Samples(3, (IDLE,) * 3), history, 501.0).desired == 1


def test_a_scale_up_window_holds_back_a_spike() -> None:
    policy = Policy(1, 10, up=Limits(window=30))
    quiet = decide(policy, Samples(1, (IDLE,)), History(), 0.0).history
    spike = Samples(1, (load(30, 8),))
    decision = decide(policy, spike, quiet, 10.0)
    assert (decision.desired, decision.limiting) == (1, "StabilizationWindow")
    assert decide(policy, spike, decision.history, 31.0).desired > 1


@pytest.mark.parametrize(
    ("rates", "select", "desired"),
    [
        ((RatePolicy("Pods", 2, 60),), "Max", 4),
        ((RatePolicy("Percent", 100, 60),), "Max", 4),
        ((RatePolicy("Pods", 1, 60), RatePolicy("Percent", 200, 60)), "Max", 6),
        ((RatePolicy("Pods", 1, 60), RatePolicy("Percent", 200, 60)), "Min", 3),
        ((), "Disabled", 2),
    ],
)
def test_rates_as_hpa_has_them(rates: tuple[RatePolicy, ...], select: Any, desired: int) -> None:
    policy = Policy(1, 10, up=Limits(rates=rates, select=select))
    decision = decide(policy, Samples(2, (load(99, 8), load(99, 8))), History(), 0.0)
    assert (decision.desired, decision.limiting) == (desired, "RatePolicy")


def test_a_change_that_failed_is_not_counted() -> None:
    policy = Policy(1, 10, up=Limits(rates=(RatePolicy("Pods", 2, 60),)))
    busy = Samples(1, (load(99, 8),))
    first = decide(policy, busy, History(), 0.0)
    assert decide(policy, busy, first.history, 5.0).desired == first.desired == 3


@pytest.mark.parametrize(("percent", "desired"), [(10, 4), (50, 2), (100, 1)])
def test_a_small_percentage_still_lets_one_go(percent: int, desired: int) -> None:
    policy = Policy(1, 10, down=Limits(window=0, rates=(RatePolicy("Percent", percent, 60),)))
    assert decide(policy, Samples(5, (IDLE,) * 5), History(), 0.0).desired == desired


def test_a_pause_longer_than_the_window_begins_it_anew() -> None:
    """Nobody knows what was needed meanwhile."""
    idle = Samples(3, (IDLE,) * 3)
    history = settled_history(1)
    paused = decide(POLICY, idle, history, 400.0)
    assert paused.desired == 3
    assert paused.next_change_after == 700.0
    waited = decide(POLICY, idle, paused.history, 690.0)
    assert waited.desired == 3
    assert decide(POLICY, idle, waited.history, 701.0).desired == 1


def test_a_burst_that_has_just_arrived_is_no_limit() -> None:
    """Twelve requests before the engine's next step do not mean that it runs one at a time."""
    burst = Sample(waiting=12, running=0, kv=0.0, slots=8, oldest_wait=0.01)
    assert decide(POLICY, Samples(1, (burst,)), History(), 0.0).desired == 1
    stuck = Sample(waiting=12, running=2, kv=0.0, slots=8, oldest_wait=5.0)
    assert decide(POLICY, Samples(1, (stuck,)), History(), 0.0).desired == 3


def test_a_rate_counts_what_changed_within_its_period() -> None:
    policy = Policy(1, 10, up=Limits(rates=(RatePolicy("Pods", 2, 60),)))
    busy = load(99, 8)
    first = decide(policy, Samples(1, (busy,)), History(), 0.0)
    assert first.desired == 3
    second = decide(policy, Samples(3, (busy,) * 3), first.history.applied(0.0, 1, 3), 10.0)
    assert second.desired == 3
    assert decide(policy, Samples(3, (busy,) * 3), second.history, 61.0).desired == 5


loads = st.lists(
    st.builds(
        Sample,
        waiting=st.integers(0, 500),
        running=st.integers(0, 64),
        kv=st.floats(0, 1),
        slots=st.one_of(st.none(), st.integers(1, 64)),
    ),
    max_size=8,
).map(tuple)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Policy, Samples]:
    low = draw(st.integers(1, 6))
    policy = Policy(
        low,
        low + draw(st.integers(0, 20)),
        queue_target=draw(st.one_of(st.none(), st.integers(1, 50))),
        kv_target=draw(st.integers(10, 95)) / 100,
        down=Limits(window=draw(st.integers(0, 600))),
    )
    answered = draw(loads)
    missing = draw(st.integers(0, 3))
    current = len(answered) + missing + draw(st.integers(0, 4))
    return policy, Samples(current, answered, missing)


@given(situations())
def test_the_bounds_always_hold(situation: tuple[Policy, Samples]) -> None:
    policy, samples = situation
    decision = decide(policy, samples, History(), 0.0)
    assert policy.minimum <= decision.desired <= policy.maximum
    assert decision.reason


@given(situations())
def test_a_missing_sample_never_shrinks(situation: tuple[Policy, Samples]) -> None:
    policy, samples = situation
    if samples.missing:
        decision = decide(policy, samples, settled_history(1), 0.0)
        assert decision.desired >= min(samples.current, policy.maximum)


UNLIMITED = tuple(Sample(waiting=0, running=n, kv=0.0, slots=None) for n in (2, 0, 0))
MIXED = (Sample(waiting=0, running=64, kv=0.0, slots=None), *(load(0, 1, slots=1),) * 2)


@given(situations(), st.integers(0, 7), st.integers(1, 200), st.floats(0, 1))
@example((POLICY, Samples(3, UNLIMITED)), 0, 1, 0.0)
@example((POLICY, Samples(3, MIXED)), 0, 1, 0.0)
def test_more_load_never_asks_for_less(
    situation: tuple[Policy, Samples], which: int, more: int, kv: float
) -> None:
    policy, samples = situation
    if not samples.loads:
        return
    index = which % len(samples.loads)
    old = samples.loads[index]
    new = Sample(old.waiting + more, old.running, max(old.kv, kv), old.slots)
    heavier = Samples(
        samples.current, (*samples.loads[:index], new, *samples.loads[index + 1 :]), samples.missing
    )
    history = settled_history(1)
    assert decide(policy, heavier, history, 0.0).desired >= decide(policy, samples, history, 0.0).desired


@settings(deadline=None)
@given(st.integers(0, 400), st.floats(0, 6), st.integers(1, 32), st.integers(1, 16), st.integers(1, 12))
def test_a_constant_load_does_not_swing(
    total: int, kv_total: float, slots: int, target: int, start: int
) -> None:
    """Whatever the start, the count moves in one direction and then stands still."""
    policy = Policy(1, 12, queue_target=target, kv_target=0.8, down=Limits(window=0))
    history, current, seen = History(), start, [start]
    for step in range(60):
        running = min(total, slots * current)
        each = tuple(
            Sample(
                waiting=(total - running) // current + (i < (total - running) % current),
                running=running // current + (i < running % current),
                kv=min(1.0, kv_total / current),
                slots=slots,
            )
            for i in range(current)
        )
        decision = decide(policy, Samples(current, each), history, float(step))
        history, current = decision.history, decision.desired
        seen.append(current)
    assert len(set(seen[30:])) == 1, seen
    ups = sum(b > a for a, b in pairwise(seen))
    downs = sum(b < a for a, b in pairwise(seen))
    assert not (ups and downs), seen


@given(target=st.integers(1, 95), replicas=st.integers(1, 20))
def test_every_kv_target_can_scale_up_before_the_cache_is_full(target: int, replicas: int) -> None:
    """And what it scales to is not given back at the same load, nor anything below the target asked for."""
    policy = Policy(1, 1000, queue_target=None, kv_target=target / 100, down=Limits(window=0))

    def wish(used: float, count: int) -> int:
        samples = Samples(count, tuple(load(0, 4, used / count) for _ in range(count)))
        return decide(policy, samples, History(), 0.0).desired

    used = 0.99 * replicas
    more = wish(used, replicas)
    assert more > replicas
    assert wish(used, more) == more
    assert wish(target / 100 * replicas, replicas) == replicas


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 40))
def test_a_slow_start_is_not_asked_for_twice(waiting: int, steps: int) -> None:
    """While new replicas load, the same queue never asks for more than it did at first."""
    policy = Policy(1, 100)
    first = decide(policy, Samples(1, (load(waiting, 8),)), History(), 0.0)
    history, current = first.history, first.desired
    for step in range(steps):
        decision = decide(policy, Samples(current, (load(waiting, 8),)), history, 5.0 * step)
        assert decision.desired == current
        history = decision.history


@given(situations(), st.lists(st.floats(0, 50), max_size=30))
def test_the_history_stays_small(situation: tuple[Policy, Samples], gaps: list[float]) -> None:
    policy, samples = situation
    history, now = History(), 0.0
    for gap in gaps:
        now += gap
        history = decide(policy, samples, history, now).history
    assert len(history.recommendations) <= 3
