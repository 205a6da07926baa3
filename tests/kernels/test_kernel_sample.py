"""The sampling kernel against its reference, the sampler on CPU and the distribution it should draw from."""

import math

import numpy as np
import pytest
import torch
from sheaf_kernels.parity import check_sample, sample_inputs
from sheaf_kernels.sample import MAX_BLOCK_V, sample, sample_reference
from sheaf_runtime.worker.sampler import SamplingRows
from sheaf_runtime.worker.sampler import sample as sample_on_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sample_matches_the_reference(dtype: torch.dtype) -> None:
    check_sample(26, 200, dtype, "cpu")


def test_two_bits_a_pass_as_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.DIGIT_BITS", 2)
    check_sample(13, 50, torch.float32, "cpu")


def test_sample_over_several_blocks() -> None:
    check_sample(13, 2 * MAX_BLOCK_V + 5, torch.float32, "cpu")


@pytest.mark.parametrize(("vocab", "size"), [(199, 64), (50, 1), (64, 16)])
def test_sample_over_chunks(monkeypatch: pytest.MonkeyPatch, vocab: int, size: int) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.CHUNK_V", size)
    check_sample(13, vocab, torch.float16, "cpu")


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_chunks_without_mass_are_never_drawn(monkeypatch: pytest.MonkeyPatch, uniform: float) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.CHUNK_V", 2)
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 4] = 1.0
    one = torch.ones(1)
    args = (
        one,
        torch.zeros(1, dtype=torch.int32),
        one.double(),
        torch.tensor([uniform], dtype=torch.float64),
    )
    assert sample(logits, *args).tolist() == [4]


@pytest.mark.parametrize("vocab", [4, 16, 17])
def test_sample_from_small_vocabularies(vocab: int) -> None:
    check_sample(13, vocab, torch.float32, "cpu")


def test_tokens_are_the_cpu_samplers() -> None:
    # Without equal logits: which of them torch's top-k prefers is not specified.
    logits, temperature, top_k, top_p, u = sample_inputs(28, 200, torch.float32, "cpu")
    logits = 3.0 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    rows = SamplingRows(
        temperature=temperature.numpy(),
        top_k=top_k.numpy().astype(np.int64),
        top_p=top_p.numpy(),
        min_p=np.zeros(len(logits), np.float32),
        uniform=u.numpy(),
    )
    want = sample_on_cpu(logits.clone(), rows)
    assert sample(logits, temperature, top_k, top_p, u).tolist() == want.tolist()


CASES: list[tuple[dict[str, float], list[float]]] = [
    ({}, [0.5, 0.25, 0.125, 0.125]),
    ({"temperature": 0.5}, [0.727, 0.182, 0.0455, 0.0455]),
    ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
    ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
    ({"top_p": 0.75}, [2 / 3, 1 / 3, 0, 0]),  # reached exactly: nothing more is kept
    ({"top_p": 0.5}, [1, 0, 0, 0]),
    ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0]),  # of the 7/8 that top-k kept, 3/4 are 0.857
    ({"top_k": 3}, [4 / 7, 2 / 7, 1 / 7, 0]),  # equal logits: the lower id is kept
]


def arguments(params: dict[str, float], count: int) -> tuple[torch.Tensor, ...]:
    """``count`` draws, over probabilities that are exact in binary."""
    return (
        torch.tensor([[0.0, -1.0, -2.0, -2.0]]).mul(math.log(2)).expand(count, -1).contiguous(),
        torch.full((count,), params.get("temperature", 1.0)),
        torch.full((count,), int(params.get("top_k", 0)), dtype=torch.int32),
        torch.full((count,), params.get("top_p", 1.0), dtype=torch.float64),
        torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(7)),
    )


@pytest.mark.parametrize(("params", "want"), CASES, ids=str)
def test_distribution(params: dict[str, float], want: list[float]) -> None:
    count = 1000
    args = arguments(params, count)
    tokens = sample_reference(*args)
    got = (torch.bincount(tokens, minlength=4) / count).tolist()
    assert got == pytest.approx(want, abs=4 * (0.25 / count) ** 0.5)
    assert all(g == 0 for g, w in zip(got, want, strict=True) if w == 0)
    # The kernel draws the same; the interpreter is too slow for a thousand rows of it.
    assert sample(*(a[:6] for a in args)).tolist() == tokens[:6].tolist()


@pytest.mark.parametrize("size", [1, 2, 1024])
def test_greedy_takes_the_lowest_of_equals(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.CHUNK_V", size)
    logits = torch.tensor([[1.0, 3.0, 3.0, -1.0], [-2.0, -1.0, -1.0, -3.0], [-0.0, 0.0, -0.0, -1.0]])
    zeros = torch.zeros(3)
    args = (zeros, zeros.int(), zeros.double() + 1, zeros.double())
    assert sample(logits, *args).tolist() == [1, 1, 0]


def test_wrong_arguments_are_named() -> None:
    logits, *rest = sample_inputs(3, 10, torch.float32, "cpu")
    with pytest.raises(TypeError, match="sample: top_p must be float64, got float32"):
        sample(logits, rest[0], rest[1], rest[2].float(), rest[3])
    with pytest.raises(
        ValueError, match=r"sample: uniform must have shape \[S\] with S=3 from logits, got \(2,\)"
    ):
        sample(logits, rest[0], rest[1], rest[2], rest[3][:2])
    assert sample(logits[:0], *(r[:0] for r in rest)).shape == (0,)
