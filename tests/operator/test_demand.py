"""What arrives and what replicas take in, measured from readings, and what the scaler makes of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.cluster.reading import Sample
from sheaf_operator.scaling.decide import History, decide
from sheaf_operator.scaling.demand import DRAIN, ENOUGH, MEMORY, WINDOW, Demand
from sheaf_operator.scaling.policy import Policy
from sheaf_operator.scaling.samples import Samples


def queue(waiting: int, finished: int | None, running: int = 8) -> Sample:
    return Sample(waiting=waiting, running=running, kv=0.0, slots=8, finished=finished)


def growing(growth: int, finished: int, steps: int = 4, waiting: int = 20) -> Demand:
    """One replica, read every 5 s: `growth` more wait at each reading."""
    demand = Demand()
    for step in range(steps):
        demand = demand.observe(5.0 * step, (queue(waiting + growth * step, finished),))
    return demand


def watched(demand: Demand, *loads: Sample, seconds: float) -> Demand:
    """Read every 5 s."""
    for _ in range(round(seconds / 5)):
        demand = demand.observe(max(demand.time, 0.0) + 5, loads)
    return demand


def test_arrivals_are_what_has_finished_plus_what_has_grown() -> None:
    demand = growing(growth=15, finished=5)
    assert demand.rate == pytest.approx(4)  # 15 + 5 in 5 s
    flow = demand.flow()
    assert flow is not None
    assert flow.rate == demand.rate
    assert flow.service == pytest.approx(8)  # 8 run, one ends per second
    assert flow.stuck
    assert flow.running(waiting=0) == pytest.approx(32)
    assert flow.running(waiting=round(DRAIN)) == pytest.approx(40)  # one more per second


def test_a_queue_that_shrinks_is_not_stuck() -> None:
    flow = growing(growth=-1, finished=5).flow()
    assert flow is not None
    assert not flow.stuck


@pytest.mark.parametrize(
    "demand",
    [
        Demand(),
        growing(growth=5, finished=5, steps=int(ENOUGH / 5)),
        growing(growth=5, finished=0),
        growing(growth=5, finished=5).observe(20.0, (queue(0, 5),)),
        growing(growth=5, finished=5).observe(20.0 + WINDOW, (queue(40, 5),)),
    ],
    ids=["nothing read", "too short", "nothing has finished", "the queue was gone", "a long pause"],
)
def test_too_little_is_known(demand: Demand) -> None:
    assert demand.flow() is None


def test_what_came_before_the_queue_says_nothing_about_it() -> None:
    quiet = watched(Demand(), served(0), seconds=WINDOW)
    demand = watched(quiet, queue(20, 20), seconds=5)
    assert demand.rate < 1  # too short: the minute's average still
    for step in range(2):
        demand = demand.observe(demand.time + 5, (queue(35 + 15 * step, 5),))
    assert demand.rate == pytest.approx(4)


def test_a_replica_that_comes_or_is_silent_brings_no_arrivals() -> None:
    demand = growing(growth=15, finished=5)
    before = demand.flow()
    assert before is not None
    for loads in ((queue(250, None), queue(250, None)), (queue(20, 5),) * 3):
        demand = demand.observe(demand.time + 5, loads)
        after = demand.flow()
        assert after is not None
        assert (after.rate, after.service) == (before.rate, before.service)
        assert not after.stuck  # nothing is known yet of those that answer now


def test_the_reason_tells_rate_and_service() -> None:
    demand = growing(growth=15, finished=5, waiting=100)
    decision = decide(Policy(1, 40), Samples(1, (queue(160, 5),)), History(demand=demand), 20.0)
    assert decision.desired == 5
    assert decision.reason == (
        "160 requests waiting and 8 running on 1 replica; one replica runs 8 and may keep 4 waiting;"
        " 4 requests/s of 8 s each, and the queue gone within 600 s, keep 34 running: 5 replicas needed"
    )


@given(
    growth=st.integers(-5, 40),
    finished=st.integers(0, 40),
    waiting=st.integers(1, 300),
    more=st.integers(1, 200),
    current=st.integers(1, 12),
    missing=st.integers(0, 2),
)
def test_the_flow_never_asks_for_more_than_the_backlog_and_never_for_fewer_than_there_are(
    growth: int, finished: int, waiting: int, more: int, current: int, missing: int
) -> None:
    demand = growing(growth, finished)
    policy = Policy(1, 100)
    wishes = []
    for waits in (waiting, waiting + more):
        samples = Samples(current + missing, (queue(waits, finished),), missing)
        measured = decide(policy, samples, History(demand=demand), 20.0)
        backlog = decide(policy, samples, History(), 20.0)
        assert measured.desired <= backlog.desired
        assert measured.desired >= current + missing
        wishes.append(measured.desired)
    assert wishes == sorted(wishes)


# The intake of replicas that have slots free and still a queue

QUEUED = Sample(waiting=9, running=3, kv=0.0, slots=64, oldest_wait=6.0, finished=10, begun=10)


def served(finished: int) -> Sample:
    """Nothing waits; as many come as end."""
    return Sample(waiting=0, running=1, kv=0.0, slots=64, finished=finished, begun=finished)


LEARNT = watched(Demand(), QUEUED, seconds=60)  # 2/s


def test_the_intake_is_what_began_while_others_waited() -> None:
    assert LEARNT.intake.rate == pytest.approx(2)
    assert LEARNT.replicas_busy() == pytest.approx(1)
    assert watched(Demand(), QUEUED, seconds=10).replicas_busy() == 0  # too little is known


@pytest.mark.parametrize(
    "load",
    [
        served(10),
        replace(QUEUED, running=64),
        replace(QUEUED, oldest_wait=0.5),
        replace(QUEUED, begun=None),
    ],
    ids=["nothing waits", "all slots are taken", "they have just come", "not known"],
)
def test_only_a_queue_beside_free_slots_tells(load: Sample) -> None:
    assert watched(Demand(), load, seconds=60).intake.seconds == 0


def test_it_is_remembered_and_raised_by_replicas_that_are_seen_to_do_more() -> None:
    calm = watched(LEARNT, served(8), served(8), seconds=MEMORY)
    assert calm.intake.rate == pytest.approx(2)
    fast = watched(LEARNT, served(20), served(20), seconds=3 * MEMORY)
    assert fast.intake.rate == pytest.approx(4, rel=0.1)


def test_no_more_is_held_than_arrives() -> None:
    assert watched(LEARNT, served(0), seconds=2 * WINDOW).replicas_busy() == 0


def test_replicas_that_the_intake_needs_are_kept_and_the_reason_says_so() -> None:
    demand = watched(LEARNT, served(6), served(6), seconds=10 * WINDOW)
    loads = (served(6), served(6))
    policy = Policy(1, 9)
    kept = decide(policy, Samples(2, loads), History(demand=demand), demand.time + 5)
    assert (kept.raw, kept.limiting) == (2, "WithinTargets")
    assert "2.4 requests/s arrive and one replica takes in 2/s: 2 replicas suits" in kept.reason
    assert decide(policy, Samples(2, loads), History(), demand.time + 5).raw == 1


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30), st.integers(1, 5))
def test_one_decision_cites_one_rate(growth: int, finished: int, begun: int, steps: int) -> None:
    """A queue beside free slots makes both answers speak."""
    demand = LEARNT
    for step in range(steps):
        load = replace(QUEUED, waiting=20 + growth * step, finished=finished, begun=begun)
        demand = demand.observe(demand.time + 5, (load,))
        if flow := demand.flow():
            assert flow.words(load.waiting).startswith(f"{demand.rate:.3g} requests/s")
        assert demand.words().startswith(f"{demand.rate:.3g} requests/s")
