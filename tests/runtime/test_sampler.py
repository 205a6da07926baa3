"""The sampler against distributions computed in numpy from the definition."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sheaf_runtime.worker.sampler import SamplingRows, as_seed, greedy, likeliest, sample, uniform

DRAWS = 6000


def rows(
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seeds: list[int] | None = None,
) -> SamplingRows:
    return SamplingRows(
        temperature=np.full(count, temperature, dtype=np.float32),
        top_k=np.full(count, top_k, dtype=np.int64),
        top_p=np.full(count, top_p, dtype=np.float64),
        min_p=np.full(count, min_p, dtype=np.float32),
        uniform=numbers(seeds or list(range(count)), [0] * count),
    )


def numbers(seeds: list[int], positions: list[int]) -> npt.NDArray[np.float64]:
    return uniform(np.array([as_seed(seed) for seed in seeds], np.uint64), np.array(positions))


def joined(*parts: SamplingRows) -> SamplingRows:
    names = [field.name for field in fields(SamplingRows)]
    return SamplingRows(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def expected(
    logits: npt.NDArray[np.float64],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> npt.NDArray[np.float64]:
    scaled = logits / temperature
    order = np.argsort(-scaled, kind="stable")
    probs = np.exp(scaled - scaled.max())
    probs[probs < min_p] = 0
    if top_k:
        probs[order[top_k:]] = 0
    probs /= probs.sum()
    before = np.concatenate(([0.0], np.cumsum(probs[order])[:-1]))
    probs[order[before >= top_p]] = 0
    return probs / probs.sum()


def chi_square(counts: npt.NDArray[np.int64], probs: npt.NDArray[np.float64]) -> float:
    """Statistic over its expectation, in standard deviations; tokens expected under 5 times are pooled."""
    wanted = probs * counts.sum()
    rare = wanted < 5
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    seen = np.append(counts[~rare], counts[rare].sum())
    kept = wanted > 0
    freedom = kept.sum() - 1
    statistic = ((seen[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
    return float((statistic - freedom) / np.sqrt(2 * max(1, freedom)))


@pytest.mark.parametrize("vocab", [2, 50, 1100])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 10**6},
        {"top_p": 0.5},
        {"top_p": 0.95, "temperature": 3.0},
        {"top_p": 1e-9},
        {"top_k": 20, "top_p": 0.8, "temperature": 0.7},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"min_p": 0.05, "temperature": 2.0, "top_p": 0.9},
        {"min_p": 0.1, "top_k": 5, "temperature": 0.5},
    ],
)
def test_distribution(vocab: int, params: dict[str, float]) -> None:
    logits = np.random.default_rng(vocab).normal(size=vocab) * 2
    probs = expected(logits.astype(np.float32).astype(np.float64), **params)  # type: ignore[arg-type]
    batch = torch.tensor(logits, dtype=torch.float32).repeat(DRAWS, 1)
    tokens = sample(batch, rows(DRAWS, **params)).numpy()  # type: ignore[arg-type]
    counts = np.bincount(tokens, minlength=vocab)
    assert counts[probs == 0].sum() == 0
    assert chi_square(counts, probs) < 4


def test_flat_distribution_with_top_p_needs_more_than_the_first_look() -> None:
    """A nearly flat row keeps tokens far beyond the candidates that are looked at first."""
    vocab, draws = 1500, 8000
    logits = np.random.default_rng(0).normal(size=vocab) * 0.1
    probs = expected(logits.astype(np.float32).astype(np.float64), top_p=0.9)
    assert (probs > 0).sum() > 1100
    counts = np.zeros(vocab, dtype=np.int64)
    for start in range(0, draws, 2000):
        batch = torch.tensor(logits, dtype=torch.float32).repeat(2000, 1)
        seeds = list(range(start, start + 2000))
        counts += np.bincount(sample(batch, rows(2000, top_p=0.9, seeds=seeds)).numpy(), minlength=vocab)
    assert counts[probs == 0].sum() == 0
    assert chi_square(counts, probs) < 4


def test_the_batch_changes_nothing() -> None:
    """A row's token depends on its own logits, parameters, seed and position only."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(24, 3000, generator=generator) * torch.linspace(0.05, 4, 24)[:, None]
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.3},
        {"top_k": 5},
        {"top_k": 2000},
        {"top_p": 0.9},
        {"top_p": 0.7, "top_k": 40},
    ]
    each = [rows(1, seeds=[i * 7], **kinds[i % len(kinds)]) for i in range(24)]  # type: ignore[arg-type]
    together = sample(logits.clone(), joined(*each)).tolist()
    alone = [sample(logits[i : i + 1].clone(), each[i]).item() for i in range(24)]
    backwards = sample(logits.flip(0).clone(), joined(*reversed(each))).tolist()
    assert together == alone == backwards[::-1]


def test_greedy_is_the_likeliest_token() -> None:
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(1))
    assert sample(logits.clone(), rows(8, temperature=0.0)).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.0}])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_no_numbers_gets_no_token_and_hurts_no_other(
    params: dict[str, float], value: float
) -> None:
    logits = torch.randn(4, 384, generator=torch.Generator().manual_seed(3))
    want = sample(logits.clone(), rows(4, **params))  # type: ignore[arg-type]
    broken = logits.clone()
    broken[1, 7 if value > 0 or value != value else slice(None)] = value
    got = sample(broken, rows(4, **params))  # type: ignore[arg-type]
    assert got.tolist() == [want[0], -1, want[2], want[3]]


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 3}])
@pytest.mark.parametrize("point", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(params: dict[str, float], point: float) -> None:
    """Rounding must never pick a token without mass."""
    logits = torch.tensor([[-torch.inf, 3.0, 1.0, 2.0, -torch.inf]])
    row = rows(1, **params)  # type: ignore[arg-type]
    row.uniform[:] = point
    assert sample(logits, row).item() in (1, 2, 3)


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    by_position = numbers([3] * 50000, list(range(50000)))
    by_seed = numbers(list(range(50000)), [0] * 50000)
    for drawn in (by_position, by_seed):
        assert drawn.min() >= 0
        assert drawn.max() < 1
        assert chi_square(np.histogram(drawn, 64, (0, 1))[0], np.full(64, 1 / 64)) < 4
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(by_position, by_seed)[0, 1]) < 0.02
    shifted = numbers([4] * 50000, list(range(50000)))
    assert abs(np.corrcoef(by_position, shifted)[0, 1]) < 0.02


def test_any_integer_is_a_seed() -> None:
    assert len(set(numbers([-1, 2**64 - 2, 2**70 + 5, 0], [0] * 4))) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 7, 64, 4999])
def test_the_likeliest_token_is_the_first_of_the_largest(dtype: torch.dtype, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-3, 3, (16, vocab), generator=generator).to(dtype)  # many ties
    best, tokens = likeliest(logits)
    assert best.dtype == dtype
    assert best.tolist() == [max(row) for row in logits.tolist()]
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert greedy(logits).tolist() == tokens.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_numbers_are_greedy_rows_without_a_token(dtype: torch.dtype) -> None:
    logits = torch.zeros(5, 300, dtype=dtype)
    logits[0, 17] = torch.nan  # one is enough, though others are larger
    logits[0, 3] = 8.0
    logits[1] = -torch.inf
    logits[2, 250] = torch.inf
    logits[3, :299] = -torch.inf
    logits[4, 299] = 1.0
    assert greedy(logits).tolist() == [-1, -1, -1, 299, 299]


def test_the_likeliest_of_rows_that_lie_apart_in_memory() -> None:
    wide = torch.arange(40.0).view(4, 10)
    assert likeliest(wide[:, 2:7])[1].tolist() == [4] * 4
    assert likeliest(wide[::2])[1].tolist() == [9, 9]
