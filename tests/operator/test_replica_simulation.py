"""The scaler in a closed loop with a small model of replicas: load comes, replicas load, queues drain.

One replica runs `slots` requests at once, each for `service` seconds; a new one serves `start` seconds after
it was asked for. Requests wait in the replica that they were sent to, the one with the fewest at the time.
Where `prefill` is given, a replica reads the prompts one after the other, each in so many seconds, and only
then runs them.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sheaf_operator.cluster.reading import Sample
from sheaf_operator.scaling.behavior import Limits, Recommendation
from sheaf_operator.scaling.decide import History, decide
from sheaf_operator.scaling.policy import Policy
from sheaf_operator.scaling.samples import Samples

TICK = 5
# Requests per minute of an hour. Source: Azure Public Dataset, LLM inference trace 2023 (conversation),
# CC-BY 4.0.
HOUR = [
    191, 265, 329, 353, 307, 273, 268, 261, 322, 298, 301, 302, 345, 326, 283, 279, 280, 308, 343, 351,
    351, 343, 408, 396, 386, 398, 432, 480, 476, 453, 448, 507, 438, 413, 423, 418, 465, 311, 329, 316,
    333, 355, 319, 360, 334, 375, 330, 249, 221, 249, 265, 280, 256, 254, 242, 260, 246, 225, 37,
]  # fmt: skip


@dataclass
class Replica:
    ready_at: int
    running: list[int] = field(default_factory=list)  # when each ends
    free_at: int = 0  # when the prompt that is being read has been
    waiting: deque[int] = field(default_factory=deque)  # when each came
    finished: int = 0  # since the last tick
    begun: int = 0

    def load(self) -> int:
        return len(self.running) + len(self.waiting)


@dataclass
class Fleet:
    """`log` holds the wanted count at each tick, `waits` how long each request waited."""

    policy: Policy
    slots: int
    service: int
    start: int
    reports_slots: bool = True
    prefill: int = 0
    replicas: list[Replica] = field(default_factory=lambda: [Replica(0)])
    leaving: list[Replica] = field(default_factory=list)
    history: History = field(default_factory=History)
    log: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)

    def second(self, now: int, arrivals: int) -> None:
        ready = [r for r in self.replicas if r.ready_at <= now]
        for _ in range(arrivals):
            min(ready, key=Replica.load).waiting.append(now)
        for replica in [*ready, *self.leaving]:
            before = len(replica.running)
            replica.running = [end for end in replica.running if end > now]
            replica.finished += before - len(replica.running)
            while replica.waiting and len(replica.running) < self.slots and replica.free_at <= now:
                self.waits.append(now - replica.waiting.popleft())
                replica.free_at = now + self.prefill
                replica.running.append(replica.free_at + self.service)
                replica.begun += 1
        if now % TICK == 0:
            self.tick(now, ready)

    def tick(self, now: int, ready: list[Replica]) -> None:
        loads = tuple(
            Sample(
                waiting=len(r.waiting),
                running=len(r.running),
                kv=0.7 * len(r.running) / self.slots,
                slots=self.slots if self.reports_slots else None,
                oldest_wait=now - r.waiting[0] if r.waiting else 0,
                finished=r.finished,
                begun=r.begun,
            )
            for r in ready
        )
        for replica in ready:
            replica.finished = replica.begun = 0
        count = len(self.replicas)
        decision = decide(self.policy, Samples(count, loads), self.history, float(now))
        self.history = decision.history
        if decision.desired > count:
            self.replicas += [Replica(now + self.start) for _ in range(decision.desired - count)]
        elif decision.desired < count:  # one at a time, the newest that loads or the least busy one
            victim = max(self.replicas, key=lambda r: (r.ready_at > now, -r.load()))
            self.replicas.remove(victim)
            self.leaving.append(victim)
        self.history = self.history.applied(now, count, len(self.replicas))
        self.log.append(len(self.replicas))

    def turns(self) -> int:
        """How often the count changed its direction."""
        moves = [b - a for a, b in pairwise(self.log) if a != b]
        return sum((a > 0) != (b > 0) for a, b in pairwise(moves))

    def load(self) -> int:
        return sum(r.load() for r in [*self.replicas, *self.leaving])


def arrivals(per_second: float, now: int) -> int:
    """Evenly spread: the whole requests that fall into this second."""
    return int(per_second * (now + 1)) - int(per_second * now)


def hour(fleet: Fleet) -> None:
    for now in range(len(HOUR) * 60 + 900):
        per_second = HOUR[now // 60] / 60 if now // 60 < len(HOUR) else 0.0
        fleet.second(now, arrivals(per_second, now))


@pytest.mark.parametrize(
    ("slots", "service", "start"), [(16, 10, 90), (8, 8, 60), (32, 20, 30), (64, 30, 300)]
)
def test_an_hour_of_a_real_trace_drains_and_does_not_flap(slots: int, service: int, start: int) -> None:
    begin = math.ceil(HOUR[1] / 60 * service / slots)
    fleet = Fleet(Policy(1, 30, down=Limits(window=300)), slots, service, start)
    fleet.replicas = [Replica(0) for _ in range(begin)]
    hour(fleet)
    peak = max(HOUR) / 60 * service / slots  # replicas' worth of work
    assert fleet.load() == 0
    assert fleet.log[-1] == 1
    assert max(fleet.log) <= 2 * peak + 1
    assert fleet.turns() <= 5, fleet.log
    assert sorted(fleet.waits)[len(fleet.waits) * 9 // 10] <= service


@pytest.mark.parametrize("start", [0, 60, 300])
def test_a_step_of_load_is_not_asked_for_twice_while_replicas_load(start: int) -> None:
    """No 2 → 4 → 8 → 16: the queue that grows meanwhile is real, what has been asked for counts."""
    fleet = Fleet(Policy(1, 64), slots=8, service=8, start=start)
    for now in range(start + 5):
        fleet.second(now, 20 if now == 0 else arrivals(1.0, now))
    offered = 20 + start
    assert max(fleet.log) <= 1 + offered / (8 + 4)


GROWING = [(16, 10, 90, 5.6), (8, 8, 180, 9), (64, 30, 300, 4)]


@pytest.mark.parametrize("ramp", [1, 600], ids=["step", "ramp"])
@pytest.mark.parametrize(("slots", "service", "start", "peak"), GROWING)
def test_a_backlog_that_grows_while_replicas_load_is_not_all_to_run_at_once(
    slots: int, service: int, start: int, peak: float, ramp: int
) -> None:
    """`peak` in replicas' worth of work. Half as much again is left for draining what has queued up."""
    fleet = Fleet(Policy(1, 30), slots, service, start)
    rate = peak * slots / service
    came = 0.0
    for now in range(2400):
        before, came = came, came + rate * min(1.0, (now + 1) / ramp)
        fleet.second(now, int(came) - int(before))
        if now == start:
            asked = len(fleet.replicas)
    assert max(fleet.log) <= math.ceil(1.5 * peak) + 1
    assert ramp > start or asked >= peak  # all that is needed is under way before the first one is ready
    assert sum(len(r.waiting) for r in fleet.replicas) <= 4 * len(fleet.replicas)
    assert fleet.turns() <= 1


@pytest.mark.parametrize("service", [2, 4, 10])
@pytest.mark.parametrize(("clients", "slots", "target", "needed"), [(4, 2, 1, 2), (21, 8, 2, 3)])
def test_clients_that_wait_for_their_answers_bring_what_they_need_at_once(
    clients: int, slots: int, target: int, needed: int, service: int
) -> None:
    fleet = Fleet(Policy(1, 8, queue_target=target), slots, service, start=20)
    for now in range(600):
        idle = now < 90
        fleet.second(now, 0 if idle else clients - fleet.load())
    ups = [b for a, b in pairwise(fleet.log) if b > a]
    assert ups == [needed]
    assert max(fleet.log) == needed
    assert fleet.log[20] == needed, fleet.log[:24]


@settings(max_examples=40, deadline=None)
@given(
    load=st.floats(0.1, 5.0),
    slots=st.integers(2, 32),
    service=st.integers(2, 20),
    start=st.integers(0, 120),
)
def test_a_constant_stream_settles_and_its_queue_drains(
    load: float, slots: int, service: int, start: int
) -> None:
    """`load` in replicas' worth of work. After the queue of the start has drained the count stands still."""
    fleet = Fleet(Policy(1, 40, down=Limits(window=60)), slots, service, start)
    rate = load * slots / service
    end = 2400
    for now in range(end):
        fleet.second(now, arrivals(rate, now))
    late = fleet.log[len(fleet.log) // 2 :]
    assert max(late) - min(late) <= 1, late
    assert fleet.turns() <= 3, fleet.log
    assert sum(len(r.waiting) for r in fleet.replicas) <= len(fleet.replicas) * (4 + slots / service)


@settings(max_examples=20, deadline=None)
@given(
    load=st.floats(0.1, 5.0),
    prefill=st.integers(1, 8),
    service=st.integers(1, 10),
    start=st.integers(0, 120),
    window=st.sampled_from([30, 60, 120]),
)
@example(load=1.2, prefill=2, service=2, start=60, window=60)
def test_a_load_that_prefill_limits_keeps_its_replicas(
    load: float, prefill: int, service: int, start: int, window: int
) -> None:
    """`load` in replicas' worth of prompts. Few requests run and slots are free: they say nothing here."""
    fleet = Fleet(Policy(1, 40, down=Limits(window=window)), 64, service, start, prefill=prefill)
    end = 2400
    for now in range(end):
        fleet.second(now, arrivals(load / prefill, now))
    late = fleet.log[len(fleet.log) // 2 :]
    assert max(late) == min(late) >= load * 0.9, late
    assert fleet.turns() <= 3, fleet.log
    assert sum(len(r.waiting) for r in fleet.replicas) <= len(fleet.replicas) * 5
    for now in range(end, end + 10 * window + 600):
        fleet.second(now, 0)
    assert fleet.log[-1] == 1


def hpa(raws: list[tuple[float, int]], current: int, up: float, down: float) -> int:
    """HPA's stabilization, after its source: the last recommendation, clamped by both windows' extremes."""
    now, wish = raws[-1]
    low = min([r for t, r in raws if t > now - up] + [wish])
    high = max([r for t, r in raws if t > now - down] + [wish])
    return min(max(current, low), high)


@given(
    wishes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=25),
    up=st.sampled_from([0, 30, 120]),
    down=st.sampled_from([0, 60, 300]),
    first=st.integers(1, 9),
)
def test_stabilization_is_hpas(wishes: list[tuple[int, int]], up: int, down: int, first: int) -> None:
    """Given the same recommendations at the same times. A KV load of w·0.8 asks for w replicas exactly."""
    policy = Policy(1, 9, queue_target=None, kv_target=0.8, up=Limits(up), down=Limits(down))
    history = History((Recommendation(first, 0.0, 0.0),))
    raws: list[tuple[float, int]] = [(0.0, first)]
    now, current = 0.0, first
    for gap, wish in wishes:
        now += gap
        decision = decide(policy, Samples(current, wanting(wish)), history, now)
        if now - raws[-1][0] <= max(up, down):  # a longer pause begins the window anew
            raws.append((now, decision.raw))
        else:
            raws = [(now, current), (now, decision.raw)]
        assert decision.desired == hpa(raws, current, up, down)
        history, current = decision.history, decision.desired


def wanting(replicas: int) -> tuple[Sample, ...]:
    """Load under which KV use asks for exactly so many."""
    return tuple(Sample(waiting=0, running=1, kv=0.8, slots=8) for _ in range(replicas))
