"""Paged attention against its reference, over odd shapes. Tolerances are ``parity.TOLERANCE``."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_kernels.paged_attention import (
    PLANS,
    SHAPES,
    PlanKind,
    allocate_plan,
    paged_attention,
    paged_attention_reference,
    query_range,
)
from sheaf_kernels.paging import page_offsets
from sheaf_kernels.parity import (
    AttentionCase,
    AttentionInputs,
    assert_close,
    attention_inputs,
    check_paged_attention,
    make_plan,
)
from sheaf_kernels.split_kv import SplitPlan, find_tile, split_start
from triton.runtime.interpreter import InterpretedFunction


@triton.jit
def _offsets_kernel(pages_ptr, out_ptr, tile, B: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.arange(0, N)
    tl.store(out_ptr + n, page_offsets(pages_ptr, tile, n, n < N, K=8, B=B, D=128, BLOCK_N=N))


@pytest.mark.parametrize("page_size", [16, 64])
def test_offsets_beyond_32_bits(page_size: int) -> None:
    pages = torch.tensor([1, 2**31 - 1, 2**31 - 2, 3, 4, 5, 6, 7], dtype=torch.int32)
    out = torch.empty(32, dtype=torch.int64)
    _offsets_kernel[(1,)](pages, out, page_size, B=page_size, N=32)
    token = torch.arange(page_size, page_size + 32)
    want = pages[token // page_size].long() * 8 * page_size * 128 + token % page_size * 128
    assert want.max() > 2**40
    assert out.tolist() == want.tolist()


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (query heads, key-value heads): MHA, GQA with odd groups, MQA of sixteen.
HEADS = [(1, 1), (2, 2), (6, 2), (5, 1), (7, 1), (16, 1)]

LONG = AttentionCase((1, 1, 1), (1, 700, 129))
MIXED = AttentionCase((1, 19, 0, 1, 2), (33, 80, 0, 64, 2))
# Few query tokens on long contexts: a draft to verify and two chunks, one of them of two tiles.
PREFIXED = AttentionCase((5, 19, 9), (330, 400, 203), min_chunk=64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [LONG, MIXED, PREFIXED], ids=["long", "mixed", "prefixed"])
def test_attention_matches_the_reference(case: AttentionCase, dtype: torch.dtype) -> None:
    check_paged_attention(case, dtype, "cpu")


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_any_group_of_query_heads_is_packed(heads: tuple[int, int]) -> None:
    check_paged_attention(AttentionCase((13, 1, 2), (20, 65, 70), *heads), torch.float32, "cpu")


@pytest.mark.parametrize("heads", [(7, 1), (16, 1)], ids=str)
def test_chunks_of_any_group_are_split(heads: tuple[int, int]) -> None:
    case = AttentionCase((6, 2), (150, 200), *heads, head_dim=16, num_multiprocessors=3)
    check_paged_attention(case, torch.float32, "cpu")


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_attention_at_every_head_and_page_size(head_dim: int, page_size: int) -> None:
    case = AttentionCase((1, 9), (150, 90), head_dim=head_dim, page_size=page_size)
    check_paged_attention(case, torch.float16, "cpu")


@pytest.mark.parametrize("head_dim", [8, 24, 80, 112, 192, 256])
def test_attention_of_odd_and_large_heads(head_dim: int) -> None:
    check_paged_attention(AttentionCase((1, 9), (90, 70), head_dim=head_dim), torch.float32, "cpu")


# Shorter and longer than a tile of keys, than a page, than a chunk; and longer than every context.
@pytest.mark.parametrize("window", [1, 9, 16, 65, 130, 1000])
@pytest.mark.parametrize("heads", [(4, 2), (7, 1), (3, 3)], ids=str)
def test_windows(window: int, heads: tuple[int, int]) -> None:
    """Keys before a window hold NaN; tokens, drafts and chunks, of one split and of several."""
    case = AttentionCase((1, 3, 40, 1, 70), (5, 200, 150, 300, 70), *heads, head_dim=16, window=window)
    check_paged_attention(case, torch.float32, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "beside",
    [{"softcap": 2.0}, {"sinks": True}, {"softcap": 5.0, "sinks": True, "window": 20}],
    ids=["cap", "sinks", "all"],
)
def test_soft_caps_and_sinks(beside: dict[str, Any], dtype: torch.dtype) -> None:
    """A sink counts once, however many splits a row has."""
    check_paged_attention(AttentionCase((1, 2, 33), (300, 9, 200), head_dim=16, **beside), dtype, "cpu")


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_windows_at_every_page_size(page_size: int) -> None:
    check_paged_attention(
        AttentionCase((1, 20), (150, 90), page_size=page_size, window=37, head_dim=32), torch.float16, "cpu"
    )


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_windows_of_any_chunks(data: st.DataObject) -> None:
    chunks = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200)), min_size=1, max_size=4))
    heads = data.draw(st.sampled_from([(2, 2), (4, 2), (5, 1)]))
    case = AttentionCase(
        tuple(q for q, _ in chunks),
        tuple(q + p for q, p in chunks),
        *heads,
        head_dim=16,
        window=data.draw(st.integers(1, 150)),
        softcap=data.draw(st.sampled_from([0.0, 3.0])),
        sinks=data.draw(st.booleans()),
    )
    check_paged_attention(case, torch.float32, "cpu", seed=data.draw(st.integers(0, 3)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prompts_without_a_prefix(dtype: torch.dtype) -> None:
    check_paged_attention(AttentionCase((1, 70, 0, 3, 41), (33, 170, 0, 64, 41)), dtype, "cpu")


def test_the_two_plans_together_cover_a_mixed_step() -> None:
    x = attention_inputs(MIXED, torch.float32, "cpu")
    got, want = torch.full_like(x.q_TQD, torch.nan), torch.full_like(x.q_TQD, torch.nan)
    for kind in PLANS:
        plan = make_plan(MIXED, kind, torch.float32, "cpu")
        plan.update(x.query_start, x.context_len_S)
        paged_attention(*x.args(), got, plan)
    paged_attention_reference(*x.args(), want)
    assert not want.isnan().any()
    assert_close("mixed step", got, want)


@pytest.mark.parametrize("kind", PLANS)
def test_one_plan_serves_changing_steps(kind: PlanKind) -> None:
    tokens = query_range(kind, 2)[0]
    plan = make_plan(AttentionCase((1,) * 4, (1,) * 4), kind, torch.float32, "cpu")
    for lens in ((300, 40, 70, 200), (13,), (40, 0, 260)):
        # A context of nothing cannot be attended to: such a row is padding, without a query token.
        case = AttentionCase(tuple(min(tokens, c) for c in lens), lens)
        x = attention_inputs(case, torch.float32, "cpu")
        plan.update(x.query_start, x.context_len_S)
        got, want = torch.zeros_like(x.q_TQD), torch.zeros_like(x.q_TQD)
        paged_attention(*x.args(), got, plan)
        paged_attention_reference(*x.args(), want, plan.least, plan.most)
        assert_close("paged_attention", got, want)


def test_a_chunk_that_fills_the_card_visits_no_workspace() -> None:
    case = AttentionCase((70, 90), (70, 190), num_multiprocessors=4, min_chunk=64)
    x = attention_inputs(case, torch.float32, "cpu")
    plan = make_plan(case, "long", torch.float32, "cpu")
    plan.update(x.query_start, x.context_len_S)
    paged_attention(*x.args(), torch.empty_like(x.q_TQD), plan)
    assert plan.first_slot_I.tolist() == [0] * len(plan.first_slot_I)
    assert plan.partial_NKMD.isnan().all()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 5000)), max_size=9),
    multiprocessors=st.integers(1, 150),
    heads=st.sampled_from(HEADS),
    kind=st.sampled_from(PLANS),
)
def test_plan_lists_every_split_once(
    rows: list[tuple[int, int]], multiprocessors: int, heads: tuple[int, int], kind: PlanKind
) -> None:
    query_start = torch.tensor([0, *(q for q, _ in rows)], dtype=torch.int32).cumsum(0).to(torch.int32)
    context_len = torch.tensor([q + prefix for q, prefix in rows], dtype=torch.int32)
    plan = allocate_plan(
        kind, max_seqs=9, num_q_heads=heads[0], num_kv_heads=heads[1], head_dim=16, dtype=torch.float16,
        device="cpu", num_multiprocessors=multiprocessors,
    )  # fmt: skip
    plan.first_work_I.fill_(-5)
    plan.first_slot_I.fill_(-5)
    plan.update(query_start, context_len)

    chunk, size = int(plan.chunk), plan.rows // (heads[0] // heads[1])
    assert chunk >= SHAPES[kind].min_chunk
    assert chunk % 64 == 0
    least, most = query_range(kind, heads[0] // heads[1])
    work, slots = [0], [0]
    for q, prefix in rows:
        # Of the last tile, the keys that its first token sees.
        splits = -(-(prefix + (q - 1) // size * size + 1) // chunk)
        items = -(-q // size) * splits if least <= q <= most else 0
        work.append(work[-1] + items)
        slots.append(slots[-1] + (items if splits > 1 else 0))
    padding = len(plan.first_work_I) - len(work)
    assert plan.first_work_I.tolist() == work + [work[-1]] * padding
    assert plan.first_slot_I.tolist() == slots + [slots[-1]] * padding
    assert work[-1] <= plan.max_work(int(query_start[-1]), len(rows))
    assert slots[-1] <= len(plan.lse_NKM)


@triton.jit
def _starts_kernel(out_ptr, keys, splits, N: tl.constexpr):  # type: ignore[no-untyped-def]
    split = tl.arange(0, N)
    tl.store(out_ptr + split, split_start(keys, split, splits, 64))


@pytest.mark.parametrize(
    ("keys", "chunk"), [(0, 64), (63, 64), (64, 64), (256, 256), (1024, 256), (4103, 512), (5000, 4992)]
)
def test_splits_are_even(keys: int, chunk: int) -> None:
    """Full chunks and a rest would be 256 keys and 1. None is empty, and all begin where every row of the
    tile sees a key, so that each row has one in each split."""
    splits = keys // chunk + 1
    starts = torch.empty(128, dtype=torch.int32)
    _starts_kernel[(1,)](starts, keys, splits, N=128)
    begun = starts[: splits + 1].tolist()
    sizes = [b - a for a, b in itertools.pairwise(begun)]
    assert begun[0] == 0
    assert begun[splits - 1] <= keys < begun[splits]
    assert max(sizes) - min(sizes) in (0, 64)
    assert 0 < min(sizes) <= max(sizes) <= max(chunk, 64)


def planned(contexts: list[int], kind: PlanKind, multiprocessors: int, query: int = 1) -> SplitPlan:
    """A plan of one key-value head, so that programs are as many as the card runs."""
    plan = allocate_plan(
        kind, max_seqs=len(contexts), num_q_heads=1, num_kv_heads=1, head_dim=16, dtype=torch.float16,
        device="cpu", num_multiprocessors=multiprocessors,
    )  # fmt: skip
    query_start = torch.arange(len(contexts) + 1, dtype=torch.int32) * query
    plan.update(query_start, torch.tensor(contexts, dtype=torch.int32), max(contexts))
    return plan


def test_the_last_wave_is_not_nearly_empty() -> None:
    """40 equal sequences on 32 programs: whole ones take two rounds of which the second runs 8; cut in four
    they take five rounds of a quarter. (vllm#48076, sglang#27786: fixed counts leave a card half idle.)"""
    plan = planned([8000] * 40, "short", 16)
    assert plan.programs == 32
    splits = 7999 // int(plan.chunk) + 1
    rounds = -(-40 * splits // 32)
    assert rounds * -(-8000 // splits) < 1.35 * 40 * 8000 / 32  # whole: 1.6 times
    # One long sequence alone: one round, all programs.
    assert 100_000 // int(planned([100_000], "short", 16).chunk) + 1 in range(29, 33)
    # What fills the card by itself is left whole: splits only cost.
    assert int(planned([500] * 64, "short", 16).chunk) >= 500


def test_a_step_without_a_split_launches_no_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    original = InterpretedFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        launched.append(self.fn.__name__)
        original(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", run)
    x = attention_inputs(AttentionCase((1, 1), (60, 9), head_dim=16), torch.float32, "cpu")
    plan = make_plan(AttentionCase((1, 1), (60, 9), head_dim=16), "short", torch.float32, "cpu")
    for longest, want in ((64, 0), (65, 1), (None, 1)):
        launched.clear()
        plan.update(x.query_start, x.context_len_S, longest)
        paged_attention(*x.args(), torch.empty_like(x.q_TQD), plan)
        assert launched.count("merge_kernel") == want


def test_heavy_tiles_start_first() -> None:
    """Of a prompt the tile with most keys has the first work item."""
    case = AttentionCase((70,), (70,), 1, 1, head_dim=16)
    plan = make_plan(case, "long", torch.float32, "cpu")
    x = attention_inputs(case, torch.float32, "cpu")
    plan.update(x.query_start, x.context_len_S)
    found = torch.empty(3, dtype=torch.int32)
    _tiles_kernel[(3,)](x.query_start, x.context_len_S, plan.chunk, found, BLOCK_Q=32)
    assert found.tolist() == [64, 32, 0]


@triton.jit
def _tiles_kernel(query_start_ptr, context_len_ptr, chunk_ptr, out_ptr, BLOCK_Q: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0)
    _, _, _, first_query, _, _, _ = find_tile(
        query_start_ptr, context_len_ptr, tl.load(chunk_ptr), place * 0, place, BLOCK_Q, 0, 64
    )
    tl.store(out_ptr + place, first_query)


@pytest.mark.parametrize("heads", [(4, 2), (7, 1), (16, 1)], ids=str)
def test_drafts_have_tiles_of_their_size(heads: tuple[int, int]) -> None:
    """16 // G tokens and fewer, 32 // G, 64 // G, and more, each beside the others, some of them split."""
    group = heads[0] // heads[1]
    lens = tuple(n for rows in (16, 32, 64) for n in (rows // group, rows // group + 1))
    case = AttentionCase(lens, tuple(n + 140 for n in lens), *heads, head_dim=16)
    check_paged_attention(case, torch.float16, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("beside", [{}, {"window": 40, "sinks": True}], ids=["plain", "window"])
def test_uniform_rows_do_not_depend_on_the_step(
    beside: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: alone, token by token, cut anywhere, in any company."""
    monkeypatch.setattr(np, "matmul", row_by_row)
    context, other = 80, 37
    case = AttentionCase((context, other), (context, other), head_dim=16, **beside)
    x = attention_inputs(case, dtype, "cpu")
    whole = uniform(case, x)
    alone = replace(
        x, q_TQD=x.q_TQD[:context], block_table_SL=x.block_table_SL[:1], query_start=x.query_start[:2],
        context_len_S=x.context_len_S[:1],
    )  # fmt: skip
    assert uniform(case, alone).equal(whole[:context])
    for cuts in ((0, 64, 80), (1, 2, 33), (79, 80), (57, 76)):
        for start, stop in itertools.pairwise(cuts):
            query_start = torch.tensor([0, stop - start], dtype=torch.int32)
            part = replace(
                alone, q_TQD=x.q_TQD[start:stop], query_start=query_start,
                context_len_S=torch.tensor([stop], dtype=torch.int32),
            )  # fmt: skip
            assert uniform(case, part).equal(whole[start:stop]), (start, stop)
    want = torch.empty_like(whole)
    paged_attention_reference(*x.args(), want, window=case.window, sinks_Q=x.sinks_Q)
    assert_close("uniform", whole, want)


def row_by_row(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A product as matrix units have it, every row alike: with BLAS, which the interpreter takes, the bits of
    a row depend on its place in the matrix."""
    return (a[:, :, None].astype(dtype) * b[None].astype(dtype)).sum(1, dtype=dtype)


def uniform(case: AttentionCase, x: AttentionInputs) -> torch.Tensor:
    plan = make_plan(case, "uniform", x.q_TQD.dtype, "cpu")
    plan.update(x.query_start, x.context_len_S)
    out = torch.full_like(x.q_TQD, torch.nan)
    paged_attention(*x.args(), out, plan, sinks_Q=x.sinks_Q)
    return out


def test_padding_rows_of_a_captured_batch_are_left_alone() -> None:
    """vllm#57094, vllm#38436: rows of length 0 came out as NaN and spoilt their neighbours' scales. Here they
    have no query, and nothing is written; a context of nothing among real ones too."""
    case = AttentionCase((1, 0, 0, 1), (200, 0, 5, 3), head_dim=16)
    check_paged_attention(case, torch.float32, "cpu")


def test_scores_far_from_zero_over_several_splits() -> None:
    """executorch#22133: partial results that were added without their maxima overflowed."""
    case = AttentionCase((1, 2), (300, 210), head_dim=16)
    x = attention_inputs(case, torch.float32, "cpu")
    x = replace(x, q_TQD=x.q_TQD * 400)
    for kind in ("short", "draft32"):
        plan = make_plan(case, kind, torch.float32, "cpu")
        plan.update(x.query_start, x.context_len_S)
        got, want = torch.zeros_like(x.q_TQD), torch.zeros_like(x.q_TQD)
        paged_attention(*x.args(), got, plan)
        paged_attention_reference(*x.args(), want, plan.least, plan.most)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@settings(max_examples=7, deadline=None)
@given(data=st.data())
def test_attention_of_any_chunks(data: st.DataObject) -> None:
    chunks = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 130)), min_size=1, max_size=4))
    heads = data.draw(st.sampled_from(HEADS))
    case = AttentionCase(tuple(q for q, _ in chunks), tuple(q + p for q, p in chunks), *heads, head_dim=16)
    check_paged_attention(case, torch.float32, "cpu", seed=data.draw(st.integers(0, 3)))
