"""A failure of one request's sampling ends that request alone: its neighbours get the same tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.protocol.messages import AddRequest
from sheaf_runtime.worker import choose, failures, sampling_state, score
from sheaf_runtime.worker.local import LocalExecutor
from sheaf_runtime.worker.logprobs import Logprobs

MARK = 77  # a logit bias of this value makes a request the one that fails
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
BAD = SamplingParams(
    temperature=0.0, max_tokens=8, ignore_eos=True, logit_bias={5: float(MARK)}, logprobs=2, prompt_logprobs=1
)
PROMPTS = [[5, 6, 7], [8] * 9, [20, 21, 22, 23, 24]]


@pytest.fixture(scope="module", params=[0, 1], ids=["depth0", "depth1"])
def llm(tiny_llama: Callable[..., Path], request: pytest.FixtureRequest) -> Iterator[LLM]:
    options: dict[str, Any] = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    with LLM(str(tiny_llama()), kv_cache_memory=1 << 22, pipeline_depth=request.param, **options) as llm:
        yield llm


def marked(bias_V: torch.Tensor) -> bool:
    return bool((bias_V == MARK).any())


def in_token_bias(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = sampling_state.token_bias

    def failing(sampling: SamplingParams, *args: Any) -> Any:
        if MARK in sampling.logit_bias.values():
            raise error
        return original(sampling, *args)

    monkeypatch.setattr(sampling_state, "token_bias", failing)


def in_the_mask(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = sampling_state.SamplingState.adjustments

    def failing(self: Any, rows_S: Any, *args: Any) -> Any:
        wanted = original(self, rows_S, *args)
        entering = [write.row for write in self._writes if (write.bias_V == MARK).any()]
        if any(row in entering for row in rows_S[wanted.biased_S]):
            raise error
        return wanted

    monkeypatch.setattr(sampling_state.SamplingState, "adjustments", failing)


def in_the_sampler(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = choose.choose_tokens

    def failing(backend: Any, logits_SV: torch.Tensor, wanted: Any, *rest: Any) -> torch.Tensor:
        tokens_S = original(backend, logits_SV, wanted, *rest)
        if any(marked(wanted.bias_RV[row]) for row in wanted.rows_S[wanted.biased_S]):
            logits_SV.fill_(torch.nan)  # half done
            raise error
        return tokens_S

    monkeypatch.setattr(choose, "choose_tokens", failing)


def in_the_logprobs(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = choose.logprobs_of

    def failing(logits_NV: torch.Tensor, tokens_N: torch.Tensor, most: int) -> Any:
        if (tokens_N == 5).any():  # what the bias makes come out
            raise error
        return original(logits_NV, tokens_N, most)

    monkeypatch.setattr(choose, "logprobs_of", failing)


def in_the_scores(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(score, "logprobs_of", failing)


def in_the_logprobs_words(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = Logprobs.tolist

    def failing(self: Logprobs, counts: Any) -> Any:
        if (self.tokens_N == 5).any() and len(counts) < 5:  # not those of the prompt
            raise error
        return original(self, counts)

    monkeypatch.setattr(Logprobs, "tolist", failing)


PLACES = [
    in_token_bias,
    in_the_mask,
    in_the_sampler,
    in_the_logprobs,
    in_the_logprobs_words,
    in_the_scores,
]


@pytest.mark.parametrize("spoil", PLACES, ids=lambda place: place.__name__)
def test_the_request_ends_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch, Exception], None]
) -> None:
    calm = llm.generate(PROMPTS, GREEDY)
    with monkeypatch.context() as patch:
        spoil(patch, ValueError("a planted fault"))
        bad, *others = llm.generate([[9, 9, 9, 9, 9], *PROMPTS], [BAD, GREEDY, GREEDY, GREEDY])
    assert (bad.finish_reason, bad.token_ids) == ("error", [])
    assert bad.error is not None
    assert "a planted fault" in bad.error
    assert [c.token_ids for c in others] == [c.token_ids for c in calm]
    assert all(len(c.logprobs) == 8 and c.finish_reason == "length" for c in others)
    stats = llm.stats()
    assert (stats.blocks_live, stats.running, stats.waiting) == (0, 0, 0)
    assert [c.token_ids for c in llm.generate(PROMPTS, GREEDY)] == [c.token_ids for c in calm]


@pytest.mark.parametrize("spoil", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_failure_of_the_device_is_everybodys(
    tiny_llama: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    depth: int,
    spoil: Callable[[pytest.MonkeyPatch, Exception], None],
) -> None:
    """Nothing catches it on its way; the engine's process ends with it."""
    options: dict[str, Any] = {"block_size": 4, "max_num_seqs": 4, "kv_cache_memory": 1 << 22}
    config = EngineConfig(model=str(tiny_llama()), device="cpu", pipeline_depth=depth, **options)
    executor = LocalExecutor(config)
    core = EngineCore(executor, config)
    spoil(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    for i, sampling in enumerate((BAD, GREEDY)):
        core.add(
            b"",
            AddRequest(request_id=str(i), prompt_token_ids=[9] * 5, sampling=sampling, arrival_time=0.0),
        )
    with pytest.raises(torch.OutOfMemoryError):
        deque(core.step() for _ in range(6))
    executor.close()


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("a token mask has 2 words, the vocabulary needs 3"), False),
        (OverflowError("Python int too large to convert to C long"), False),
        (IndexError("index 99 is out of bounds for axis 0 with size 75"), False),
    ],
)
def test_whose_trouble_it_is(error: Exception, device: bool) -> None:
    assert failures.is_device_failure(error) is device
