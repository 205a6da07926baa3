"""What replicas take in that have slots free and still a queue, and that it is remembered."""

import pytest
from sheaf_operator.cluster.reading import Sample
from sheaf_operator.scaling.decide import History, decide
from sheaf_operator.scaling.pace import MEMORY, RECENT, Pace
from sheaf_operator.scaling.policy import Policy
from sheaf_operator.scaling.samples import Samples

QUEUED = Sample(waiting=9, running=3, kv=0.0, slots=64, oldest_wait=6.0, finished=10, begun=10)


def watched(pace: Pace, *loads: Sample, seconds: float) -> Pace:
    """Read every 5 s."""
    for _ in range(round(seconds / 5)):
        pace = pace.observe(max(pace.time, 0.0) + 5, loads)
    return pace


def served(finished: int) -> Sample:
    """Nothing waits; as many come as end."""
    return Sample(waiting=0, running=1, kv=0.0, slots=64, finished=finished, begun=finished)


LEARNT = watched(Pace(), QUEUED, seconds=60)  # 2/s


def test_the_pace_is_what_began_while_others_waited() -> None:
    assert LEARNT.most.per_second == pytest.approx(2)
    assert LEARNT.replicas_busy() == pytest.approx(1)
    assert watched(Pace(), QUEUED, seconds=10).replicas_busy() == 0  # too little is known


@pytest.mark.parametrize(
    "load",
    [
        served(10),
        Sample(waiting=9, running=64, kv=0.0, slots=64, oldest_wait=6.0, finished=10, begun=10),
        Sample(waiting=9, running=3, kv=0.0, slots=64, oldest_wait=0.5, finished=10, begun=10),
        Sample(waiting=9, running=3, kv=0.0, slots=64, oldest_wait=6.0, finished=10),
    ],
    ids=["nothing waits", "all slots are taken", "they have just come", "not known"],
)
def test_only_a_queue_beside_free_slots_tells(load: Sample) -> None:
    assert watched(Pace(), load, seconds=60).most.seconds == 0


def test_it_is_remembered_and_raised_by_replicas_that_are_seen_to_do_more() -> None:
    calm = watched(LEARNT, served(8), served(8), seconds=MEMORY)
    assert calm.most.per_second == pytest.approx(2)
    fast = watched(LEARNT, served(20), served(20), seconds=3 * MEMORY)
    assert fast.most.per_second == pytest.approx(4, rel=0.1)


def test_no_more_is_held_than_arrives() -> None:
    assert watched(LEARNT, served(0), seconds=5 * RECENT).replicas_busy() < 0.02


def test_replicas_that_the_pace_needs_are_kept_and_the_reason_says_so() -> None:
    pace = watched(LEARNT, served(6), served(6), seconds=10 * RECENT)
    loads = (served(6), served(6))
    policy = Policy(1, 9)
    kept = decide(policy, Samples(2, loads), History(pace=pace), pace.time + 5)
    assert (kept.raw, kept.limiting) == (2, "WithinTargets")
    assert "2.4 requests/s arrive and one replica takes in 2/s: 2 replicas suits" in kept.reason
    assert decide(policy, Samples(2, loads), History(), pace.time + 5).raw == 1
