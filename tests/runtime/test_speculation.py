"""Drafts: what is proposed, how many are computed, and what the scheduler makes of them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from checked_executor import CheckedExecutor, Info, expected_output
from foreseen import Foreseen
from hypothesis import given
from hypothesis import strategies as st
from sheaf_runtime.config import EngineConfig, SpeculativeConfig
from sheaf_runtime.engine import ngram
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.ngram import NgramProposer
from sheaf_runtime.engine.speculation import choose_depths
from sheaf_runtime.protocol.messages import Accepted, AddRequest
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.drafts import joined
from sheaf_runtime.worker.plan import SampledTokens, Scheduled, StepPlan


def rescan(token_ids: list[int], most: int, shortest: int, longest: int) -> list[int]:
    """The definition: what followed the latest occurrence of the longest n tokens that are there twice."""
    for n in range(min(longest, len(token_ids) - 1), shortest - 1, -1):
        for start in range(len(token_ids) - n - 1, -1, -1):
            if token_ids[start : start + n] == token_ids[-n:]:
                made = list(token_ids)
                for place in range(start + n, start + n + most):
                    made.append(made[place])
                return made[len(token_ids) :]
    return []


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    steps=st.lists(st.integers(1, 9), min_size=60, max_size=60),
    shortest=st.integers(1, 3),
    more=st.integers(0, 3),
    slice_=st.integers(1, 80),
)
def test_proposals_are_those_of_a_rescan(tokens, steps, shortest, more, slice_):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "SLICE", slice_)
        proposer = NgramProposer(shortest, shortest + more)
        length = 0
        for step in steps:
            length = min(len(tokens), length + step)
            now = tokens[:length]
            while not proposer.follow(now):
                pass
            assert proposer.propose(now, 4) == rescan(now, 4, shortest, shortest + more)


def test_a_long_prompt_is_taken_in_slice_by_slice():
    tokens = [*range(3 * ngram.SLICE), 0, 1]
    proposer = NgramProposer(2, 2)
    assert [proposer.follow(tokens) for _ in range(4)] == [False, False, False, True]
    assert proposer.propose(tokens, 3) == [2, 3, 4]


def test_a_prompt_shorter_than_the_words_finds_nothing():
    proposer = NgramProposer(3, 5)
    assert proposer.follow([7])
    assert proposer.propose([7], 4) == []
    assert proposer.follow([7, 7, 7])
    assert proposer.propose([7, 7, 7], 4) == []


def depths(wishes: list[tuple[float, int]], **options: Any) -> list[int]:
    return choose_depths(wishes, **({"tokens": len(wishes), "seconds": 1.0, "draft_seconds": 0.1} | options))[
        0
    ]


def test_depths_follow_what_a_draft_brings():
    assert depths([(0.95, 5)]) == [5]
    assert depths([(0.5, 5)]) == [2]  # a third brings 1/8 of a token in 0.1 s; the step makes more
    assert depths([(0.04, 5)]) == [0]
    assert depths([(0.9, 0)]) == [0]
    # Many share what the step takes anyway: a draft has to be likelier to pay there.
    assert depths([(0.5, 5)] * 16) == [0] * 16
    assert depths([(0.5, 5)] * 15 + [(1.0, 5)], seconds=2.0)[-1] == 5
    assert depths([(0.9, 5), (0.8, 5)], room=3) == [2, 1]
    assert depths([(0.3, 5)], seconds=0.0, draft_seconds=0.0) == [5]  # nothing is known


def engine(
    executor_options: dict[str, Any], wrong: float, answers: list[list[int]], **options: Any
) -> tuple[EngineCore, CheckedExecutor]:
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "block_size": 4} | options
    config = EngineConfig(
        model="none",
        speculative_config=SpeculativeConfig(method="ngram", num_speculative_tokens=6),
        **options,
    )
    executor = CheckedExecutor(
        Info(**executor_options), config.block_size, config.max_num_seqs, config.max_num_batched_tokens
    )
    core = EngineCore(executor, config)
    assert core.scheduler.speculation is not None
    core.scheduler.speculation.make_proposer = lambda: Foreseen(answers, wrong, Random(1))
    return core, executor


def ask(core: EngineCore, name: str, prompt: list[int], sampling: SamplingParams) -> None:
    message = AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, arrival_time=0.0)
    assert isinstance(core.add(b"c", message), Accepted)


def drive(core: EngineCore) -> dict[str, list[int]]:
    got: dict[str, list[int]] = {}
    for _ in range(1000):
        if not core.busy:
            return got
        for output in core.step():
            got.setdefault(output.request.request_id, []).extend(output.token_ids)
        core.check_integrity()
    raise AssertionError("no end")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_answers_are_those_without_drafts(depth, wrong):
    sampling = [SamplingParams(seed=i, max_tokens=40 + i, ignore_eos=True) for i in range(4)]
    prompts = [[i, 5, 6, 7] for i in range(4)]
    answers = [expected_output(p, s, vocab_size=97) for p, s in zip(prompts, sampling, strict=True)]
    whole = [p + a for p, a in zip(prompts, answers, strict=True)]
    core, executor = engine({"num_blocks": 200}, wrong, whole, pipeline_depth=depth)
    for i, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
        ask(core, str(i), prompt, params)
    assert drive(core) == {str(i): answer for i, answer in enumerate(answers)}
    counters = core.scheduler.counters
    assert counters.generation_tokens == sum(map(len, answers))
    most = max(s.num_tokens for plan in executor.steps for s in plan.scheduled)
    if wrong == 0.0:
        assert most == 7
        assert len(executor.steps) < 15
        assert sum(counters.accepted_at) >= 0.9 * counters.draft_tokens
    if wrong == 1.0:
        assert counters.draft_tokens == 0, "what never comes is never computed"


@pytest.mark.parametrize("depth", [0, 1])
def test_nobody_is_preempted_for_a_draft(depth):
    """A pool for exactly two requests: drafts that reached ahead of them would push one out."""
    sampling = [SamplingParams(seed=i, max_tokens=24, ignore_eos=True) for i in range(2)]
    prompts = [[i, 5, 6, 7, 8] for i in range(2)]
    answers = [p + expected_output(p, s, vocab_size=97) for p, s in zip(prompts, sampling, strict=True)]
    core, _ = engine({"num_blocks": 1 + 2 * 7}, 0.4, answers, pipeline_depth=depth)
    for i, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
        ask(core, str(i), prompt, params)
    assert drive(core) == {str(i): answer[5:] for i, answer in enumerate(answers)}
    assert core.scheduler.counters.preemptions == 0
    assert core.scheduler.counters.draft_tokens > 0


def test_one_that_cannot_have_drafts_goes_on_as_fast_as_before():
    """Beside drafts steps wait for results, and each has a token of everybody."""
    fast = SamplingParams(seed=0, max_tokens=60, ignore_eos=True)
    slow = SamplingParams(seed=1, max_tokens=12, ignore_eos=True, frequency_penalty=0.5)
    whole = [[1, 2, 3, *expected_output([1, 2, 3], fast, vocab_size=97)]]
    core, executor = engine({"num_blocks": 100}, 0.0, whole)
    ask(core, "fast", [1, 2, 3], fast)
    ask(core, "slow", [4, 5, 6], slow)
    drive(core)
    with_drafts = [plan for plan in executor.steps if any(s.draft_token_ids for s in plan.scheduled)]
    assert with_drafts
    assert all(len(plan.scheduled) == 2 for plan in with_drafts[:8])


# --- on the device --------------------------------------------------------------------------------------


def row(token: int | None, req_id: int = 0) -> SampledTokens:
    return SampledTokens(
        req_id=req_id,
        epoch=0,
        token_ids=[] if token is None else [token],
        error="no number" if token is None else None,
    )


def judged(drafts: list[int], *tokens: int | None) -> SampledTokens:
    plan = StepPlan(
        step=0,
        ended=[],
        new=[],
        scheduled=[
            Scheduled(
                req_id=0,
                epoch=0,
                start=9,
                num_tokens=1 + len(drafts),
                new_block_ids=[[]],
                sample=True,
                draft_token_ids=drafts,
            )
        ],
    )
    (one, other) = joined([*map(row, tokens), row(3, req_id=1)], plan)
    assert other == row(3, req_id=1)
    return one


def test_tokens_count_up_to_the_first_that_is_not_the_draft():
    assert judged([5, 6], 5, 6, 7).token_ids == [5, 6, 7]
    assert judged([5, 6], 5, 9, 7).token_ids == [5, 9]
    assert judged([5, 6], 9, 6, 7).token_ids == [9]
    assert judged([5, 6], 6, 6, 7).token_ids == [6]


def test_an_error_behind_a_draft_is_left_to_the_next_step():
    assert judged([5, 6], None, 6, 7).error == "no number"
    assert judged([5, 6], 9, None, None).token_ids == [9]
    assert judged([5, 6], 5, None, None).token_ids == [5]
