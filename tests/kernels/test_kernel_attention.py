"""Paged attention against its references, over odd shapes. Tolerances are ``parity.TOLERANCE``."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_kernels.paged_decode import DecodePlan, paged_decode, paged_decode_reference
from sheaf_kernels.paged_prefill import paged_prefill, paged_prefill_reference
from sheaf_kernels.paging import page_offsets
from sheaf_kernels.parity import (
    AttentionCase,
    assert_close,
    attention_inputs,
    check_paged_decode,
    check_paged_prefill,
)


@triton.jit
def _offsets_kernel(pages_ptr, out_ptr, tile, B: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.arange(0, N)
    tl.store(out_ptr + n, page_offsets(pages_ptr, tile, n, n < N, 5, K=8, B=B, D=128, BLOCK_N=N))


@pytest.mark.parametrize("page_size", [16, 64])
def test_offsets_beyond_32_bits(page_size: int) -> None:
    pages = torch.tensor([1, 2**31 - 1, 2**31 - 2, 3, 4, 5, 6, 7], dtype=torch.int32)
    out = torch.empty(32, dtype=torch.int64)
    _offsets_kernel[(1,)](pages, out, page_size, B=page_size, N=32)
    token = torch.arange(page_size, page_size + 32)
    want = (pages[token // page_size].long() * 8 + 5) * page_size * 128 + token % page_size * 128
    assert want.max() > 2**40
    assert out.tolist() == want.tolist()


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (query heads, key-value heads): MHA, GQA with odd groups, MQA of sixteen.
HEADS = [(1, 1), (2, 2), (6, 2), (5, 1), (7, 1), (16, 1)]

LONG = AttentionCase((1, 1, 1), (1, 700, 129))
MIXED = AttentionCase((1, 19, 0, 1, 2), (33, 80, 0, 64, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [LONG, MIXED], ids=["long", "mixed"])
def test_decode_matches_the_reference(case: AttentionCase, dtype: torch.dtype) -> None:
    check_paged_decode(case, dtype, "cpu")


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode_packs_any_group_of_query_heads(heads: tuple[int, int]) -> None:
    check_paged_decode(AttentionCase((1, 1), (70, 5), *heads), torch.float32, "cpu")


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_attention_at_every_head_and_page_size(head_dim: int, page_size: int) -> None:
    case = AttentionCase((1, 9), (150, 90), head_dim=head_dim, page_size=page_size)
    check_paged_decode(case, torch.float16, "cpu")
    check_paged_prefill(case, torch.float16, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prefill_matches_the_reference(dtype: torch.dtype) -> None:
    check_paged_prefill(AttentionCase((1, 70, 0, 3, 41), (33, 170, 0, 64, 41)), dtype, "cpu")


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_prefill_packs_any_group_of_query_heads(heads: tuple[int, int]) -> None:
    check_paged_prefill(AttentionCase((13, 1), (20, 65), *heads), torch.float32, "cpu")


def test_prefill_leaves_single_tokens_to_decode() -> None:
    check_paged_prefill(MIXED, torch.float32, "cpu", min_query_len=2)


def test_the_two_kernels_together_cover_a_mixed_step() -> None:
    x = attention_inputs(MIXED, torch.float32, "cpu")
    plan = DecodePlan.allocate(8, MIXED.num_q_heads, MIXED.num_kv_heads, MIXED.head_dim, "cpu")
    plan.update(x.query_start, x.context_len_S)
    got, want = torch.full_like(x.q_TQD, torch.nan), torch.full_like(x.q_TQD, torch.nan)
    paged_decode(*x.args(), got, plan)
    paged_prefill(*x.args(), got, min_query_len=2)
    paged_prefill_reference(*x.args(), want)
    assert not want.isnan().any()
    assert_close("mixed step", got, want)


def test_one_plan_serves_changing_steps() -> None:
    steps = [
        AttentionCase((1,) * n, lens) for n, lens in ((4, (600, 1, 70, 300)), (1, (3,)), (3, (9, 0, 500)))
    ]
    plan = DecodePlan.allocate(4, 4, 2, 64, "cpu", num_multiprocessors=4, min_chunk=64)
    for case in steps:
        # A context of nothing cannot be attended to: such a row is padding, without a query token.
        case = AttentionCase(tuple(min(1, c) for c in case.context_lens), case.context_lens)
        x = attention_inputs(case, torch.float32, "cpu")
        plan.update(x.query_start, x.context_len_S)
        got, want = torch.zeros_like(x.q_TQD), torch.zeros_like(x.q_TQD)
        paged_decode(*x.args(), got, plan)
        paged_decode_reference(*x.args(), want)
        assert_close("paged_decode", got, want)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000)), max_size=9),
    multiprocessors=st.integers(1, 150),
    kv_heads=st.integers(1, 8),
)
def test_plan_covers_every_key_once(rows: list[tuple[int, int]], multiprocessors: int, kv_heads: int) -> None:
    query_lens = torch.tensor([q for q, _ in rows], dtype=torch.int32)
    query_start = torch.zeros(len(rows) + 1, dtype=torch.int32)
    query_start[1:] = query_lens.cumsum(0)
    context_len = torch.tensor([c for _, c in rows], dtype=torch.int32)
    plan = DecodePlan.allocate(9, kv_heads, kv_heads, 64, "cpu", num_multiprocessors=multiprocessors)
    plan.work_seq_W.fill_(0)
    plan.update(query_start, context_len)

    chunk = int(plan.chunk)
    assert chunk >= 256
    assert chunk % 64 == 0
    launched = plan.work_seq_W[: len(rows) + plan.target].tolist()
    expected = [s for s, (q, c) in enumerate(rows) if q == 1 for _ in range(-(-c // chunk))]
    assert launched == expected + [-1] * (len(launched) - len(expected))
    first = plan.first_work[: len(rows) + 1].tolist()
    assert first == [sum(e < s for e in expected) for s in range(len(rows) + 1)]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_prefill_of_any_chunks(data: st.DataObject) -> None:
    chunks = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 90)), min_size=1, max_size=4))
    heads = data.draw(st.sampled_from(HEADS))
    case = AttentionCase(tuple(q for q, _ in chunks), tuple(q + p for q, p in chunks), *heads, head_dim=16)
    check_paged_prefill(case, torch.float32, "cpu", seed=data.draw(st.integers(0, 3)))
