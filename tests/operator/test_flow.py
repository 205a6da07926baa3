"""The flow of requests, measured from readings, and what the scaler makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.cluster.reading import Sample
from sheaf_operator.scaling.decide import History, decide
from sheaf_operator.scaling.flow import DRAIN, ENOUGH, WINDOW, Flow
from sheaf_operator.scaling.policy import Policy
from sheaf_operator.scaling.samples import Samples


def watched(growth: int, finished: int, running: int = 8, steps: int = 4, waiting: int = 20) -> Flow:
    """One replica, read every 5 s: `growth` more wait at each reading."""
    flow = Flow()
    for step in range(steps):
        flow = flow.observe(5.0 * step, 1, waiting + growth * step, running, finished)
    return flow


def test_arrivals_are_what_has_finished_plus_what_has_grown() -> None:
    demand = watched(growth=15, finished=5).demand()
    assert demand is not None
    assert demand.rate == pytest.approx(4)  # 15 + 5 in 5 s
    assert demand.service == pytest.approx(8)  # 8 run, one ends per second
    assert demand.stuck
    assert demand.running(waiting=0) == pytest.approx(32)
    assert demand.running(waiting=round(DRAIN)) == pytest.approx(40)  # one more per second


def test_a_queue_that_shrinks_is_not_stuck() -> None:
    demand = watched(growth=-1, finished=5).demand()
    assert demand is not None
    assert not demand.stuck


@pytest.mark.parametrize(
    "flow",
    [
        Flow(),
        watched(growth=5, finished=5, steps=int(ENOUGH / 5)),
        watched(growth=5, finished=0),
        watched(growth=5, finished=5).observe(20.0, 1, 0, 8, 5),
        watched(growth=5, finished=5).observe(20.0 + WINDOW, 1, 40, 8, 5),
    ],
    ids=["nothing read", "too short", "nothing has finished", "the queue was gone", "a long pause"],
)
def test_too_little_is_known(flow: Flow) -> None:
    assert flow.demand() is None


def test_a_replica_that_comes_or_is_silent_brings_no_arrivals() -> None:
    flow = watched(growth=15, finished=5)
    before = flow.demand()
    assert before is not None
    for replicas, waiting, finished in ((2, 500, None), (3, 20, 5)):
        flow = flow.observe(flow.time + 5, replicas, waiting, 8, finished)
        after = flow.demand()
        assert after is not None
        assert (after.rate, after.service) == (before.rate, before.service)
        assert not after.stuck  # nothing is known yet of those that answer now


def test_the_reason_tells_rate_and_service() -> None:
    flow = watched(growth=15, finished=5, waiting=100)
    loads = (Sample(waiting=160, running=8, kv=0.0, slots=8, finished=5),)
    decision = decide(Policy(1, 40), Samples(1, loads), History(flow=flow), 20.0)
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
    flow = watched(growth, finished, waiting=20)
    policy = Policy(1, 100)
    wishes = []
    for queue in (waiting, waiting + more):
        loads = (Sample(waiting=queue, running=8, kv=0.0, slots=8, finished=finished),)
        samples = Samples(current + missing, loads, missing)
        measured = decide(policy, samples, History(flow=flow), 20.0)
        backlog = decide(policy, samples, History(), 20.0)
        assert measured.desired <= backlog.desired
        assert measured.desired >= current + missing
        wishes.append(measured.desired)
    assert wishes == sorted(wishes)
