"""The sampling kernel against its reference, the sampler on CPU and the distribution it should draw from."""

import math

import numpy as np
import pytest
import torch
from sheaf_kernels.parity import adjust_inputs, check_sample, sample_inputs
from sheaf_kernels.sample import likeliest, sample, sample_reference
from sheaf_runtime.worker.sampler import SamplingRows, likely_margin
from sheaf_runtime.worker.sampler import sample as sample_on_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sample_matches_the_reference(dtype: torch.dtype) -> None:
    check_sample(18, 200, dtype, "cpu")


def test_four_bits_a_pass_as_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.DIGIT_BITS", 4)
    check_sample(18, 50, torch.float32, "cpu")


def test_more_candidates_than_a_pass_has_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.BLOCK_N", 64)
    check_sample(18, 300, torch.bfloat16, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wishes_and_draws_in_one(dtype: torch.dtype) -> None:
    _, wishes = adjust_inputs(18, 45, dtype, "cpu", seed=2)
    check_sample(18, 45, dtype, "cpu", wishes=wishes)


@pytest.mark.parametrize(("vocab", "size"), [(199, 64), (50, 1), (64, 16)])
def test_sample_over_chunks(monkeypatch: pytest.MonkeyPatch, vocab: int, size: int) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.CHUNK_V", size)
    check_sample(18, vocab, torch.float16, "cpu")


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
        one * -torch.inf,
        torch.tensor([uniform], dtype=torch.float64),
    )
    assert sample(logits, *args).tolist() == [4]


@pytest.mark.parametrize("vocab", [4, 16, 17])
def test_sample_from_small_vocabularies(vocab: int) -> None:
    check_sample(13, vocab, torch.float32, "cpu")


def test_tokens_are_the_cpu_samplers() -> None:
    # Without equal logits: which of them torch's top-k prefers is not specified.
    logits, temperature, top_k, top_p, _, u = sample_inputs(18, 200, torch.float32, "cpu")
    logits = 3.0 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    rows = SamplingRows(
        temperature=temperature.numpy(),
        top_k=top_k.numpy().astype(np.int64),
        top_p=top_p.numpy(),
        min_p=np.array([0, 0.1, 0.02], np.float32).repeat(6),
        uniform=u.numpy(),
    )
    margin = torch.from_numpy(likely_margin(rows))
    want = sample_on_cpu(logits.clone(), rows)
    assert sample(logits, temperature, top_k, top_p, margin, u).tolist() == want.tolist()


CASES: list[tuple[dict[str, float], list[float]]] = [
    ({}, [0.5, 0.25, 0.125, 0.125]),
    ({"temperature": 0.5}, [0.727, 0.182, 0.0455, 0.0455]),
    ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
    ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
    ({"top_p": 0.75}, [2 / 3, 1 / 3, 0, 0]),  # reached exactly: nothing more is kept
    ({"top_p": 0.5}, [1, 0, 0, 0]),
    ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0]),  # of the 7/8 that top-k kept, 3/4 are 0.857
    ({"top_k": 3}, [4 / 7, 2 / 7, 1 / 7, 0]),  # equal logits: the lower id is kept
    ({"top_p": 0.8}, [4 / 7, 2 / 7, 1 / 7, 0]),  # and top-p ends between them too
    ({"margin": -1.4}, [0.5, 0.25, 0.125, 0.125]),  # 2 ln 2 is 1.386
    ({"margin": -1.0}, [2 / 3, 1 / 3, 0, 0]),
    ({"margin": 0.0}, [1, 0, 0, 0]),
    ({"margin": -1.0, "top_p": 0.6}, [1, 0, 0, 0]),  # of what is likely, two thirds are reached at once
]


def arguments(params: dict[str, float], count: int) -> tuple[torch.Tensor, ...]:
    """``count`` draws, over probabilities that are exact in binary."""
    return (
        torch.tensor([[0.0, -1.0, -2.0, -2.0]]).mul(math.log(2)).expand(count, -1).contiguous(),
        torch.full((count,), params.get("temperature", 1.0)),
        torch.full((count,), int(params.get("top_k", 0)), dtype=torch.int32),
        torch.full((count,), params.get("top_p", 1.0), dtype=torch.float64),
        torch.full((count,), params.get("margin", -math.inf)),
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
    args = (zeros, zeros.int(), zeros.double() + 1, zeros, zeros.double())
    assert sample(logits, *args).tolist() == likeliest(logits).tolist() == [1, 1, 0]


def test_wrong_arguments_are_named() -> None:
    logits, *rest = sample_inputs(3, 10, torch.float32, "cpu")
    with pytest.raises(TypeError, match="sample: top_p must be float64, got float32"):
        sample(logits, *rest[:2], rest[2].float(), *rest[3:])
    with pytest.raises(
        ValueError, match=r"sample: uniform must have shape \[S\] with S=3 from logits, got \(2,\)"
    ):
        sample(logits, *rest[:4], rest[4][:2])
    assert sample(logits[:0], *(r[:0] for r in rest)).shape == (0,)


def test_a_row_is_alone_what_it_is_in_company() -> None:
    inputs = sample_inputs(18, 300, torch.bfloat16, "cpu")
    assert [int(sample(*(x[s : s + 1] for x in inputs))) for s in range(18)] == sample(*inputs).tolist()


# What other samplers were reported to get wrong, each as a small row.


def draws(
    logits: torch.Tensor, us: list[float], top_k: int = 0, top_p: float = 1.0, margin: float = -math.inf
) -> list[int]:
    """The tokens of one row by the numbers that draw them; the reference gives the same."""
    count = len(us)
    args = (
        logits.expand(count, -1),
        torch.ones(count),
        torch.full((count,), top_k, dtype=torch.int32),
        torch.full((count,), top_p, dtype=torch.float64),
        torch.full((count,), margin),
        torch.tensor(us, dtype=torch.float64),
    )
    tokens = sample(*args).tolist()
    assert tokens == sample_reference(*args).tolist()
    return tokens


ALMOST_ONE = 1 - 2.0**-53


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_equals_exactly_k_are_kept_and_each_is_drawn(dtype: torch.dtype) -> None:
    """vllm#50979 kept all that equal the k-th; tokenspeed#280 drew the first of the equals alone."""
    equal = torch.full((90,), 1.5, dtype=dtype)
    assert draws(equal, [0.1, 0.3, 0.5, 0.7, 0.9, ALMOST_ONE], top_k=5) == [0, 1, 2, 3, 4, 4]
    equal[7] = 2.0
    assert draws(equal, [0.0, 0.9, ALMOST_ONE], top_k=3) == [7, 1, 1]


def test_top_p_of_a_flat_row_keeps_its_share() -> None:
    """FlashInfer and FreeToken#345: a threshold by value keeps all of a row of equals, or none."""
    assert draws(torch.zeros(64).bfloat16(), [0.0, 0.5, ALMOST_ONE], top_p=0.5) == [0, 16, 31]


def test_a_token_that_has_nearly_everything() -> None:
    """FreeToken#345: with one token above 40 % the estimated threshold let the whole vocabulary in."""
    peak = torch.linspace(-1, 0, 120)
    peak[50] = 9.0
    assert draws(peak, [0.5, ALMOST_ONE], top_k=3) == [50, 118]
    assert draws(peak, [0.5, ALMOST_ONE], top_p=0.9) == [50, 50]


def test_rows_that_are_not_numbers_get_no_token_and_spoil_no_other() -> None:
    """vllm#40376: NaN in one row made FlashInfer read outside of memory."""
    logits = torch.randn(6, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits[0, 3] = logits[2] = torch.nan
    logits[1] = -torch.inf
    logits[4, 69] = torch.inf
    _, temperature, top_k, top_p, margin, u = sample_inputs(6, 70, torch.float32, "cpu")
    for heat in (0.0, 1.0):
        args = (temperature * 0 + heat, top_k * 0 + 3, top_p * 0.9, margin, u)
        tokens = sample(logits, *args).tolist()
        assert [t >= 0 for t in tokens] == [False, False, False, True, False, True]
        assert tokens == sample_reference(logits, *args).tolist()
    assert [t >= 0 for t in likeliest(logits).tolist()] == [False, False, False, True, False, True]


def test_top_p_of_nothing_keeps_the_likeliest() -> None:
    """PaddleNLP#9202: top_p = 0 found no token at all."""
    assert draws(torch.tensor([0.0, 1.0, 1.0, 0.5]), [0.0, ALMOST_ONE], top_p=0.0) == [1, 1]


def test_min_p_drops_and_keeps_ids() -> None:
    """sglang#33695: seeded rows with min-p; what it drops never comes, ids stay the vocabulary's."""
    row = torch.tensor([0.05, 0.55, 0.10, 0.30]).log()
    assert draws(row, [0.0, 0.6, 0.7, ALMOST_ONE], margin=math.log(0.5)) == [1, 1, 3, 3]


def test_more_is_asked_for_than_is_allowed() -> None:
    """A grammar leaves two tokens, top-k wants fifty; the last chunk is all padding but for one."""
    row = torch.full((1025,), -torch.inf)
    row[1024], row[3] = 1.0, 1.0
    assert draws(row, [0.0, 0.4, 0.6, ALMOST_ONE], top_k=50) == [3, 3, 1024, 1024]
    assert draws(row, [0.4, 0.6], top_p=0.999) == [3, 1024]


def test_ids_beyond_16_bits_and_rows_with_a_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf_kernels.sample.CHUNK_V", 32768)  # the interpreter pays by the program
    wide = torch.zeros(2, 70_000, dtype=torch.bfloat16)
    wide[1, 66_001:66_004] = 5.0
    row = wide[:, 100:69_999][1]
    assert draws(row, [0.1, 0.5, ALMOST_ONE], top_k=3) == [65_901, 65_902, 65_903]


def test_nearly_everything_is_kept() -> None:
    """A top_p whose distance to one is below float32: nothing is lost to rounding of the floor. The draw
    stays above what rounding of the masses' own sum may move, which another machine's order of it does."""
    row = torch.linspace(0, -30, 100)
    assert draws(row, [0.0, 1 - 2.0**-20], top_p=1 - 2.0**-50) == [0, 45]


def test_logits_far_from_zero() -> None:
    """Large offsets leave few bits of difference, and sums must not depend on them."""
    row = torch.tensor([0.0, -1.0, -2.0, -2.0]) + 4096
    assert draws(row, [0.1, 0.7, 0.9, ALMOST_ONE], top_k=3) == draws(
        row - 4096, [0.1, 0.7, 0.9, ALMOST_ONE], top_k=3
    )
