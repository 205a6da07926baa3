"""Who is served first, who makes way, and whose time is up."""

from __future__ import annotations

import pytest
import schedule_sim as sim
from checked_executor import FULL, CheckedExecutor, Info
from hypothesis import given
from hypothesis import strategies as st
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.order import LONGEST, head_start, rank
from sheaf_runtime.engine.request import Status
from sheaf_runtime.protocol.messages import Accepted, AddRequest
from sheaf_runtime.protocol.sampling import SamplingParams

ints = st.integers(-(2**31), 2**31 - 1)


class Engine:
    """An ``EngineCore`` whose device checks each plan, with a clock that is set by hand."""

    def __init__(self, *, depth=0, num_blocks=200, **config):
        self.now = 0.0
        defaults = {"block_size": 4, "max_num_seqs": 2, "max_num_batched_tokens": 16}
        config = EngineConfig(model="none", pipeline_depth=depth, **defaults | config)
        self.executor = CheckedExecutor(
            Info(num_blocks=num_blocks, kv_groups=(FULL,), max_model_len=400),
            config.block_size,
            config.max_num_seqs,
            config.max_num_batched_tokens,
        )
        self.core = EngineCore(self.executor, config, clock=lambda: self.now)
        self.ends = {}

    def add(self, name, prompt=3, *, output=40, **options):
        message = AddRequest(
            request_id=name,
            prompt_token_ids=[(sum(name.encode()) + i) % 97 for i in range(prompt)],
            sampling=SamplingParams(seed=1, max_tokens=output, ignore_eos=True),
            arrival_time=self.now,
            **options,
        )
        assert isinstance(self.core.add(b"c", message), Accepted)
        return self.core._requests[b"c", name]

    def step(self, count=1):
        for _ in range(count):
            for output in self.core.step():
                if output.finish_reason:
                    self.ends[output.request.request_id] = output.finish_reason
            self.core.check_integrity()

    def drain(self):
        while self.core.busy:
            self.step()
        assert self.core.scheduler.kv.pool.num_live == 0
        assert not self.core.scheduler._timed
        return self.ends


# --- the rank ---------------------------------------------------------------------------------------------


@given(a=ints, b=ints)
def test_a_better_priority_ranks_first_and_is_worth_no_more_than_the_longest(a, b):
    assert (head_start(a) < head_start(b)) == (a < b) or abs(a - b) < 2 or min(abs(a), abs(b)) > 10**6
    assert abs(head_start(a)) <= LONGEST


@given(priority=ints, other=ints, wait=st.floats(2 * LONGEST + 1, 1e6))
def test_nobody_is_passed_for_ever(priority, other, wait):
    """Strict priorities starve: whoever waits long enough ranks before every arrival."""
    assert rank(0.0, priority, 0) < rank(wait, other, 1)


# --- arrivals that push others out ------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1])
def test_a_better_priority_takes_a_seat(depth):
    """vllm#40004: with all seats taken a better priority waited for a worse one to end."""
    engine = Engine(depth=depth)
    engine.add("low", priority=5)
    engine.add("lower", priority=6)
    engine.step(3)
    high = engine.add("high", priority=-5, output=4)
    engine.step()
    assert high.status is Status.RUNNING
    assert [r.request_id for r in engine.core.scheduler.waiting] == ["lower"]
    assert list(engine.drain().values()) == ["length"] * 3
    assert engine.core.scheduler.counters.preemptions == 1


@pytest.mark.parametrize("depth", [0, 1])
def test_a_better_priority_takes_pages(depth):
    engine = Engine(depth=depth, num_blocks=1 + 24, enable_prefix_caching=False)
    low = engine.add("low", 70, priority=1, output=20)
    engine.step(8)
    assert low.status is Status.RUNNING
    high = engine.add("high", 60, output=4)
    engine.step(2)
    assert high.status is Status.RUNNING
    assert list(engine.drain()) == ["high", "low"]


def test_who_could_not_be_let_in_anyway_pushes_nobody_out():
    engine = Engine(num_blocks=1 + 24, enable_prefix_caching=False)
    engine.add("same", 70, output=20)
    engine.add("low", 4, output=20, priority=1)
    engine.step(8)
    engine.add("high", 90, priority=0, output=4)
    engine.step(3)
    assert engine.core.scheduler.counters.preemptions == 0


def test_equal_priorities_never_push_each_other_out():
    """vllm#54530: by arrival alone the two would take the seat in turns."""
    engine = Engine(max_num_seqs=1, max_num_batched_tokens=16)
    for name in "abcd":
        engine.add(name, output=10)
        engine.step()
    assert list(engine.drain()) == list("abcd")
    assert engine.core.scheduler.counters.preemptions == 0


def test_a_long_prompt_of_a_better_priority_takes_the_place_of_a_long_prompt():
    engine = Engine(num_blocks=400)
    engine.add("low", 200, priority=3, output=2)
    engine.step(2)
    high = engine.add("high", 100, output=2)
    engine.step()
    assert high.status is Status.RUNNING
    assert list(engine.drain()) == ["high", "low"]


def test_a_low_priority_ends_under_a_stream_of_better_ones():
    """Without ageing it would wait as long as they come: vllm#41951 is a kin of it."""
    engine = Engine(max_num_seqs=1, max_num_batched_tokens=16)
    engine.add("low", priority=100, output=30)
    number = 0
    while "low" not in engine.ends:
        if len(engine.core.scheduler.waiting) < 3:
            engine.add(f"high{number}", priority=0, output=5)
            number += 1
        engine.now += 1.0
        assert engine.now < 3 * LONGEST
        engine.step()
    assert engine.now > LONGEST / 2, "it was passed for a while"


# --- slack ------------------------------------------------------------------------------------------------


def order(engine, *prompts):
    """Names in the order of their first tokens, of prompts that arrive 0.1 s after each other."""
    for number, prompt in enumerate(prompts):
        engine.now = number / 10
        engine.add(f"{prompt}", prompt, output=1)
    return list(engine.drain())


def test_with_a_target_for_first_tokens_who_has_least_time_left_goes_first():
    for target, expected in ((None, ["50", "200"]), (500.0, ["200", "50"])):
        engine = Engine(max_num_seqs=1, max_num_batched_tokens=256, target_ttft_ms=target)
        engine.core.scheduler.costs._coefficients = [0.01, 0.001, 0.001, 0.0, 0.0, 0.0]
        assert order(engine, 50, 200) == expected


def test_what_is_cached_takes_no_time():
    engine = Engine(max_num_seqs=1, max_num_batched_tokens=256, target_ttft_ms=500.0)
    engine.core.scheduler.costs._coefficients = [0.01, 0.001, 0.001, 0.0, 0.0, 0.0]
    engine.add("200", 200, output=1)
    engine.drain()
    engine.add("other", 150, output=1)
    again = engine.add("200", 200, output=1)
    assert [r.request_id for r in engine.core.scheduler.waiting] == ["other", "200"]
    assert again.rank[0] == pytest.approx(-0.001)
    engine.drain()


# --- deadlines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1])
def test_a_timeout_ends_what_waits_and_what_runs_and_frees_their_pages(depth):
    """vllm#16391: requests stayed in the queue however long; vllm#4000: and nobody could end them."""
    engine = Engine(depth=depth)
    engine.add("runs", timeout=5.0, output=300)
    engine.add("goes on", output=30)
    engine.step(3)
    engine.add("waits", timeout=3.0)
    engine.now = 2.9
    engine.step()
    assert engine.ends == {}
    engine.now = 3.0
    engine.step()
    assert engine.ends == {"waits": "timeout"}
    engine.now = 5.0
    engine.step()
    assert engine.ends["runs"] == "timeout"
    assert engine.drain() == {"waits": "timeout", "runs": "timeout", "goes on": "length"}


def test_a_prompt_that_cannot_make_it_is_not_begun():
    engine = Engine(num_blocks=400)
    engine.core.scheduler.costs._coefficients = [0.01, 0.01, 0.001, 0.0, 0.0, 0.0]
    engine.add("hopeless", 200, timeout=1.0)
    engine.add("tight", 90, timeout=1.0, output=2)
    engine.step()
    assert engine.ends == {"hopeless": "timeout"}
    engine.drain()
    assert engine.ends["tight"] == "length"
    assert all(n.num_prompt_tokens == 90 for plan in engine.executor.steps for n in plan.new)


def test_a_chat_whose_prompt_is_cached_can_make_it():
    engine = Engine(num_blocks=400)
    engine.core.scheduler.costs._coefficients = [0.01, 0.01, 0.001, 0.0, 0.0, 0.0]
    engine.add("a", 200, output=1)
    engine.drain()
    engine.add("a", 200, output=1, timeout=1.0)
    engine.step()
    assert engine.ends == {"a": "length"}


def test_requests_with_a_timeout_are_forgotten_at_their_end():
    """A list of deadlines that outlives its requests is a leak."""
    engine = Engine()
    for number in range(50):
        engine.add(f"{number}", output=2, timeout=1e6)
        engine.add(f"aborted {number}", output=2, timeout=1e6)
        engine.core.abort(b"c", [f"aborted {number}"])
    engine.drain()


# --- by the clock -----------------------------------------------------------------------------------------


def test_a_better_priority_gets_its_first_token_while_the_machine_is_full():
    m = sim.machine(sim.Costs.measured())
    for _ in range(sim.CHATS + 2):
        m.add(300, 400, priority=1)
    while m.now < 20:
        m.turn()
    high = m.add(100, 5)
    while high.req_id not in m.firsts:
        m.turn()
    assert m.firsts[high.req_id] - high.arrival_time < 1.0
