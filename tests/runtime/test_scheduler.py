"""The scheduler's decisions, one rule at a time."""

from __future__ import annotations

import time

import pytest
from checked_executor import FULL, CheckedExecutor, Info, expected_output
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.queue_limits import DrainRate, retry_after
from sheaf_runtime.engine.request import Request
from sheaf_runtime.engine.scheduler import Scheduler
from sheaf_runtime.protocol.messages import Accepted, AddRequest, Rejected
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.plan import KVGroup, SampledTokens, StepPlan, StepResult


def message(request_id, prompt, *, max_tokens=8, priority=0, salt=None, **sampling):
    return AddRequest(
        request_id=str(request_id),
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(**{"seed": 1, "ignore_eos": True} | sampling, max_tokens=max_tokens),
        arrival_time=0.0,
        priority=priority,
        cache_salt=salt,
    )


def engine(*, depth=0, num_blocks=64, groups=(FULL,), device="cpu", clock=time.time, **config):
    config = EngineConfig(
        model="none",
        pipeline_depth=depth,
        **{"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32} | config,
    )
    info = Info(num_blocks=num_blocks, kv_groups=groups, max_model_len=200, device=device)
    executor = CheckedExecutor(info, config.block_size, config.max_num_seqs, config.max_num_batched_tokens)
    return EngineCore(executor, config, clock=clock), executor


def add(core, *args, **kwargs):
    answer = core.add(b"c", message(*args, **kwargs))
    assert isinstance(answer, Accepted), answer


def drain(core):
    ends = []
    while core.busy:
        ends += [o.request.request_id for o in core.step() if o.finish_reason]
    core.check_integrity()
    assert core.scheduler.kv.pool.num_live == 0
    return ends


def scheduler(**options):
    defaults = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32}
    return Scheduler((FULL,), **defaults | options)


def put(sched, req_id, prompt, **options):
    request = Request.from_message(
        message(req_id, prompt, **options), client=b"c", req_id=req_id, seed=0, eos_token_ids=()
    )
    sched.add(request)
    return request


def result_of(plan: StepPlan) -> StepResult:
    sampled = [
        SampledTokens(req_id=s.req_id, epoch=s.epoch, token_ids=[7]) for s in plan.scheduled if s.sample
    ]
    return StepResult(step=plan.step, sampled=sampled)


def tokens(plan):
    return {s.req_id: s.num_tokens for s in plan.scheduled}


# --- batching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1])
def test_sixteen_equal_requests_take_no_more_steps_than_one(depth):
    core, executor = engine(depth=depth, num_blocks=400, max_num_seqs=16, max_num_batched_tokens=64)
    for i in range(16):
        add(core, i, range(i, i + 12), max_tokens=64)
    drain(core)
    assert len(executor.steps) <= 64 + 3  # 192 prompt tokens in chunks of 64


@pytest.mark.parametrize("depth", [0, 1])
def test_a_late_short_request_ends_before_an_early_long_one(depth):
    core, _ = engine(depth=depth)
    add(core, "long", range(9), max_tokens=60)
    for _ in range(5):
        core.step()
    add(core, "short", range(5), max_tokens=3)
    assert drain(core) == ["short", "long"]


def test_decodes_run_beside_the_chunks_of_a_long_prompt():
    sched = scheduler(max_num_batched_tokens=8)
    put(sched, 0, [1, 2], max_tokens=20)
    sched.commit(result_of(sched.schedule(0.0)), 0.0)
    put(sched, 1, range(20))
    seen = []
    for _ in range(4):
        plan = sched.schedule(0.0)
        seen.append(tokens(plan))
        sched.commit(result_of(plan), 0.0)
    assert seen == [{0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 6}, {0: 1, 1: 1}]


def test_priority_then_arrival_decides_who_is_admitted():
    sched = scheduler(max_num_seqs=1)
    put(sched, 0, [1], priority=5)
    put(sched, 1, [1], priority=1)
    put(sched, 2, [1], priority=1)
    assert [n.req_id for n in sched.schedule(0.0).new] == [1]
    assert [r.req_id for r in sched.waiting] == [2, 0]


def test_nothing_is_scheduled_beyond_max_tokens_at_depth_1():
    core, executor = engine(depth=1)
    add(core, 0, [1, 2, 3], max_tokens=2)
    drain(core)
    assert [tokens(p) for p in executor.steps] == [{0: 3}, {0: 1}]


def test_a_late_stop_costs_one_discarded_token():
    sched = scheduler(pipeline_depth=1)
    request = put(sched, 0, [1, 2, 3], max_tokens=10, stop_token_ids=(7,))
    first, second = sched.schedule(0.0), sched.schedule(0.0)
    assert second.scheduled[0].start == 3
    (output,) = sched.commit(result_of(first), 0.0)
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([7], "stop", 7)
    assert sched.kv.pool.num_live == 1, "the launched step still writes to this page"
    assert sched.count_blocks() == (0, 0, 63), "but no request holds it"
    assert sched.schedule(0.0) is None
    assert sched.commit(result_of(second), 0.0) == []
    assert sched.kv.pool.num_live == 0
    assert request.num_output_tokens == 1


def test_min_tokens_and_eos():
    sched = scheduler()
    a = put(sched, 0, [1], max_tokens=5, min_tokens=2, stop_token_ids=(7,))
    ends = []
    while sched.busy:
        ends += [o for o in sched.commit(result_of(sched.schedule(0.0)), 0.0) if o.finish_reason]
    assert a.num_output_tokens == 3
    assert ends[0].finish_reason == "stop"


def test_a_stop_at_the_last_token_counts_as_a_stop():
    sched = scheduler()
    put(sched, 0, [1], max_tokens=1, stop_token_ids=(7,))
    (output,) = sched.commit(result_of(sched.schedule(0.0)), 0.0)
    assert output.finish_reason == "stop"


# --- pages ------------------------------------------------------------------------------------------------


def test_a_waiting_request_is_not_let_in_where_it_would_push_others_out():
    sched = scheduler(num_blocks=1 + 7, block_size=4)
    put(sched, 0, range(8), max_tokens=17)
    sched.commit(result_of(sched.schedule(0.0)), 0.0)  # holds 2 pages and 9 tokens: 4 pages soon
    put(sched, 1, range(50, 58), max_tokens=9)  # 3 pages soon
    put(sched, 2, [1], max_tokens=2)  # 1 page, of the 3 that are left, but they are promised
    plan = sched.schedule(0.0)
    assert [n.req_id for n in plan.new] == [1]
    assert sched.kv.pool.num_available == 2
    sched.commit(result_of(plan), 0.0)
    assert sched.schedule(0.0).new == []


def test_nothing_is_admitted_in_a_step_that_was_short_of_pages():
    """The victim frees more than is asked for, but whoever waits has to wait for the next step."""
    sched = scheduler(num_blocks=1 + 8)
    put(sched, 0, range(8), max_tokens=17)
    put(sched, 1, range(20, 36), max_tokens=8, priority=1)
    sched.commit(result_of(sched.schedule(0.0)), 0.0)
    put(sched, 2, [1], max_tokens=1, priority=1)
    while True:
        plan = sched.schedule(0.0)
        assert plan.new == []
        sched.commit(result_of(plan), 0.0)
        if sched.counters.preemptions:
            break
    assert plan.ended == [1]


def test_preemption_takes_the_lowest_priority_and_the_latest_arrival():
    core, _ = engine(num_blocks=1 + 12, max_num_seqs=4)
    for i, priority in enumerate([0, 9, 0, 0]):
        add(core, i, [i, i], max_tokens=30, priority=priority)
    requests = dict(core._requests)
    while core.scheduler.counters.preemptions < 2:
        core.step()
    assert requests[b"c", "1"].epoch == 1
    assert requests[b"c", "3"].epoch == 1
    ends = drain(core)
    assert ends[0] == "0"
    assert sorted(ends) == ["0", "1", "2", "3"]


def test_a_victim_already_planned_for_this_step_leaves_the_plan_and_its_budget():
    """A better-ranked prefill comes after worse-ranked decodes in a step, and may need their pages."""
    sched = scheduler(num_blocks=1 + 9, block_size=4, max_num_batched_tokens=3, max_num_seqs=2)
    put(sched, 0, [1, 2], max_tokens=30)  # decodes, and grows past what was foreseen
    sched.commit(result_of(sched.schedule(0.0)), 0.0)
    put(sched, 1, range(20, 44), max_tokens=5, priority=-1)
    plans = []
    while sched.counters.preemptions == 0:
        plan = sched.schedule(0.0)
        plans.append(plan)
        sched.check_integrity()
        sched.commit(result_of(plan), 0.0)
    assert plans[-1].ended == [0]
    assert tokens(plans[-1]) == {1: 3}


def test_at_depth_1_pages_on_their_way_are_waited_for():
    """One victim is enough: its pages come with the commit, nobody else is pushed out meanwhile."""
    sched = scheduler(num_blocks=1 + 6, block_size=4, pipeline_depth=1, max_num_seqs=3, prefix_caching=False)
    for i in range(3):
        put(sched, i, [i, i, i], max_tokens=12)
    launched = [sched.schedule(0.0)]
    while sched.counters.preemptions == 0:
        plan = sched.schedule(0.0)
        launched += [plan] if plan else []
        if sched.counters.preemptions == 0:
            sched.commit(result_of(launched.pop(0)), 0.0)
    assert sched.counters.preemptions == 1
    assert len(sched.running) == 2
    sched.check_integrity()


def test_a_request_too_large_for_the_pool_is_refused_with_numbers():
    core, _ = engine(num_blocks=1 + 5)
    answer = core.add(b"c", message("a", range(10), max_tokens=12))
    assert isinstance(answer, Rejected)
    assert answer.reason == "invalid"
    assert "21 tokens" in answer.message
    assert "20" in answer.message
    add(core, "b", range(10), max_tokens=11)
    drain(core)


def test_the_longest_request_that_the_pool_is_said_to_hold_runs_with_windows():
    groups = (FULL, KVGroup(kind="window", layers=(1,), page_bytes=1, window=6))
    core, _ = engine(num_blocks=1 + 25, groups=groups, max_num_batched_tokens=8, depth=1)
    longest = core.scheduler.kv.max_tokens()
    add(core, 0, [i % 90 for i in range(longest - 9)], max_tokens=10)
    assert isinstance(core.add(b"c", message(1, range(longest - 9), max_tokens=11)), Rejected)
    drain(core)


def test_a_page_shared_with_one_that_ended_stays_live():
    sched = scheduler(pipeline_depth=1)
    put(sched, 0, range(9), max_tokens=3)
    sched.commit(result_of(sched.schedule(0.0)), 0.0)
    ended = put(sched, 1, [*range(8), 50])
    in_flight = sched.schedule(0.0)
    assert sched.count_blocks() == (4, 0, 59)
    sched.abort(ended)
    assert sched.kv.pool.num_live == 4
    assert sched.count_blocks() == (3, 0, 60)
    sched.commit(result_of(in_flight), 0.0)
    assert sched.kv.pool.num_live == 3


# --- prefix cache -----------------------------------------------------------------------------------------


def hit_of(core, request_id, *args, **kwargs):
    add(core, request_id, *args, **kwargs)
    request = core._requests[b"c", request_id]
    drain(core)
    return request.cached_tokens


@pytest.mark.parametrize(("device", "hits"), [("cpu", [11, 12, 6, 5]), ("cuda:0", [8, 12, 4, 4])])
def test_a_hit_leaves_a_token_to_compute_and_on_a_cpu_ends_where_prompts_part(device, hits):
    core, executor = engine(device=device)
    prompt = list(range(12))
    assert hit_of(core, "a", prompt) == 0
    assert hit_of(core, "b", prompt) == hits[0]  # 12 are cached; the last token must be computed
    assert hit_of(core, "c", [*prompt, 50]) == hits[1]
    assert hit_of(core, "d", [*prompt[:6], 50, 51]) == hits[2]
    assert hit_of(core, "e", [*prompt[:5], 60, 61]) == hits[3]
    assert core.scheduler.counters.prefix_cache_hits == sum(hits)
    assert core.scheduler.counters.prefix_cache_queries == 12 + 12 + 13 + 8 + 7
    copies = [pair for plan in executor.steps for new in plan.new for pair in new.copied_pages]
    assert len(copies) == (3 if device == "cpu" else 0)


def test_several_go_on_from_one_half_full_page_at_once():
    """Atlas 1193 and 692: they wrote into the page itself and each read the others' tokens. Mooncake 4153: of
    a half full page more tokens were taken than the prompt has."""
    core, executor = engine()
    prompt = list(range(6))
    assert hit_of(core, "before", prompt) == 0
    jobs = [([*prompt, 40 + i], i) for i in range(3)] + [(prompt[:5], 7), (prompt, 8)]
    for i, (tokens, seed) in enumerate(jobs):
        add(core, str(i), tokens, seed=seed, max_tokens=6)
    requests = [core._requests[b"c", str(i)] for i in range(len(jobs))]
    drain(core)
    assert [r.cached_tokens for r in requests] == [6, 6, 6, 4, 5]
    for request, (tokens, seed) in zip(requests, jobs, strict=True):
        wanted = expected_output(
            tokens, message("x", tokens, seed=seed, max_tokens=6).sampling, vocab_size=97
        )
        assert request.token_ids == tokens + wanted
    assert len([pair for plan in executor.steps for new in plan.new for pair in new.copied_pages]) == 4


def test_the_next_turn_begins_behind_all_that_was_said():
    """Also where the answer ends within a page, and where it was aborted there; not where it failed."""
    core, _ = engine()
    add(core, "a", range(6), max_tokens=5)
    add(core, "gone", range(30, 36), max_tokens=50)
    said, gone = core._requests[b"c", "a"], core._requests[b"c", "gone"]
    for _ in range(4):
        core.step()
    core.abort(b"c", ["gone"])
    drain(core)
    assert hit_of(core, "b", [*said.token_ids, 1, 2, 3]) == 10  # its last token was never computed
    assert hit_of(core, "c", [*gone.token_ids, 1, 2, 3]) == len(gone.token_ids) - 1
    core.scheduler.kv.forget()
    assert hit_of(core, "d", [*said.token_ids, 1, 2, 3]) == 0


def test_output_tokens_can_be_hit_by_the_next_turn():
    core, _ = engine()
    add(core, "a", range(6), max_tokens=7)
    request = core._requests[b"c", "a"]
    drain(core)
    assert hit_of(core, "b", [*request.token_ids, 1, 2, 3]) == 12


def test_salt_separates_and_caching_can_be_off():
    core, _ = engine()
    hit_of(core, "a", range(12), salt="x")
    assert hit_of(core, "b", range(12), salt="x") == 11
    core.step()
    sched = core.scheduler
    y = Request.from_message(
        message("c", range(12), salt="y"), client=b"", req_id=99, seed=0, eos_token_ids=()
    )
    assert sched.kv.find_hit(y.token_ids, y.root, y.digests).num_published == 0
    off, _ = engine(enable_prefix_caching=False)
    hit_of(off, "a", range(12))
    assert hit_of(off, "b", range(12)) == 0
    assert off.take_stats().blocks_cached == 0
    assert off.scheduler.counters.prefix_cache_queries == 0


def test_pages_are_found_only_once_they_are_computed():
    sched = scheduler(pipeline_depth=1)
    put(sched, 0, range(12))
    first = sched.schedule(0.0)
    early = put(sched, 1, range(12))
    second = sched.schedule(0.0)
    assert early.cached_tokens == 0
    sched.commit(result_of(first), 0.0)
    late = put(sched, 2, range(12))
    third = sched.schedule(0.0)
    assert late.cached_tokens == 8
    for plan in (second, third):
        sched.commit(result_of(plan), 0.0)
    sched.check_integrity()


def test_pages_in_flight_are_not_found_when_an_earlier_step_is_committed():
    sched = scheduler(pipeline_depth=1, max_num_batched_tokens=8)
    put(sched, 0, range(20))
    first, second = sched.schedule(0.0), sched.schedule(0.0)
    sched.commit(result_of(first), 0.0)
    late = put(sched, 1, range(20))
    third = sched.schedule(0.0)
    assert late.cached_tokens == 8
    for plan in (second, third):
        sched.commit(result_of(plan), 0.0)


# --- ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1])
def test_an_abort_frees_pages_within_one_step(depth):
    core, executor = engine(depth=depth)
    for i in range(4):
        add(core, i, range(i, i + 9), max_tokens=40)
    for _ in range(6):
        core.step()
    core.abort(b"c", ["0", "1", "2", "3", "unknown"])
    steps = len(executor.steps)
    drain(core)
    assert len(executor.steps) == steps, "nothing is launched for aborted requests"


def test_abort_of_one_that_waits_and_reuse_of_its_id():
    core, _ = engine(max_num_seqs=1)
    add(core, "a", [1])
    add(core, "b", [1])
    assert isinstance(core.add(b"c", message("b", [1])), Rejected)
    assert isinstance(core.add(b"another client", message("b", [1])), Accepted)
    core.step()
    core.abort(b"c", ["b"])
    add(core, "b", [1, 2])
    assert len(drain(core)) == 3


@pytest.mark.parametrize("depth", [0, 1])
def test_abort_storm(depth):
    core, _ = engine(depth=depth, num_blocks=40, max_num_seqs=4)
    for i in range(300):
        core.add(b"c", message(i, [i % 7, 3, 4, 5, i % 3], max_tokens=20))
        core.abort(b"c", [str(i - 2), str(i - 7)])
        core.step()
        core.check_integrity()
    core.abort(b"c", [str(i) for i in range(300)])
    assert drain(core) == []


def test_the_queue_is_bounded_beyond_what_runs():
    core, _ = engine(max_num_seqs=2, max_waiting_requests=3)
    for i in range(5):
        add(core, i, [1])
    answer = core.add(b"c", message(9, [1]))
    assert isinstance(answer, Rejected)
    assert answer.reason == "queue_full"
    core.step()
    assert (len(core.scheduler.running), len(core.scheduler.waiting)) == (2, 3)
    assert isinstance(core.add(b"c", message(9, [1])), Rejected)
    drain(core)
    add(core, 9, [1])


def test_waiting_prompt_tokens_are_bounded_and_the_answer_says_when_to_come_back():
    """vllm#49445: tokens, not requests, say how long a queue is. vllm#18826: it must not grow for ever."""
    now = [0.0]
    core, _ = engine(max_num_seqs=1, max_waiting_tokens=10, clock=lambda: now[0])
    add(core, "longer than the bound", range(20), max_tokens=1)  # nobody waits: it could never come in else
    core.step()
    for i in range(10):
        add(core, i, [1], max_tokens=2)
    answer = core.add(b"c", message("too much", [1]))
    assert isinstance(answer, Rejected)
    assert "11" not in answer.message
    assert "10 prompt tokens" in answer.message
    assert (answer.reason, answer.retry_after) == ("queue_full", 1), "nothing is measured yet"
    while len(core.scheduler.waiting) > 8:
        now[0] += 1.5
        core.step()
    add(core, "a", [1])
    add(core, "b", [1])
    answer = core.add(b"c", message("too much", [1]))
    assert isinstance(answer, Rejected)
    assert answer.retry_after == retry_after(10, 2 / now[0]) > 5
    drain(core)


def test_the_drain_rate_falls_while_nothing_begins():
    rate = DrainRate()
    assert rate.per_second(0.0) is None
    for second in range(11):
        rate.note(float(second), 2)
    assert rate.per_second(10.0) == 2
    assert rate.per_second(20.0) == 1
    assert rate.per_second(100.0) is None, "it is out of the window"
    assert [retry_after(8, 2.0), retry_after(0, 2.0), retry_after(1000, 0.1)] == [2, 1, 60]


# --- admission errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "words", "param"),
    [
        (message(0, []), ["empty"], "prompt"),
        (message(0, [1, 97]), ["97", "0 to 96"], "prompt"),
        (message(0, [-1]), ["-1"], "prompt"),
        (message(0, [1] * 250), ["200", "258", "250"], "prompt"),
        (message(0, [1] * 150, max_tokens=51), ["200", "201", "150", "51"], "prompt"),
        (message(0, [1], max_tokens=0), ["at least 1", "0"], "max_tokens"),
        (message(0, [1], max_tokens=3, min_tokens=4), ["at most", "3", "4"], "min_tokens"),
        (message(0, [1], temperature=-1.0), ["-1.0"], "temperature"),
        (message(0, [1], temperature=float("nan")), ["nan"], "temperature"),
        (message(0, [1], top_p=0.0), ["above 0"], "top_p"),
        (message(0, [1], top_k=-2), ["-2"], "top_k"),
        (message(0, [1], top_k=2**63), ["9223372036854775808"], "top_k"),
        (message(0, [1], seed=2**64), ["18446744073709551616"], "seed"),
        (message(0, [1], min_p=1.5), ["from 0 to 1"], "min_p"),
        (message(0, [1], repetition_penalty=0.0), ["above 0"], "repetition_penalty"),
        (message(0, [1], frequency_penalty=float("inf")), ["from -2 to 2"], "frequency_penalty"),
        (message(0, [1], logprobs=21), ["from 0 to 20"], "logprobs"),
        (message(0, [1], logit_bias={5: float("nan")}), ["from -100 to 100"], "logit_bias"),
        (message(0, [1], stop_token_ids=(97,)), ["97"], "stop_token_ids"),
        (message(0, [1], logit_bias={97: 1.0}), ["97"], "logit_bias"),
        (message(0, [1], allowed_token_ids=(97,)), ["97"], "allowed_token_ids"),
        (message(0, [1], allowed_token_ids=()), ["empty"], "allowed_token_ids"),
        (message(0, [1], bad_words=((1, 97),)), ["97"], "bad_words"),
    ],
)
def test_requests_that_can_never_run_are_refused(request_, words, param):
    core, _ = engine()
    answer = core.add(b"c", request_)
    assert isinstance(answer, Rejected)
    assert (answer.reason, answer.param) == ("invalid", param)
    assert all(word in answer.message for word in words), answer.message


@pytest.mark.parametrize(
    ("field", "least"),
    [
        ("block_size", 1),
        ("max_num_seqs", 1),
        ("max_num_batched_tokens", 1),
        ("max_waiting_requests", 0),
        ("num_gpu_blocks_override", 2),
    ],
)
def test_configurations_that_can_never_run_are_refused(field, least):
    with pytest.raises(ValueError, match=f"{field} must be at least {least}, got {least - 1}"):
        engine(**{field: least - 1})


def test_more_seats_than_memory_can_hold_are_refused():
    with pytest.raises(ValueError, match="max_num_seqs must be at most 65536, got 2147483647"):
        engine(max_num_seqs=2**31 - 1, max_num_batched_tokens=2**31 - 1)


def test_a_budget_below_the_seats_is_refused():
    """The latest requests would never get a token while the others run."""
    with pytest.raises(ValueError, match=r"max_num_batched_tokens \(7\) must be at least max_num_seqs \(8\)"):
        engine(max_num_batched_tokens=7, max_num_seqs=8)


# --- long prompts beside short ones -----------------------------------------------------------------------


def steps(sched, count):
    seen = []
    for _ in range(count):
        plan = sched.schedule(0.0)
        seen.append(tokens(plan))
        sched.commit(result_of(plan), 0.0)
        sched.check_integrity()
    return seen


def test_a_short_prompt_starts_beside_a_long_one():
    sched = scheduler(max_num_batched_tokens=8, num_blocks=200)
    put(sched, 0, range(40))
    assert steps(sched, 1) == [{0: 8}]  # nobody else is there
    put(sched, 1, [1, 2, 3])
    put(sched, 2, [4] * 6)  # longer than half of a step
    put(sched, 3, [5])
    assert steps(sched, 3) == [{0: 4, 1: 3, 3: 1}, {0: 6, 1: 1, 3: 1}, {0: 6, 1: 1, 3: 1}]


def test_short_prompts_pass_a_long_one_that_finds_no_room():
    sched = scheduler(max_num_batched_tokens=8, num_blocks=200, max_num_seqs=3)
    for req_id, prompt in enumerate(([0] * 20, [1] * 20, [2, 3])):
        put(sched, req_id, prompt, max_tokens=2)
    assert steps(sched, 5) == [{0: 6, 2: 2}, {0: 7, 2: 1}, {0: 7, 1: 1}, {0: 1, 1: 7}, {1: 8}]


def test_long_prompts_share_a_step():
    sched = scheduler(max_num_batched_tokens=8, num_blocks=200, max_num_partial_prefills=2)
    put(sched, 0, [0] * 30)
    assert steps(sched, 1) == [{0: 8}]
    put(sched, 1, [1] * 30)
    put(sched, 2, [2] * 30)
    assert steps(sched, 3) == [{0: 8}, {0: 8}, {0: 6, 1: 2}]
    assert steps(sched, 2) == [{0: 1, 1: 7}, {0: 1, 1: 7}]


def test_the_threshold_says_what_is_long():
    sched = scheduler(max_num_batched_tokens=8, long_prefill_token_threshold=2, num_blocks=200)
    put(sched, 0, range(40))
    steps(sched, 1)
    put(sched, 1, [1, 2, 3])
    put(sched, 2, [1, 2])
    assert steps(sched, 1) == [{0: 6, 2: 2}]


def test_the_same_prompt_is_computed_once():
    sched = scheduler(max_num_batched_tokens=16, num_blocks=200)
    first = put(sched, 0, range(10))
    for req_id in (1, 2):
        put(sched, req_id, range(10)).after = first
    assert steps(sched, 2) == [{0: 10}, {0: 1, 1: 2, 2: 2}]


def test_nobody_waits_for_a_request_that_has_gone():
    sched = scheduler(max_num_batched_tokens=4)
    first = put(sched, 0, range(10))
    put(sched, 1, range(10)).after = first
    steps(sched, 1)
    sched.abort(first)
    assert steps(sched, 1) == [{1: 4}]


# --- seeds and stats --------------------------------------------------------------------------------------


def test_requests_without_a_seed_get_the_same_ones_in_every_run():
    def seeds(engine_seed):
        core, executor = engine(seed=engine_seed)
        for i in range(3):
            add(core, i, [1], seed=None)
        drain(core)
        return [n.sampling.seed for p in executor.steps for n in p.new]

    assert seeds(0) == seeds(0)
    assert len({*seeds(0), *seeds(1)}) == 6


def test_without_a_seed_of_its_own_no_two_engines_draw_the_same():
    def seed():
        core, executor = engine()
        add(core, 0, [1], seed=None)
        core.step()
        return executor.steps[0].new[0].sampling.seed

    assert seed() != seed()


def test_stats():
    core, _ = engine(max_num_seqs=1, max_num_batched_tokens=8)
    add(core, 0, range(20), max_tokens=3)
    add(core, 1, range(50, 57))
    core.step()
    stats = core.take_stats()
    assert (stats.running, stats.waiting, stats.queued_tokens, stats.oldest_arrival) == (1, 1, 7, 0.0)
    assert (stats.blocks_live, stats.blocks_cached, stats.blocks_free) == (2, 0, 61)
    assert (stats.prompt_tokens, stats.generation_tokens, stats.steps) == (8, 0, 1)
    assert stats.iteration_tokens == [8]
    drain(core)
    stats = core.take_stats()
    assert (stats.running, stats.waiting, stats.queued_tokens, stats.oldest_arrival) == (0, 0, 0, None)
    assert stats.blocks_live == 0
    assert stats.blocks_cached == -(-(20 + 2) // 4) + -(-(7 + 7) // 4)  # the last of each is not full
    assert (stats.prompt_tokens, stats.generation_tokens) == (27, 11)
    assert sum(stats.iteration_tokens) == 12 + 2 + 7 + 7
