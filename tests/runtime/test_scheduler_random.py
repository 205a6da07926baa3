"""The engine's promises under random arrivals, aborts, priorities, pools and windows, at both depths.

``CheckedExecutor`` holds each plan to the rules; the tokens are compared with their definition, so being
preempted, chunked, batched or served from the prefix cache must change nothing.
"""

from __future__ import annotations

from random import Random

import pytest
from checked_executor import CheckedExecutor, Info, expected_output, expected_vector
from engine_jobs import GROUPS, Job, random_jobs
from foreseen import Foreseen
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_runtime.config import EngineConfig, SpeculativeConfig
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.kv_cache import KVCache
from sheaf_runtime.engine.prefix import root_digest
from sheaf_runtime.protocol.messages import Accepted, AddRequest
from sheaf_runtime.protocol.sampling import SamplingParams


def run(jobs: list[Job], core: EngineCore, now: list[float]) -> None:
    """Drive to the end, a second a turn; fails where a request does not end in a bounded number of turns."""
    by_id = {j.message.request_id: j for j in jobs}
    turn = 0
    while turn <= 80 or core.busy:
        assert turn < 5000, "starvation"
        now[0] = float(turn)
        for job in jobs:
            if job.arrives == turn:
                job.accepted = isinstance(core.add(b"c", job.message), Accepted)
            if job.aborted == turn:
                core.abort(b"c", [job.message.request_id])
        for output in core.step():
            job = by_id[output.request.request_id]
            assert job.reason is None, "output after the end"
            assert job.aborted is None or turn < job.aborted, "output after an abort"
            if output.finish_reason == "timeout":
                timeout = job.message.timeout
                assert timeout is not None
                assert turn >= job.arrives + timeout or not job.got, "too early"
            job.got += output.token_ids
            job.vector = output.pooled
            job.reason = output.finish_reason
        core.check_integrity()
        stats = core.take_stats()
        total = core.scheduler.kv.pool.num_total
        assert stats.blocks_live + stats.blocks_cached + stats.blocks_free == total
        turn += 1
    assert core.scheduler.kv.pool.num_live == 0
    assert not core.scheduler.running
    assert not core.scheduler.waiting


# Drawn from a seed: hypothesis' own draws lean to small cases, in which nobody gets in anybody's way.
@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), depth=st.sampled_from([0, 1]))
def test_every_request_gets_its_tokens(seed, depth):
    r = Random(seed)
    jobs, groups = random_jobs(r), r.choice(GROUPS)
    block_size, max_num_seqs = r.choice([1, 2, 4]), r.choice([1, 2, 4, 8])
    budget = max(max_num_seqs, r.choice([1, 3, 8, 16, 40]))
    config = EngineConfig(
        model="none",
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=r.choice([0, 0, 1, 4]),
        max_num_partial_prefills=r.choice([1, 1, 2, 3]),
        target_ttft_ms=r.choice([None, None, 100.0]),
        target_inter_token_ms=r.choice([None, None, 1e-3, 5.0, 40.0]),
        enable_prefix_caching=r.random() < 0.7,
        pipeline_depth=depth,
        speculative_config=r.choice([None, SpeculativeConfig(method="ngram", num_speculative_tokens=4)]),
    )
    # A pool that holds the longest request and little more, so that the others get in its way.
    longest = max(len(j.message.prompt_token_ids) + j.message.sampling.max_tokens for j in jobs)
    kv = KVCache(
        groups,
        num_blocks=2,
        block_size=block_size,
        prefix_caching=False,
        max_in_flight_tokens=budget * (depth + 1),
    )
    num_blocks = 1 + max(1, kv.num_pages(longest) + r.choice([-2, 0, 3, 9, longest // block_size, 90]))
    info = Info(num_blocks=num_blocks, kv_groups=groups, max_model_len=100, pools_all=r.random() < 0.5)
    salts = {j.message.sampling.seed: hash(root_digest(cache_salt=j.message.cache_salt)) for j in jobs}
    seconds = r.choice([None, lambda plan: r.uniform(0, 1) ** 4 + len(plan.scheduled) / 1000])
    executor = CheckedExecutor(info, block_size, max_num_seqs, budget, salts, seconds)
    now = [0.0]
    core = EngineCore(executor, config, clock=lambda: now[0])
    if core.scheduler.speculation is not None:
        answers = [
            m.prompt_token_ids
            + expected_output(m.prompt_token_ids, m.sampling, vocab_size=97, salt=salts[m.sampling.seed])
            for m in (j.message for j in jobs)
        ]
        core.scheduler.speculation.make_proposer = lambda: Foreseen(answers, r.random(), r)
    run(jobs, core, now)
    for job in jobs:
        m = job.message
        if job.reason == "timeout":
            assert not job.vector
            job.aborted = 1 << 20  # it got what came before
        if m.pooling is not None:
            done = job.accepted and job.aborted is None
            assert not job.got
            assert not done or job.reason == "stop"
            if done or job.vector is not None:
                assert job.vector == expected_vector(m.prompt_token_ids, salt=salts[m.sampling.seed])
            continue
        expected = expected_output(
            m.prompt_token_ids,
            m.sampling,
            vocab_size=info.vocab_size,
            eos=info.eos_token_ids,
            salt=salts[m.sampling.seed],
        )
        if not job.accepted:
            assert not job.got
        elif job.aborted is None:
            assert job.got == expected
            assert job.reason == ("length" if len(expected) == m.sampling.max_tokens else "stop") or (
                job.reason == "stop" and expected[-1] in {2, *m.sampling.stop_token_ids}
            )
        else:
            assert job.got == expected[: len(job.got)]


@pytest.mark.parametrize("depth", [0, 1])
def test_preemption_happens_here_and_changes_nothing(depth):
    """Twelve growing requests in a pool that holds three of them at full length."""
    config = EngineConfig(
        model="none", block_size=4, max_num_seqs=12, max_num_batched_tokens=32, pipeline_depth=depth
    )
    info = Info(num_blocks=40)
    executor = CheckedExecutor(info, 4, 12, 32)
    made = [
        Job(
            AddRequest(
                request_id=str(i),
                prompt_token_ids=[i, i + 1, 3],
                sampling=SamplingParams(seed=i, max_tokens=48, ignore_eos=True),
                arrival_time=0.0,
            ),
            0,
            None,
        )
        for i in range(12)
    ]
    core = EngineCore(executor, config)
    run(made, core, [0.0])
    for job in made:
        m = job.message
        assert job.got == expected_output(m.prompt_token_ids, m.sampling, vocab_size=info.vocab_size)
    preemptions = core.scheduler.counters.preemptions
    assert preemptions > 0
    # No thrashing: a request that is let in runs for a page's worth of tokens before it can be pushed out.
    assert preemptions <= 12 * 48 // 4
    assert core.scheduler.counters.steps < 48 * 6
    assert core.scheduler.counters.prompt_tokens == 12 * 3
    assert core.scheduler.counters.generation_tokens == 12 * 48
