"""Causal attention of a step's tokens over keys and values in pages.

    out_t = softmax(scale * q_t @ K[l_t..p_t]^T) @ V[l_t..p_t],    p_t = context_len - query_len + t

l_t is 0, or with a window p_t - window + 1. With a soft cap scores are cap * tanh(score / cap); with sinks
each head has one more score, whose value is nothing.

A sequence's last ``query_len`` tokens are the queries of this step; their own keys and values are in the
cache already.

A tile's rows are query tokens times the G = Q / K query heads of one key-value head, so that
keys and values are read once for all of them. Keys that every row of the tile may see are read in a loop
without a mask; the rest (the window's edge, the diagonal, and the ragged end) in masked ones. Where there are
few tiles their keys are split over programs (``split_kv``).

One kernel, launched with up to four plans, each of which leaves the rows of the others alone. Which one a
sequence has depends on the number of its own query tokens:

    short    tiles of 16 rows, the least that ``tl.dot`` takes: single tokens
    draft32  tiles of 32 rows, and
    draft64  of 64: a draft to verify
    long     tiles of 128 rows: chunks of prompts

Or with one plan for all, ``uniform``, whose sums have one shape for every row, whatever the step: tiles of 64
rows of one split each, and all keys in the masked loop. A row's result is the same to the bit alone, in any
batch, and however a prompt was cut. It costs the parallel reading of a long context.

Shapes: T tokens in the step, S sequences, Q query heads, K key-value heads, D head size, P pages, B slots
a page, L pages a sequence can have.
q_TQD, out_TQD; k_cache_PKBD, v_cache_PKBD; block_table_SL (int32); query_start [S + 1], context_len_S
(int32); sinks_Q.
Source: Dao, FlashAttention-2, arXiv 2307.08691; Kwon et al., PagedAttention, arXiv 2309.06180."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import LOG2_E, architecture, dot_operand, next_power_of_2, round_to
from sheaf_kernels.paging import gather_kv_reference, page_offsets
from sheaf_kernels.split_kv import (
    CHUNK_MULTIPLE,
    SplitPlan,
    find_sequence,
    find_tile,
    merge_kernel,
    merge_options,
    split_start,
)

PlanKind = Literal["short", "draft32", "draft64", "long", "uniform"]
PLANS: tuple[PlanKind, ...] = ("short", "draft32", "draft64", "long")


@dataclass(frozen=True)
class Shape:
    """Of a kind of plan. ``programs`` run on a multiprocessor at a time, and the work may be cut into so many
    ``waves`` of them; rows times both is the workspace, the same for all kinds. Below ``min_chunk`` tokens a
    split costs more in merging than it wins: a partial result of 128 rows is as large as the keys and values
    of 128 tokens."""

    rows: int
    programs: int
    waves: int
    min_chunk: int


SHAPES: dict[PlanKind, Shape] = {
    "short": Shape(16, 2, 4, 256),
    "draft32": Shape(32, 2, 2, 256),
    "draft64": Shape(64, 1, 2, 256),
    "long": Shape(128, 1, 1, 512),
    "uniform": Shape(64, 1, 1, 512),
}
MAX_GROUP = SHAPES["short"].rows
NO_LIMIT = 2**31 - 1
MAX_HEAD_DIM = 256
LEAST_SCORE, LEAST_SUM = tl.constexpr(-1e30), tl.constexpr(1e-30)
_LOG2_E = tl.constexpr(LOG2_E)


def paged_attention_reference(
    q_TQD: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_SL: torch.Tensor,
    query_start: torch.Tensor,
    context_len_S: torch.Tensor,
    scale: float,
    out_TQD: torch.Tensor,
    least: int = 1,
    most: int = NO_LIMIT,
    *,
    window: int = 0,
    softcap: float = 0.0,
    sinks_Q: torch.Tensor | None = None,
) -> None:
    """Writes the rows of out_TQD whose sequences have ``least`` to ``most`` query tokens. float32 inside."""
    for s in range(len(context_len_S)):
        row, end, context = int(query_start[s]), int(query_start[s + 1]), int(context_len_S[s])
        if not least <= end - row <= most:
            continue
        k_CQD, v_CQD = gather_kv_reference(
            k_cache_PKBD, v_cache_PKBD, block_table_SL[s], context, q_TQD.shape[1]
        )
        position_T = torch.arange(context - (end - row), context, device=q_TQD.device)
        key_C = torch.arange(context, device=q_TQD.device)
        hidden_TC = key_C[None, :] > position_T[:, None]
        if window:
            hidden_TC = hidden_TC | (key_C[None, :] <= position_T[:, None] - window)
            unseen_C11 = hidden_TC.all(0)[:, None, None]  # these may have been given back, and hold anything
            k_CQD, v_CQD = k_CQD.masked_fill(unseen_C11, 0.0), v_CQD.masked_fill(unseen_C11, 0.0)
        score_QTC = torch.einsum("tqd,cqd->qtc", q_TQD[row:end].float(), k_CQD.float()) * scale
        if softcap:
            score_QTC = softcap * torch.tanh(score_QTC / softcap)
        score_QTC = score_QTC.masked_fill(hidden_TC, float("-inf"))
        if sinks_Q is not None:
            sink_QT1 = sinks_Q.float()[:, None, None].expand(*score_QTC.shape[:2], 1)
            score_QTC = torch.cat((score_QTC, sink_QT1), dim=-1)
        weight_QTC = score_QTC.softmax(-1)[..., :context]
        out_TQD[row:end] = torch.einsum("qtc,cqd->tqd", weight_QTC, v_CQD.float()).to(out_TQD.dtype)


@triton.jit
def attend_tile(
    q, k_head_ptr, v_head_ptr, pages_ptr, tile, end, last_key, scale_log2, row_max, row_sum, acc,
    K: tl.constexpr, B: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, WINDOW: tl.constexpr, CAP_LOG2: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold keys tile .. tile + BLOCK_N into the running softmax. A row sees the ``WINDOW`` keys up to
    ``last_key``, or all of them."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    valid = tile + n < end
    offset = page_offsets(pages_ptr, tile, n, valid, K, B, D, BLOCK_N)
    kv_mask = (d < D)[None, :]
    if MASKED:
        # Slots past the end may hold anything, NaN included: they are read as zero, and scored -inf.
        if WINDOW > 0:
            valid = valid & (tile + n > tl.min(last_key, axis=0) - WINDOW)
        kv_mask = kv_mask & valid[:, None]
    k = tl.load(k_head_ptr + offset[:, None] + d[None, :], mask=kv_mask, other=0.0)
    score = tl.dot(q, tl.trans(dot_operand(k)), input_precision=PRECISION) * scale_log2
    if CAP_LOG2 > 0:
        score = (2.0 * tl.sigmoid(2.0 * score) - 1.0) * CAP_LOG2  # tanh
    if MASKED:
        score = tl.where((tile + n)[None, :] <= last_key[:, None], score, float("-inf"))
        if WINDOW > 0:
            score = tl.where((tile + n)[None, :] > last_key[:, None] - WINDOW, score, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(score, axis=1))
    if WINDOW > 0:
        # Before the window's edge a row has seen nothing yet: -inf less -inf would be NaN.
        new_max = tl.maximum(new_max, LEAST_SCORE)
    p = tl.exp2(score - new_max[:, None])
    decay = tl.exp2(row_max - new_max)
    row_sum = row_sum * decay + tl.sum(p, axis=1)
    v = tl.load(v_head_ptr + offset[:, None] + d[None, :], mask=kv_mask, other=0.0)
    p = dot_operand(round_to(p, v.dtype))
    acc = tl.dot(p, dot_operand(v), acc * decay[:, None], input_precision=PRECISION)
    return new_max, row_sum, acc


# The width of the block table changes from step to step: specialising on it would compile anew while serving.
@triton.jit(do_not_specialize=["block_table_stride"])
def paged_attention_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, block_table_ptr, query_start_ptr, context_len_ptr,
    first_work_ptr, first_slot_ptr, chunk_ptr, out_ptr, partial_ptr, lse_ptr, sinks_ptr,
    q_stride, out_stride, block_table_stride, scale_log2,
    Q: tl.constexpr, K: tl.constexpr, B: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    WINDOW: tl.constexpr, MULTIPLE: tl.constexpr, CAP_LOG2: tl.constexpr, SINKS: tl.constexpr,
    TAIL_STAGES: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """One work item (a tile's split) and one key-value head per program."""
    G: tl.constexpr = Q // K
    BLOCK_Q: tl.constexpr = BLOCK_M // G
    kv_head = tl.program_id(1)
    s, place = find_sequence(first_work_ptr, tl.program_id(0), BLOCK_S)
    if s == BLOCK_S - 1:
        return
    chunk = tl.load(chunk_ptr)
    first_row, query_len, before, first_query, first_key, split, splits = find_tile(
        query_start_ptr, context_len_ptr, chunk, s, place, BLOCK_Q, WINDOW, MULTIPLE
    )
    if split >= splits:
        return
    slot = tl.load(first_slot_ptr + s) + place

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    row_mask = (m < BLOCK_Q * G) & (m // G < query_len - first_query)
    q_mask = row_mask[:, None] & (d < D)[None, :]
    row = (first_row + first_query).to(tl.int64)  # of the tile's first token
    in_row = (kv_head * G + m % G) * D
    from_ptr = q_ptr + row * q_stride + (m // G * q_stride + in_row)[:, None] + d[None, :]
    q = dot_operand(tl.load(from_ptr, mask=q_mask, other=0.0))
    pages_ptr = block_table_ptr + s.to(tl.int64) * block_table_stride
    k_head_ptr = k_cache_ptr + kv_head * (B * D)
    v_head_ptr = v_cache_ptr + kv_head * (B * D)

    # Every row sees a key of every split, rows without a token included: none lacks a finite score.
    last_key = before + first_query + m // G
    keys = before + first_query - first_key
    start = first_key + split_start(keys, split, splits, MULTIPLE)
    end = before + tl.minimum(first_query + BLOCK_Q, query_len)
    if split < splits - 1:
        end = first_key + split_start(keys, split + 1, splits, MULTIPLE)
    masked_from = tl.minimum(end, (before + first_query + 1) // BLOCK_N * BLOCK_N)

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    seen_from = start
    if WINDOW > 0:
        # From here on keys are in the windows of all rows.
        seen_from = (before + first_query + BLOCK_Q - WINDOW + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        seen_from = tl.minimum(tl.maximum(seen_from, start), end)
        for tile in tl.range(start, seen_from, BLOCK_N, num_stages=TAIL_STAGES):
            row_max, row_sum, acc = attend_tile(
                q, k_head_ptr, v_head_ptr, pages_ptr, tile, end, last_key, scale_log2,
                row_max, row_sum, acc,
                K, B, D, BLOCK_N, BLOCK_D, PRECISION, WINDOW, CAP_LOG2, MASKED=True,
            )  # fmt: skip
        masked_from = tl.maximum(masked_from, seen_from)
    if UNIFORM:
        masked_from = seen_from
    for tile in range(seen_from, masked_from, BLOCK_N):
        row_max, row_sum, acc = attend_tile(
            q, k_head_ptr, v_head_ptr, pages_ptr, tile, end, last_key, scale_log2,
            row_max, row_sum, acc,
            K, B, D, BLOCK_N, BLOCK_D, PRECISION, WINDOW, CAP_LOG2, MASKED=False,
        )  # fmt: skip
    for tile in tl.range(masked_from, end, BLOCK_N, num_stages=TAIL_STAGES):
        row_max, row_sum, acc = attend_tile(
            q, k_head_ptr, v_head_ptr, pages_ptr, tile, end, last_key, scale_log2,
            row_max, row_sum, acc,
            K, B, D, BLOCK_N, BLOCK_D, PRECISION, WINDOW, CAP_LOG2, MASKED=True,
        )  # fmt: skip

    if SINKS:  # of all splits the first counts it
        sink = tl.load(sinks_ptr + kv_head * G + m % G).to(tl.float32) * _LOG2_E
        sink = tl.where(split == 0, sink, float("-inf"))
        new_max = tl.maximum(row_max, sink)
        decay = tl.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.exp2(sink - new_max)
        acc = acc * decay[:, None]
        row_max = new_max
    if WINDOW > 0:
        row_sum = tl.maximum(row_sum, LEAST_SUM)  # rows without a token may see no key
    acc = acc / row_sum[:, None]
    if splits == 1:
        to_ptr = out_ptr + row * out_stride + (m // G * out_stride + in_row)[:, None] + d[None, :]
        tl.store(to_ptr, round_to(acc, out_ptr.dtype.element_ty), mask=q_mask)
    else:
        item = (slot.to(tl.int64) * K + kv_head) * BLOCK_M
        tl.store(partial_ptr + item * D + m[:, None] * D + d[None, :], acc, mask=q_mask)
        tl.store(lse_ptr + item + m, row_max + tl.log2(row_sum), mask=row_mask)


def launch_options(dtype: torch.dtype, head_dim: int, rows: int, arch: int) -> dict[str, int | str]:
    """Keys of a tile, warps, stages. Three stages prefetch the block table too.

    The masked loop of a long tile prefetches nothing: it has few turns, and would cost registers.
    """
    short, long = rows == SHAPES["short"].rows, rows == SHAPES["long"].rows
    if dtype == torch.float32:  # for checks, not for speed
        block_n, stages, precision = (32, 2, "ieee") if short else (16, 1, "ieee")
    else:
        # Without wgmma the accumulator shares the registers with the operands: 64 keys of 128 would spill.
        block_n = 32 if head_dim > 128 or (long and arch < 90 and head_dim > 64) else 64
        stages, precision = 2 if head_dim > 128 else 3, "tf32"
    wide = long or dtype == torch.float32 or (rows >= 64 and head_dim > 128)
    return {
        "BLOCK_N": block_n,
        "PRECISION": precision,
        "TAIL_STAGES": 1 if long else stages,
        "num_warps": 8 if wide else 4,
        "num_stages": stages,
    }


def tile_rows(kind: PlanKind, dtype: torch.dtype, head_dim: int) -> int:
    """64 rows and more compile to wgmma on sm_90; 128 of large heads would spill."""
    most = 32 if dtype == torch.float32 else 128 if head_dim <= 128 else 64
    return min(SHAPES[kind].rows, most)


def query_range(kind: PlanKind, group: int) -> tuple[int, int]:
    """(least, most) query tokens of the sequences that a plan is for."""
    if kind == "uniform":
        return 1, NO_LIMIT
    at = PLANS.index(kind)
    least = 1 if at == 0 else SHAPES[PLANS[at - 1]].rows // group + 1
    return least, NO_LIMIT if kind == "long" else SHAPES[kind].rows // group


def allocate_plan(
    kind: PlanKind,
    *,
    max_seqs: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
    num_multiprocessors: int | None = None,
    min_chunk: int | None = None,
    window: int = 0,
) -> SplitPlan:
    """A plan for the sequences with as many query tokens as ``kind`` is for.

    ``num_multiprocessors`` is the card's own unless given; ``min_chunk`` is in tokens.
    """
    if num_multiprocessors is None:
        on_cuda = torch.device(device).type == "cuda"
        num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if on_cuda else 1
    shape = SHAPES[kind]
    least, most = query_range(kind, num_q_heads // num_kv_heads)
    return SplitPlan.allocate(
        max_seqs=max_seqs,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rows=tile_rows(kind, dtype, head_dim),
        least=least,
        most=most,
        window=window,
        min_chunk=shape.min_chunk if min_chunk is None else min_chunk,
        programs=shape.programs * num_multiprocessors,
        waves=shape.waves,
        uniform=kind == "uniform",
        device=device,
    )


def paged_attention(
    q_TQD: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_SL: torch.Tensor,
    query_start: torch.Tensor,
    context_len_S: torch.Tensor,
    scale: float,
    out_TQD: torch.Tensor,
    plan: SplitPlan,
    *,
    softcap: float = 0.0,
    sinks_Q: torch.Tensor | None = None,
) -> None:
    """Writes the rows of out_TQD whose sequences have as many query tokens as ``plan`` is for. The window is
    the plan's.

    ``plan`` must have been updated with this step's query_start and context_len. Page numbers must be inside
    the cache: the device does not check them. Raises TypeError or ValueError naming the argument.
    """
    check = Checker("paged_attention")
    check.tensor("q", q_TQD, "T Q D", FLOATS)
    check.tensor("k_cache", k_cache_PKBD, "P K B D", [q_TQD.dtype], contiguous=True)
    check.tensor("v_cache", v_cache_PKBD, "P K B D", [q_TQD.dtype], contiguous=True)
    check.tensor("block_table", block_table_SL, "S L", [torch.int32])
    check.tensor("context_len", context_len_S, "S", [torch.int32])
    check.tensor("query_start", query_start, str(check["S"] + 1), [torch.int32])
    check.tensor("out", out_TQD, "T Q D", [q_TQD.dtype])
    tokens, num_q_heads, head_dim = check["T"], check["Q"], check["D"]
    num_kv_heads, page_size, num_seqs = check["K"], check["B"], check["S"]
    check.require(
        num_q_heads % num_kv_heads == 0,
        f"{num_q_heads} query heads do not divide among {num_kv_heads} KV heads",
    )
    group = num_q_heads // num_kv_heads
    check.require(group <= MAX_GROUP, f"at most {MAX_GROUP} query heads may share a KV head, got {group}")
    check.require(
        head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM,
        f"head size {head_dim} is no multiple of 8 up to {MAX_HEAD_DIM}",
    )
    check.require(page_size in (16, 32, 64), f"page size {page_size} is not 16, 32 or 64 tokens")
    for name, x in (("q", q_TQD), ("out", out_TQD)):
        check.require(
            x.stride(1) == head_dim, f"the heads of {name} must be packed, got strides {x.stride()}"
        )
    check.tensor("the plan's lse", plan.lse_NKM, "N K M", [torch.float32])
    check.tensor("the plan's partial", plan.partial_NKMD, "N K M D", [torch.float32])
    check.require(
        num_q_heads == plan.num_q_heads, f"the plan is for {plan.num_q_heads} query heads, got {num_q_heads}"
    )
    check.require(
        plan.rows in {tile_rows(kind, q_TQD.dtype, head_dim) for kind in SHAPES},
        f"the plan is for tiles of {plan.rows} rows, q is {str(q_TQD.dtype).removeprefix('torch.')}",
    )
    check.require(num_seqs <= plan.max_seqs, f"the plan is for {plan.max_seqs} sequences, got {num_seqs}")
    if sinks_Q is not None:
        check.tensor("sinks", sinks_Q, "Q", FLOATS)
    if num_seqs == 0 or tokens == 0:
        return
    work = plan.max_work(tokens, num_seqs)
    block_d = max(next_power_of_2(head_dim), 16)
    block_s = len(plan.first_work_I)
    paged_attention_kernel[(work, num_kv_heads)](
        q_TQD, k_cache_PKBD, v_cache_PKBD, block_table_SL, query_start, context_len_S,
        plan.first_work_I, plan.first_slot_I, plan.chunk, out_TQD, plan.partial_NKMD, plan.lse_NKM,
        q_TQD if sinks_Q is None else sinks_Q,
        q_TQD.stride(0), out_TQD.stride(0), block_table_SL.stride(0),
        scale / softcap if softcap else scale * LOG2_E,
        Q=num_q_heads, K=num_kv_heads, B=page_size, D=head_dim, BLOCK_S=block_s,
        BLOCK_M=plan.rows, BLOCK_D=block_d, WINDOW=plan.window, MULTIPLE=CHUNK_MULTIPLE,
        CAP_LOG2=softcap * LOG2_E, SINKS=sinks_Q is not None, UNIFORM=plan.uniform,
        **launch_options(q_TQD.dtype, head_dim, plan.rows, architecture(q_TQD.device)),
    )  # fmt: skip
    if not plan.merges:
        return
    options = merge_options(plan.rows)
    merge_kernel[(min(check["N"], work), num_kv_heads, plan.rows // options["BLOCK_R"])](
        query_start, context_len_S, plan.first_slot_I, plan.chunk, out_TQD, plan.partial_NKMD, plan.lse_NKM,
        out_TQD.stride(0),
        Q=num_q_heads, K=num_kv_heads, D=head_dim, BLOCK_S=block_s, BLOCK_M=plan.rows, BLOCK_D=block_d,
        WINDOW=plan.window, MULTIPLE=CHUNK_MULTIPLE, **options,
    )  # fmt: skip
