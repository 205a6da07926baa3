"""What prompts get of a step beside those who decode: by a target, and without."""

from __future__ import annotations

import math
import statistics

import pytest
import schedule_sim as sim
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_runtime.config import EngineConfig, check_config
from sheaf_runtime.engine import prompt_share, scheduler
from sheaf_runtime.engine.cost_model import CostModel, StepWork
from sheaf_runtime.engine.prompt_share import LEAST, PendingPrompt, PromptRoom, prompt_seconds

# As measured once, on two cores of an AMD EPYC: what a test asks must not follow the next measurement.
COSTS = sim.Costs(
    rows=((1, 0.01876), (4, 0.02233), (16, 0.03838)),
    prompt_token=0.0010535,
    position=2.181e-6,
    pair=5.1195e-7,
)


def test_the_simulation_reads_the_profile():
    costs = sim.Costs.measured()
    assert [rows for rows, _ in costs.rows] == [1, 4, 16]
    assert 0 < costs.pair < costs.position < costs.prompt_token < costs.rows[0][1]


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_the_simulation_says_when_its_time_is_too_short(seconds):
    with pytest.raises(ValueError, match="--seconds"):
        sim.run(COSTS, budget=512, target_ms=100.0, seconds=seconds)


def calm(m, seconds=5.0):
    """The usual gap of the chats while nothing else happens."""
    while m.now < seconds:
        m.turn()
    return statistics.median(gap for _, gap in m.gaps)


# --- the rule ---------------------------------------------------------------------------------------------


LONG = (9.0, 0.0)  # seconds, and nothing that was waited


def test_nobody_decodes_and_prompts_may_take_all():
    assert prompt_seconds(0.0, 0, [(1.0, 0.0)], None) == prompt_seconds(0.0, 0, [(1.0, 0.0)], 0.1) == math.inf


def test_a_target_leaves_the_rest_but_never_nothing():
    assert prompt_seconds(0.04, 8, [LONG], 0.1) == pytest.approx(0.06)
    assert prompt_seconds(0.04, 8, [LONG], 0.03) == pytest.approx(LEAST * 0.04)


def test_each_prompt_brings_its_share_where_there_is_no_target():
    one = prompt_seconds(0.04, 8, [LONG], None)
    assert 0.04 < one < 2 * 0.04
    assert prompt_seconds(0.04, 8, [LONG] * 5, None) == pytest.approx(5 * one)
    assert prompt_seconds(0.04, 8, [LONG, (0.01, 0.0)], None) == pytest.approx(one + 0.01), (
        "no more than it takes"
    )


def test_who_has_waited_for_many_times_what_it_takes_may_bring_more():
    one = prompt_seconds(0.04, 8, [LONG], None)
    late = [prompt_seconds(0.04, 8, [(9.0, late)], None) / one for late in (0.5, 2.0, 3.0, 4.0, 100.0)]
    assert late == pytest.approx([1, 1, 1.5, 2, 2])
    assert prompt_seconds(0.04, 8, [(0.01, 100.0)], None) == pytest.approx(0.01)


def test_a_prompt_that_starts_over_after_preemption_is_not_late():
    """Its answer has begun long ago: that says nothing about how long a first token is waited for."""
    costs = CostModel()
    costs._coefficients = [0.01, 0.001, 0.001, 0.0, 0.0, 0.0]
    room, decodes = PromptRoom(costs, 64), StepWork(decodes=4, decode_context=400)
    seconds = []
    for waited in (0.0, 60.0):
        room.leave_for(decodes, prompts=[PendingPrompt(0, 100, 100, waited)], target=None)
        seconds.append(room.seconds)
    assert seconds[1] == pytest.approx(2 * seconds[0])
    held, ended = sim.machine(COSTS).add(100, 10), sim.machine(COSTS).add(100, 10)
    ended.append([1])
    assert [scheduler._pending(r, r.arrival_time + 60).waited for r in (held, ended)] == [60.0, 0.0]


@settings(max_examples=300, deadline=None)
@given(
    token=st.floats(1e-6, 0.01),
    pair=st.floats(0, 1e-5),
    seconds=st.floats(0, 3),
    tokens=st.integers(0, 600),
    chunks=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 600)), max_size=6),
)
def test_the_room_is_never_exceeded_but_by_the_first_token(token, pair, seconds, tokens, chunks):
    costs = CostModel()
    costs._coefficients = [0.01, token, 0.001, 0.0, pair, 0.0]
    room = PromptRoom(costs, tokens, seconds)
    taken = []
    for start, wanted in chunks:
        count = room.holds(start, wanted)
        assert 0 <= count <= wanted
        if count:
            room.take(start, count)
            taken.append((start, count))
    used = sum(costs.prompt_seconds(*chunk) for chunk in taken)
    assert sum(count for _, count in taken) <= tokens
    assert used <= seconds + 1e-9 or [count for _, count in taken] == [1]
    assert taken or not tokens or not chunks, "prompts always get something"


def test_what_leaves_the_step_gives_its_room_back():
    costs = CostModel()
    costs._coefficients = [0.01, 0.001, 0.001, 0.0, 0.0, 0.0]
    room = PromptRoom(costs, 64)
    room.leave_for(
        StepWork(decodes=4, decode_context=400), prompts=[PendingPrompt(0, 64, 64, 0.0)], target=0.05
    )
    before = room.holds(0, 64)
    room.take(0, 10)
    room.give_back(0, 10)
    assert room.holds(0, 64) == before == 36


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="target_inter_token_ms must be a number of milliseconds above 0"):
        check_config(EngineConfig(model="none", target_inter_token_ms=value))


# --- on a virtual clock, with steps that cost what was measured ------------------------------------------


def test_the_target_is_held_where_no_fixed_budget_holds_it():
    result = sim.compare(COSTS, seconds=40)
    assert sim.holds(result["by_target"], result["target_ms"]), result["by_target"]
    assert sim.rivals(result) == []


@pytest.mark.parametrize("target_ms", [90.0, 120.0, 250.0])
def test_other_targets_are_held_too(target_ms):
    halves = sim.run(COSTS, budget=512, target_ms=target_ms, seconds=100)
    assert sim.holds(halves, target_ms), halves
    assert all(h["inter_token_p50_ms"] > 0.85 * target_ms for h in halves), "what the target allows is used"


@pytest.mark.parametrize("chats", [1, 8])
def test_without_flags_a_chat_beside_a_long_prompt_keeps_its_gap(chats):
    """vllm#3130, ddalcu/mlx-serve#205: one long prompt froze every stream beside it."""
    m = sim.machine(COSTS)
    for _ in range(chats):
        m.add(100, 2000, watched=True)
    gap = calm(m)
    long = m.add(1500, 1)
    m.gaps.clear()
    while long.req_id not in m.firsts:
        m.turn()
    gaps = sorted(g for _, g in m.gaps)
    assert gaps[len(gaps) * 95 // 100] < 3 * gap
    assert gaps[len(gaps) // 2] > 1.5 * gap, "the prompt gets its share"


def test_gaps_beside_long_prompts_grow_slower_than_their_number():
    """With a short prompt right behind them, which brings a share of its own for a few steps."""
    found = {n: sim.beside(COSTS, n) for n in (1, 2, 3)}
    for n, most in ((1, 3.0), (2, 4.5), (3, 6.0)):
        assert found[n]["gap_p50"] < found[n]["gap_p95"] < most, (n, found[n])
    assert found[3]["long_ttft_s"] < 3 * found[1]["long_ttft_s"]
    assert found[3]["short_ttft_s"] < 0.5


def test_the_last_of_a_burst_would_wait_longer_if_all_prompts_shared_what_one_gets(monkeypatch):
    """Gaps would be shorter, and first tokens half as late again: why each prompt brings a share."""
    seeds = range(12)
    ours = sim.means([sim.mixed(COSTS, seed) for seed in seeds])
    monkeypatch.setattr(
        prompt_share,
        "prompt_seconds",
        lambda alone, decodes, wanted, target: prompt_seconds(
            alone, decodes, [max(wanted, default=(0.0, 0.0))], target
        ),
    )
    shared = sim.means([sim.mixed(COSTS, seed) for seed in seeds])
    assert ours["ttft_p99_s"] < 0.8 * shared["ttft_p99_s"]
    assert ours["ttft_p50_s"] < 0.9 * shared["ttft_p50_s"]
    assert shared["inter_token_max_s"] < 0.6 * ours["inter_token_max_s"]


def test_a_short_prompt_behind_a_long_one_starts_within_a_few_steps():
    """The 16 tokens that waited 2.9 s behind 1,500."""
    m = sim.machine(COSTS)
    for _ in range(8):
        m.add(100, 2000, watched=True)
    calm(m)
    m.add(1500, 1)
    for _ in range(3):
        m.turn()
    short = m.add(16, 1)
    turns = 0
    while short.req_id not in m.firsts:
        m.turn()
        turns += 1
    assert turns <= 4
    assert m.firsts[short.req_id] - short.arrival_time < 0.7


def test_nobody_waits_for_ever_where_the_decodes_alone_exceed_the_target():
    """vllm#3130: a budget that decodes fill keeps every prompt out."""
    m = sim.machine(COSTS, target_ms=1.0)
    for _ in range(8):
        m.add(20, 3000, watched=True)
    prompt = m.add(200, 1)
    while prompt.req_id not in m.firsts:
        assert m.now < 60
        m.turn()


def test_a_burst_of_prompts_beside_one_chat_is_not_held_back():
    """Eight wait for one: they start in little more time than without it."""

    def seconds(chats):
        m = sim.machine(COSTS)
        for _ in range(chats):
            m.add(30, 2000, watched=True)
            calm(m, 2.0)
        begin = m.now
        burst = [m.add(128, 50) for _ in range(sim.CHATS)]
        while not all(r.req_id in m.firsts for r in burst):
            m.turn()
        return m.now - begin

    assert seconds(1) < 1.6 * seconds(0)
