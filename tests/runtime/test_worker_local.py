"""The executor as the engine uses it: plans in, tokens out, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import GREEDY, PlanDriver
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.batch import Batch, Prepared
from sheaf_runtime.worker.local import LocalExecutor
from sheaf_runtime.worker.plan import NewRequest, Scheduled, StepPlan


@pytest.fixture
def executor(tiny_llama: Callable[..., Path]) -> Iterator[LocalExecutor]:
    config = EngineConfig(
        model=str(tiny_llama()), device="cpu", block_size=4, num_gpu_blocks_override=40, max_num_seqs=4
    )
    executor = LocalExecutor(config)
    yield executor
    executor.close()


def new(req_id: int, tokens: list[int], pages: list[int], sampling: SamplingParams = GREEDY) -> NewRequest:
    return NewRequest(
        req_id=req_id,
        epoch=req_id + 10,
        token_ids=tokens,
        num_prompt_tokens=len(tokens),
        num_computed_tokens=0,
        sampling=sampling,
        block_ids=[pages],
    )


def chunk(
    req_id: int, start: int, count: int, *, pages: list[int] | None = None, sample: bool = True
) -> Scheduled:
    return Scheduled(
        req_id=req_id,
        epoch=req_id + 10,
        start=start,
        num_tokens=count,
        new_block_ids=[pages or []],
        sample=sample,
    )


def plan(
    step: int, *scheduled: Scheduled, new: list[NewRequest] | None = None, ended: list[int] | None = None
) -> StepPlan:
    return StepPlan(step=step, ended=ended or [], new=new or [], scheduled=list(scheduled))


def expected(tiny_llama: Callable[..., Path], tokens: list[int], count: int) -> list[int]:
    driver = PlanDriver(str(tiny_llama()), block_size=4)
    request = driver.add(tokens)
    driver.generate([request], max_tokens=count)
    return request.output


def test_facts_of_the_model(executor: LocalExecutor) -> None:
    info = executor.info
    assert (info.vocab_size, info.max_model_len, info.eos_token_ids) == (320, 256, (2, 0))
    assert (info.num_blocks, info.dtype, info.device) == (40, "float32", "cpu")
    (group,) = info.kv_groups
    assert group.kind == "full"
    assert group.layers == (0, 1, 2)
    pools = [cache for caches in executor.kv_caches for cache in caches]
    assert group.page_bytes * info.num_blocks == sum(pool.numel() * pool.element_size() for pool in pools)
    assert pools[0].shape == (40, 2, 4, 12)


def test_steps_can_be_launched_ahead(executor: LocalExecutor, tiny_llama: Callable[..., Path]) -> None:
    """The second step's input token is the first step's output, which the host has not seen yet."""
    prompt = [5, 6, 7, 8, 9]
    executor.launch(plan(0, chunk(0, 0, 5), new=[new(0, prompt, [3, 1])]))
    executor.sample()
    executor.launch(plan(1, chunk(0, 5, 1)))
    executor.sample()
    executor.launch(plan(2, chunk(0, 6, 1)))
    executor.sample()
    results = [executor.collect() for _ in range(3)]
    assert [r.step for r in results] == [0, 1, 2]
    assert all(r.seconds is not None and 0 < r.seconds < 60 for r in results)
    assert [(s.req_id, s.epoch) for r in results for s in r.sampled] == [(0, 10)] * 3
    assert [s.token_ids[0] for r in results for s in r.sampled] == expected(tiny_llama, prompt, 3)


def test_a_step_is_collected_once_the_next_one_computes(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then its results would be dealt with beside Python that the device waits for."""
    collected, early = threading.Event(), []

    def begin(self: Batch, step: Prepared) -> Any:
        early.append(collected.wait(0.1 if step.plan.step else 0))
        return begun(self, step)

    begun = Batch.begin
    monkeypatch.setattr(Batch, "begin", begin)
    executor.launch(plan(0, chunk(1, 0, 3), new=[new(1, [5, 6, 7], [1])]))
    executor.sample()
    executor.launch(plan(1, chunk(1, 3, 1)))
    executor.sample()
    executor.collect()
    collected.set()
    executor.collect()
    assert early == [False, False]


def test_chunks_that_do_not_end_a_prompt_sample_nothing(executor: LocalExecutor) -> None:
    executor.launch(plan(0, chunk(0, 0, 2, sample=False), new=[new(0, [4] * 5, [1, 2])]))
    executor.sample()
    assert executor.collect().sampled == []
    executor.launch(plan(1, chunk(0, 2, 3)))
    executor.sample()
    assert len(executor.collect().sampled) == 1


def test_a_plan_without_work_is_legal(executor: LocalExecutor) -> None:
    executor.launch(plan(0, ended=[]))
    executor.sample()
    result = executor.collect()
    assert (result.step, result.sampled) == (0, [])


def test_resumed_request_continues_as_if_never_preempted(
    executor: LocalExecutor, tiny_llama: Callable[..., Path]
) -> None:
    sampling = SamplingParams(temperature=1.0, seed=5, max_tokens=100)
    prompt = [9, 8, 7]
    executor.launch(plan(0, chunk(0, 0, 3), new=[new(0, prompt, [1], sampling)]))
    executor.sample()
    tokens = prompt + executor.collect().sampled[0].token_ids
    for step in range(1, 4):
        executor.launch(plan(step, chunk(0, 2 + step, 1, pages=[1 + step] if step == 2 else None)))
        executor.sample()
        tokens += executor.collect().sampled[0].token_ids
    resumed = NewRequest(
        req_id=0,
        epoch=10,
        token_ids=tokens[:5],
        num_prompt_tokens=3,
        num_computed_tokens=0,
        sampling=sampling,
        block_ids=[[7, 6]],
    )
    executor.launch(plan(4, chunk(0, 0, 5), ended=[0], new=[resumed]))
    executor.sample()
    assert executor.collect().sampled[0].token_ids == tokens[5:6]


def test_a_prefix_hit_reads_pages_of_another_request(
    executor: LocalExecutor, tiny_llama: Callable[..., Path]
) -> None:
    prompt = list(range(10, 22))
    executor.launch(plan(0, chunk(0, 0, 12), new=[new(0, prompt, [5, 9, 2])]))
    executor.sample()
    executor.collect()
    longer = [*prompt[:8], 30, 31]
    hit = NewRequest(
        req_id=1,
        epoch=11,
        token_ids=longer,
        num_prompt_tokens=10,
        num_computed_tokens=8,
        sampling=GREEDY,
        block_ids=[[5, 9, 11]],
    )
    executor.launch(plan(1, chunk(1, 8, 2), chunk(0, 12, 1, pages=[12]), new=[hit]))
    executor.sample()
    tokens = {s.req_id: s.token_ids for s in executor.collect().sampled}
    assert tokens[1] == expected(tiny_llama, longer, 1)
    assert tokens[0] == expected(tiny_llama, prompt, 2)[1:]


def test_end_tokens_are_withheld_until_min_tokens(executor: LocalExecutor) -> None:
    """With every token but one banned before min_tokens, the one comes out; afterwards anything may."""
    only = 17
    stops = tuple(i for i in range(320) if i not in (only, 0, 2))
    sampling = SamplingParams(temperature=0.0, seed=0, min_tokens=2, stop_token_ids=stops)
    executor.launch(plan(0, chunk(0, 0, 3), new=[new(0, [4, 5, 6], [1, 2], sampling)]))
    executor.sample()
    executor.launch(plan(1, chunk(0, 3, 1)))
    executor.sample()
    assert [executor.collect().sampled[0].token_ids for _ in range(2)] == [[only], [only]]


def test_an_exception_surfaces_at_its_own_collect(executor: LocalExecutor) -> None:
    executor.launch(plan(0, chunk(0, 0, 3), new=[new(0, [4, 5, 6], [1])]))
    executor.sample()
    executor.launch(plan(1, chunk(99, 0, 1)))  # a request that nobody knows
    executor.sample()
    assert len(executor.collect().sampled) == 1
    with pytest.raises(KeyError):
        executor.collect()


def test_warm_up_leaves_no_trace(executor: LocalExecutor) -> None:
    executor.warm_up()
    requests = [new(i, [4, 5, 6], [1 + i]) for i in range(4)]  # every row is free again
    executor.launch(plan(0, *(chunk(i, 0, 3) for i in range(4)), new=requests))
    executor.sample()
    assert len({s.token_ids[0] for s in executor.collect().sampled}) == 1


def test_close_ends_the_thread_and_may_be_repeated(executor: LocalExecutor) -> None:
    executor.warm_up()
    assert any(t.name.startswith("sheaf-device") for t in threading.enumerate())
    executor.close()
    executor.close()
    assert not any(t.name.startswith("sheaf-device") for t in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        executor.launch(plan(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 300}, "--max-model-len must be between 2 and the model's own 256, got 300"),
        ({"max_model_len": 1}, "--max-model-len must be between 2 and"),
        ({"num_gpu_blocks_override": 1}, "--num-gpu-blocks-override must be at least 2"),
        ({"num_gpu_blocks_override": 2**31 - 1}, "--num-gpu-blocks-override 2147483647: there is memory for"),
        ({"kv_cache_memory": 0}, "--kv-cache-memory must be a positive number"),
        (
            {"kv_cache_memory": 100_000},
            r"256 tokens.*--max-model-len to 144, or raise --kv-cache-memory to 156672",
        ),
        ({"attention_backend": "triton"}, "triton"),
        ({"model": "/nowhere"}, "/nowhere is not a folder"),
    ],
)
def test_what_cannot_run_says_what_to_change(
    options: dict[str, object], message: str, tiny_llama: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        LocalExecutor(EngineConfig(**{"model": str(tiny_llama()), "device": "cpu", **options}))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device(tiny_llama: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"--device cuda.*use --device cpu"):
        LocalExecutor(EngineConfig(model=str(tiny_llama()), device="cuda"))
    assert (
        LocalExecutor(EngineConfig(model=str(tiny_llama()), num_gpu_blocks_override=4)).info.device == "cpu"
    )


@pytest.mark.parametrize(
    "options",
    [{"num_gpu_blocks_override": 2}, {"max_model_len": 2}, {"max_num_batched_tokens": 1, "max_num_seqs": 1}],
)
def test_warm_up_of_the_smallest_engines(options: dict[str, int], tiny_llama: Callable[..., Path]) -> None:
    executor = LocalExecutor(EngineConfig(model=str(tiny_llama()), device="cpu", **options))  # type: ignore[arg-type]
    executor.warm_up()
    executor.close()
