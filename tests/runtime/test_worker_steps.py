"""Steps are prepared while those before them compute: nothing of one reaches another, whoever takes over
whose row and buffer meanwhile, and what was recorded for one step serves others with other contents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_driver import PlanDriver
from sampler_rows import packed
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker import cpu_backend
from sheaf_runtime.worker.batch import Batch, Prepared
from sheaf_runtime.worker.local import LocalExecutor
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.step_buffer import StepBuffers, padded_bytes
from steps_ahead import Ahead, StepsAhead
from tiny_families import LONGROPE, write_tiny

VOCAB = 320
GREEDY = SamplingParams(temperature=0.0, seed=0)
WISHES = [
    GREEDY,
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, seed=4),
    SamplingParams(temperature=0.0, seed=0, repetition_penalty=1.6, frequency_penalty=0.7),
    SamplingParams(temperature=0.0, seed=0, logit_bias={5: 40.0, 6: 39.9}, presence_penalty=1.0),
    SamplingParams(temperature=1.0, seed=9, allowed_token_ids=(30, 31, 32, 33)),
    SamplingParams(temperature=0.0, seed=0, min_tokens=3, stop_token_ids=tuple(range(3, 300))),
    SamplingParams(temperature=0.0, seed=0, bad_words=tuple((i, j) for i in range(3, 60) for j in (7, 8, 9))),
    SamplingParams(temperature=0.0, seed=0, logprobs=2),
]
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("tiny"), "llama", head_dim=16, num_hidden_layers=2))


@pytest.fixture(scope="module")
def executor(folder: str) -> Iterator[LocalExecutor]:
    config = EngineConfig(
        model=folder,
        device="cpu",
        attention_backend="cpu",
        block_size=SIZE,
        num_gpu_blocks_override=600,
        max_num_seqs=3,
    )
    executor = LocalExecutor(config)
    yield executor
    executor.close()


Alone = Callable[[Ahead], list[int]]


@pytest.fixture(scope="module")
def alone(executor: LocalExecutor) -> Alone:
    """What a request says that is the only one, each step waited for."""

    @cache
    def said(prompt: tuple[int, ...], wish: int, count: int) -> list[int]:
        steps = StepsAhead(executor, block_size=SIZE, most=0)
        request = steps.add(list(prompt), WISHES[wish])
        steps.step((request, len(prompt)))
        for _ in range(count - 1):
            steps.step((request, 1))
        steps.end(request)
        steps.step()
        return request.output

    def of(request: Ahead) -> list[int]:
        if not request.output:
            return []
        return said(tuple(request.prompt), WISHES.index(request.sampling), len(request.output))

    return of


@pytest.fixture
def ahead(executor: LocalExecutor) -> Iterator[StepsAhead]:
    steps = StepsAhead(executor, block_size=SIZE, most=2)
    yield steps
    steps.collect()


def finish(steps: StepsAhead, *requests: Ahead) -> None:
    for request in requests:
        steps.end(request)
        request.epoch -= 1  # what is in flight counts all the same
    steps.step()
    steps.collect()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), most=st.integers(0, 3))
def test_rows_are_taken_over_while_steps_that_name_them_are_in_flight(
    executor: LocalExecutor, alone: Alone, seed: int, most: int
) -> None:
    draw = random.Random(seed)
    steps = StepsAhead(executor, block_size=SIZE, most=most)
    running: list[Ahead] = []
    ended: list[Ahead] = []
    for _ in range(25):
        for request in list(running):
            if draw.random() < 0.15 or request.launched > 90:
                running.remove(request)
                steps.end(request)
                ended.append(request)
            elif draw.random() < 0.05 and request.launched > len(request.prompt):
                steps.resume(request)
        while len(running) < 3 and draw.random() < 0.7:
            prompt = [draw.randrange(3, VOCAB) for _ in range(draw.choice([1, 2, 15, 16, 17, 40]))]
            running.append(steps.add(prompt, draw.choice(WISHES)))
        chosen = [request for request in running if draw.random() < 0.8]
        draw.shuffle(chosen)
        steps.step(*((r, draw.randint(1, r.length - r.launched)) for r in chosen))
    finish(steps, *running)
    for request in running + ended:
        assert request.error is None
        assert request.output == alone(request)
    assert any(request.output for request in running + ended)


# --- what others' engines have got wrong --------------------------------------------------------------------


def test_a_recycled_row_has_nothing_of_the_last_one(ahead: StepsAhead, alone: Alone) -> None:
    """vllm#43894, #51890: an allowed-token mask, and a thinking budget, of the one before."""
    before = [ahead.add([9, 8, 7], wish) for wish in (WISHES[5], WISHES[3], WISHES[6])]
    ahead.step(*((request, 3) for request in before))
    ahead.step(*((request, 1) for request in before))
    for request in before:
        ahead.end(request)
    after = [ahead.add([9, 8, 7, 6], GREEDY) for _ in before]
    ahead.step(*((request, 4) for request in after))
    ahead.step(*((request, 1) for request in after))
    finish(ahead, *after)
    assert [request.output for request in after] == [alone(after[0])] * 3
    assert len(after[0].output) == 2


def test_a_surplus_step_of_an_ended_request(ahead: StepsAhead, alone: Alone) -> None:
    """vllm-tt-plugin#76, sglang#6184: it has ended, but a step more of it is on its way, and another has its
    row: the surplus token is nobody's."""
    first, *others = (ahead.add([5 + i] * (2 + i), GREEDY) for i in range(3))
    ahead.step((first, 2), *((r, len(r.prompt)) for r in others))
    ahead.step((first, 1), *((r, 1) for r in others))
    ahead.end(first)
    late = ahead.add([5], WISHES[4])
    ahead.step((late, 1), *((r, 1) for r in others))
    ahead.step((late, 1), *((r, 1) for r in others))
    finish(ahead, late, *others)
    for request in (late, *others):
        assert request.output == alone(request)


def test_sampling_parameters_of_the_next_step(ahead: StepsAhead, alone: Alone) -> None:
    """vllm#24527, #25279: they were written into the buffer that the copy of the last step still read."""
    requests = [ahead.add([11, 12, 13], wish) for wish in WISHES[1:4]]
    ahead.step(*((request, 3) for request in requests))
    for i in range(9):
        ahead.step((requests[i % 3], 1))
    finish(ahead, *requests)
    for request in requests:
        assert len(request.output) == 4
        assert request.output == alone(request)


def test_chunks_of_prompts_without_a_token_between(ahead: StepsAhead, alone: Alone) -> None:
    """vllm#48214, #48901: nothing was waited for, and a later chunk's positions came into an earlier step."""
    long, other = ahead.add(list(range(20, 116)), GREEDY), ahead.add(list(range(200, 230)), GREEDY)
    for start in range(0, 96, 12):
        ahead.step((long, 12), *([(other, 5)] if start < 72 else []))
    finish(ahead, long, other)
    assert long.output == alone(long)
    assert other.output == alone(other)


def test_places_of_logits_are_the_step_s_own(ahead: StepsAhead, alone: Alone) -> None:
    """vllm-ascend#11690: the next step's places were read by this one's head."""
    a, b, c = (ahead.add([40 + i] * (3 + 20 * i), GREEDY) for i in range(3))
    ahead.step((a, 3), (b, 10))
    ahead.step((b, 13), (a, 1))
    ahead.step((c, 43), (b, 1))
    ahead.step((b, 1), (c, 1), (a, 1))
    finish(ahead, a, b, c)
    for request in (a, b, c):
        assert request.output == alone(request)


def test_a_token_that_waits_while_others_run(ahead: StepsAhead, alone: Alone) -> None:
    """sglang-jax#1487: its place was taken by tokens of later prompts."""
    patient, other = ahead.add([50, 51], GREEDY), ahead.add([60] * 3, GREEDY)
    ahead.step((patient, 2))
    for _ in range(12):
        passing = ahead.add([70, 71, 72], WISHES[1])
        ahead.step((passing, 3), (other, other.length - other.launched))
        ahead.end(passing)
    ahead.step((patient, 1))
    finish(ahead, patient, other)
    assert patient.output == alone(patient)
    assert other.output == alone(other)


def test_penalties_know_tokens_that_the_host_has_not_seen(ahead: StepsAhead, alone: Alone) -> None:
    """vllm#26467, sglang#8056, sglang#20026: they were told of one token too few."""
    requests = [ahead.add([21, 22], wish) for wish in (WISHES[3], WISHES[7], WISHES[4])]
    ahead.step(*((request, 2) for request in requests))
    for _ in range(6):
        ahead.step(*((request, 1) for request in requests))
    finish(ahead, *requests)
    for request in requests:
        assert request.output == alone(request)


def test_preempted_and_resumed_while_a_step_names_it(ahead: StepsAhead, alone: Alone) -> None:
    """vllm#26385, #28787, #41177: it came back with tokens missing, or unknown."""
    request, other = ahead.add([31, 32, 33], WISHES[1]), ahead.add([34], GREEDY)
    ahead.step((request, 3), (other, 1))
    for _ in range(3):
        ahead.step((request, 1), (other, 1))
    ahead.resume(request)
    ahead.step((other, 1), (request, 2))
    ahead.step((other, 1), (request, request.length - request.launched))
    ahead.step((request, 1))
    finish(ahead, request, other)
    assert len(request.output) == 4
    assert request.output == alone(request)
    assert other.output == alone(other)


def test_a_mask_is_one_step_s_and_one_request_s(ahead: StepsAhead, alone: Alone) -> None:
    """sglang#14462: masks of a step in flight were written over. The row beside keeps its likeliest token."""
    held, free = ahead.add([80, 81], GREEDY), ahead.add([82, 83], GREEDY)
    for token in (100, 101, 102, 103):
        allowed = np.zeros((1, VOCAB), np.bool_)
        allowed[0, token] = True
        masks = TokenMasks([held.req_id], packed(allowed))
        ahead.step(*((r, r.length - r.launched) for r in (free, held)), masks=masks)
    ahead.step((free, 1))
    finish(ahead, held, free)
    assert held.output == [100, 101, 102, 103]
    assert len(free.output) == 5
    assert free.output == alone(free)


# --- buffers ------------------------------------------------------------------------------------------------


def test_buffers_in_flight_are_not_written_over(ahead: StepsAhead, monkeypatch: pytest.MonkeyPatch) -> None:
    """From when a step is prepared until it has been collected; its tokens come at its turn."""
    written: dict[int, tuple[Prepared, bytes]] = {}

    def contents(step: Prepared) -> bytes:
        step.tokens_T[...] = 0
        return step.buffer._bytes[: step.buffer._used].tobytes()

    def prepare(self: Batch, plan: Any) -> Prepared:
        step = prepared(self, plan)
        for other, _ in written.values():
            assert other.buffer is not step.buffer
        written[plan.step] = step, contents(step)
        return step

    def release(self: Batch, step: Prepared) -> None:
        _, before = written.pop(step.plan.step)
        assert contents(step) == before
        released(self, step)

    prepared, released = Batch.prepare, Batch.release
    monkeypatch.setattr(Batch, "prepare", prepare)
    monkeypatch.setattr(Batch, "release", release)
    requests = [ahead.add([90 + i], wish) for i, wish in enumerate(WISHES[1:4])]
    for count in range(30):
        ahead.step(*((r, 1) for r in requests[: count % 3 + 1]))
    finish(ahead, *requests)
    assert not written
    assert len(ahead.executor._running()._batch._buffers._free) <= 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("apart", [False, True])
def test_a_buffer_is_one_copy(apart: bool) -> None:
    shapes = [((3,), np.int64), ((2, 5), np.int32), ((0,), np.float64), ((7,), np.bool_)]
    buffers = StepBuffers(
        sum(padded_bytes(shape, dtype) for shape, dtype in shapes), torch.device("cpu"), apart=apart
    )
    buffer, other = buffers.lease(), buffers.lease()
    places = []
    for fill, lent in ((1, buffer), (2, other)):
        arrays = [lent.take(shape, dtype) for shape, dtype in shapes]
        tensors = [lent.there(array) for array in arrays]
        places.append([tensor.data_ptr() for tensor in tensors])
        for array in arrays:
            array.fill(fill)
        lent.upload()
        for array, tensor in zip(arrays, tensors, strict=True):
            assert torch.equal(tensor, torch.from_numpy(array))
        assert lent.there(np.array([4, 5])).tolist() == [4, 5]  # lies elsewhere
        part = arrays[1][1:]
        assert torch.equal(lent.there(part), torch.from_numpy(part))
        with pytest.raises(AssertionError, match="larger than the engine's largest"):
            lent.take((1,), np.uint8)
    same = [a == b for a, b, (shape, _) in zip(*places, shapes, strict=True) if shape != (0,)]
    assert same == [apart] * 3  # the device has the arrays of steps of one size at one place
    buffers.give_back(buffer)
    assert buffers.lease() is buffer


# --- what was recorded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi4"])
def test_a_recording_has_no_value_of_the_step_that_it_was_made_in(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same calls over the same memory for other requests, rows, pages, lengths and tokens."""
    options: dict[str, Any] = {}
    if family == "phi4":  # its angles change at a length that requests here reach
        options |= {"hidden_size": 64, "num_attention_heads": 4}
        options["rope_parameters"] = {
            **LONGROPE,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0],
        }
    folder = str(write_tiny(tmp_path, family, head_dim=16, num_hidden_layers=2, **options))

    def logits(recorded_rows: int) -> list[torch.Tensor]:
        monkeypatch.setattr(cpu_backend, "RECORDED_ROWS", recorded_rows)
        driver = PlanDriver(
            folder, block_size=16, num_blocks=300, attention_backend="cpu", dtype=dtype, poison=True
        )
        draw, made = random.Random(1), []
        running = [driver.add([draw.randrange(3, 200) for _ in range(n)]) for n in (1, 3, 17, 33)]
        for step in range(24):
            if step % 7 == 6:
                driver.end(running.pop(0))
                running.append(driver.add([draw.randrange(3, 200) for _ in range(draw.choice([2, 30]))]))
            some = draw.sample(running, 2)
            before = [len(request.logits) for request in some]
            driver.step([(r, min(draw.choice([1, 4]), len(r.tokens) - r.computed)) for r in some])
            made += [r.logits[-1] for r, n in zip(some, before, strict=True) if len(r.logits) > n]
        recordings = driver.runner._attention._recordings  # type: ignore[attr-defined]
        assert bool(recordings) == bool(recorded_rows)
        return made

    replayed, eager = logits(64), logits(0)
    assert len(replayed) > 15
    assert torch.equal(torch.stack(replayed), torch.stack(eager))
