"""Paged attention for sequences that compute one token: grouped query heads, keys and values split over
programs.

    out = softmax(scale * q @ K^T) @ V     over ``context_len`` keys, read through the block table

The G = Q / K query heads that share a key-value head are the rows of one tile, padded to 16 (the least
``tl.dot`` takes), so that keys and values are read once for all of them. A sequence's keys are cut into
chunks of equal size; each chunk ("split") is one work item, and its partial result

    o_w = softmax-weighted sum of V within the chunk,   lse_w = log2(sum of 2^(scores))

is merged by   out = sum_w 2^(lse_w - max) o_w / sum_w 2^(lse_w - max).  A sequence of one split is written
directly.

How many tokens a chunk has is decided on the device (``plan_kernel``), from the true lengths and the number
of programs that fill the card. The host launches a grid whose size depends on the number of sequences alone
and reads nothing back, so CUDA graphs can hold it; programs without a work item end at once. With chunks of
at least total / TARGET tokens there are at most S + TARGET work items, whatever the lengths.

Only sequences with exactly one query token in this step are touched (``query_start`` says which); the rows of
others, and of padding, are left to ``paged_prefill``.

Shapes: T tokens in the step, S sequences, Q query heads, K key-value heads, G = Q / K, D head size, P
pages, B slots a page, M pages a sequence can have, W work items.
q_TQD, out_TQD; k_cache_PKBD, v_cache_PKBD; block_table_SM (int32); query_start [S + 1], context_len_S
(int32).
Source: Dao et al., Flash-Decoding (2023); Kwon et al., PagedAttention, arXiv 2309.06180."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import LOG2_E, dot_operand, next_power_of_2, round_to
from sheaf_kernels.paging import gather_kv_reference, page_offsets

BLOCK_M = 16  # rows of a tile: up to 16 query heads per key-value head
MIN_CHUNK = 256  # tokens; below this a split costs more in merging than it wins
CHUNK_MULTIPLE = 64  # chunks start where a page of up to 64 slots and a tile of BLOCK_N keys start
WAVES = 2  # programs per multiprocessor that the plan aims for


def paged_decode_reference(
    q_TQD: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_SM: torch.Tensor,
    query_start: torch.Tensor,
    context_len_S: torch.Tensor,
    scale: float,
    out_TQD: torch.Tensor,
) -> None:
    """Writes the rows of out_TQD whose sequences have one query token. float32 inside."""
    for s in range(len(context_len_S)):
        row, end = int(query_start[s]), int(query_start[s + 1])
        if end - row != 1:
            continue
        k_CQD, v_CQD = gather_kv_reference(
            k_cache_PKBD, v_cache_PKBD, block_table_SM[s], int(context_len_S[s]), q_TQD.shape[1]
        )
        score_QC = torch.einsum("qd,cqd->qc", q_TQD[row].float(), k_CQD.float()) * scale
        out_TQD[row] = torch.einsum("qc,cqd->qd", score_QC.softmax(-1), v_CQD.float()).to(out_TQD.dtype)


@triton.jit(do_not_specialize=["num_seqs"])
def plan_kernel(
    query_start_ptr, context_len_ptr, work_seq_ptr, first_work_ptr, chunk_ptr, num_seqs,
    TARGET: tl.constexpr, MIN_CHUNK: tl.constexpr, MULTIPLE: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program s < num_seqs lists the work items of sequence s; the last one marks the rest of the list idle.

    Every program sums all lengths for itself: S is small, and no program then waits for another.
    """
    s = tl.program_id(0)
    index = tl.arange(0, BLOCK_S)
    real = index < num_seqs
    first_row = tl.load(query_start_ptr + index, mask=real, other=0)
    end_row = tl.load(query_start_ptr + index + 1, mask=real, other=0)
    length = tl.load(context_len_ptr + index, mask=real & (end_row - first_row == 1), other=0)
    total = tl.sum(length.to(tl.int64), axis=0)
    chunk = tl.maximum((total + TARGET - 1) // TARGET, MIN_CHUNK).to(tl.int32)
    chunk = (chunk + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    splits = (length + chunk - 1) // chunk
    first = tl.sum(tl.where(index < s, splits, 0), axis=0)
    mine = tl.sum(tl.where(index == s, splits, 0), axis=0)
    tl.store(first_work_ptr + s, first)
    if s == num_seqs:
        tl.store(chunk_ptr, chunk)
    item = tl.where(s == num_seqs, -1, s)
    mine = tl.where(s == num_seqs, num_seqs + TARGET - first, mine)
    lane = tl.arange(0, 32)
    for start in range(0, mine, 32):
        tl.store(
            work_seq_ptr + first + start + lane, tl.zeros([32], tl.int32) + item, mask=start + lane < mine
        )


# The width of the block table changes from step to step: specialising on it would compile anew while serving.
@triton.jit(do_not_specialize=["block_table_stride"])
def paged_decode_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, block_table_ptr, query_start_ptr, context_len_ptr,
    work_seq_ptr, first_work_ptr, chunk_ptr, out_ptr, partial_ptr, lse_ptr,
    q_stride, out_stride, block_table_stride, scale_log2,
    Q: tl.constexpr, K: tl.constexpr, B: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One work item and one key-value head per program."""
    G: tl.constexpr = Q // K
    w = tl.program_id(0)
    kv_head = tl.program_id(1)
    s = tl.load(work_seq_ptr + w)
    if s < 0:
        return
    first_work = tl.load(first_work_ptr + s)
    splits = tl.load(first_work_ptr + s + 1) - first_work
    chunk = tl.load(chunk_ptr)
    start = (w - first_work) * chunk
    end = tl.minimum(start + chunk, tl.load(context_len_ptr + s))
    row = tl.load(query_start_ptr + s).to(tl.int64)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    q_mask = (m[:, None] < G) & (d[None, :] < D)
    q = tl.load(q_ptr + row * q_stride + (kv_head * G + m[:, None]) * D + d[None, :], mask=q_mask, other=0.0)
    q = dot_operand(q)
    pages_ptr = block_table_ptr + s.to(tl.int64) * block_table_stride

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for tile in range(start, end, BLOCK_N):
        valid = tile + n < end
        offset = page_offsets(pages_ptr, tile, n, valid, kv_head, K, B, D, BLOCK_N)
        # Slots past the end may hold anything, NaN included: they are read as zero, and scored -inf.
        kv_mask = valid[:, None] & (d[None, :] < D)
        k = tl.load(k_cache_ptr + offset[:, None] + d[None, :], mask=kv_mask, other=0.0)
        score = tl.dot(q, tl.trans(dot_operand(k)), input_precision=PRECISION) * scale_log2
        score = tl.where(valid[None, :], score, float("-inf"))
        # A tile starts before the end, so at least one score of every row is finite.
        new_max = tl.maximum(row_max, tl.max(score, axis=1))
        p = tl.exp2(score - new_max[:, None])
        decay = tl.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.sum(p, axis=1)
        v = tl.load(v_cache_ptr + offset[:, None] + d[None, :], mask=kv_mask, other=0.0)
        p = dot_operand(round_to(p, v.dtype))
        acc = tl.dot(p, dot_operand(v), acc * decay[:, None], input_precision=PRECISION)
        row_max = new_max

    acc = acc / row_sum[:, None]
    q_head = kv_head * G + m
    if splits == 1:
        to_ptr = out_ptr + row * out_stride + q_head[:, None] * D + d[None, :]
        tl.store(to_ptr, round_to(acc, out_ptr.dtype.element_ty), mask=q_mask)
    else:
        partial = w.to(tl.int64) * Q + q_head
        tl.store(partial_ptr + partial[:, None] * D + d[None, :], acc, mask=q_mask)
        tl.store(lse_ptr + partial, row_max + tl.log2(row_sum), mask=m < G)


@triton.jit
def merge_kernel(
    query_start_ptr, first_work_ptr, out_ptr, partial_ptr, lse_ptr, out_stride,
    Q: tl.constexpr, D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One sequence and query head per program, BLOCK_W partial results at a time."""
    s = tl.program_id(0)
    q_head = tl.program_id(1)
    first = tl.load(first_work_ptr + s)
    end = tl.load(first_work_ptr + s + 1)
    if end - first <= 1:
        return
    d = tl.arange(0, BLOCK_D)
    best = -float("inf")
    weight_sum = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start in range(first, end, BLOCK_W):
        w = start + tl.arange(0, BLOCK_W)
        item = w.to(tl.int64) * Q + q_head
        lse = tl.load(lse_ptr + item, mask=w < end, other=float("-inf"))
        mask = (w < end)[:, None] & (d < D)[None, :]
        o = tl.load(partial_ptr + item[:, None] * D + d[None, :], mask=mask, other=0.0)
        new_best = tl.maximum(best, tl.max(lse, axis=0))
        weight = tl.exp2(lse - new_best)
        decay = tl.exp2(best - new_best)
        weight_sum = weight_sum * decay + tl.sum(weight, axis=0)
        acc = acc * decay + tl.sum(weight[:, None] * o, axis=0)
        best = new_best
    row = tl.load(query_start_ptr + s).to(tl.int64)
    to_ptr = out_ptr + row * out_stride + q_head * D + d
    tl.store(to_ptr, round_to(acc / weight_sum, out_ptr.dtype.element_ty), mask=d < D)


def launch_options(dtype: torch.dtype) -> dict[str, int | str]:
    """Tile of keys, warps, stages. Three stages prefetch the block table too; float32 is not for speed."""
    if dtype == torch.float32:
        return {"BLOCK_N": 32, "PRECISION": "ieee", "num_warps": 8, "num_stages": 2}
    return {"BLOCK_N": 64, "PRECISION": "tf32", "num_warps": 4, "num_stages": 3}


@dataclass(frozen=True)
class DecodePlan:
    """Device buffers of one decode launch, allocated once and shared by all layers.

    ``update`` fills them, once per step; ``paged_decode`` reads them. W = max_seqs + target work items.
    """

    max_seqs: int
    target: int  # work items beyond one per sequence; about WAVES programs a multiprocessor over all heads
    min_chunk: int
    work_seq_W: torch.Tensor
    first_work: torch.Tensor  # [max_seqs + 1]: the first work item of each sequence, then their number
    chunk: torch.Tensor  # [1], tokens
    partial_WQD: torch.Tensor
    lse_WQ: torch.Tensor

    @classmethod
    def allocate(
        cls,
        max_seqs: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device | str,
        *,
        num_multiprocessors: int | None = None,
        min_chunk: int = MIN_CHUNK,
    ) -> DecodePlan:
        """``num_multiprocessors`` is the card's own unless given; ``min_chunk`` is in tokens."""
        if num_multiprocessors is None:
            on_cuda = torch.device(device).type == "cuda"
            num_multiprocessors = (
                torch.cuda.get_device_properties(device).multi_processor_count if on_cuda else 1
            )
        target = triton.cdiv(WAVES * num_multiprocessors, num_kv_heads)
        items = max_seqs + target
        return cls(
            max_seqs=max_seqs,
            target=target,
            min_chunk=min_chunk,
            work_seq_W=torch.full((items,), -1, dtype=torch.int32, device=device),
            first_work=torch.zeros(max_seqs + 1, dtype=torch.int32, device=device),
            chunk=torch.full((1,), min_chunk, dtype=torch.int32, device=device),
            partial_WQD=torch.empty(items, num_q_heads, head_dim, dtype=torch.float32, device=device),
            lse_WQ=torch.empty(items, num_q_heads, dtype=torch.float32, device=device),
        )

    def update(self, query_start: torch.Tensor, context_len_S: torch.Tensor) -> None:
        """Plan the work of a step, on the device. Raises TypeError or ValueError naming the argument."""
        check = Checker("DecodePlan.update")
        check.tensor("context_len", context_len_S, "S", [torch.int32])
        check.tensor("query_start", query_start, str(check["S"] + 1), [torch.int32])
        check.tensor("the plan", self.chunk, "1", [torch.int32])
        check.require(
            check["S"] <= self.max_seqs,
            f"the plan is for {self.max_seqs} sequences, context_len has {check['S']}",
        )
        plan_kernel[(check["S"] + 1,)](
            query_start, context_len_S, self.work_seq_W, self.first_work, self.chunk, check["S"],
            TARGET=self.target, MIN_CHUNK=self.min_chunk, MULTIPLE=CHUNK_MULTIPLE,
            BLOCK_S=next_power_of_2(self.max_seqs + 1), num_warps=4,
        )  # fmt: skip


def paged_decode(
    q_TQD: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_SM: torch.Tensor,
    query_start: torch.Tensor,
    context_len_S: torch.Tensor,
    scale: float,
    out_TQD: torch.Tensor,
    plan: DecodePlan,
) -> None:
    """Writes the rows of out_TQD whose sequences have one query token, as ``paged_decode_reference`` does.

    ``plan`` must have been updated with this step's query_start and context_len. Page numbers must be inside
    the cache: the device does not check them. Raises TypeError or ValueError naming the argument.
    """
    check = Checker("paged_decode")
    check_attention(
        check, q_TQD, k_cache_PKBD, v_cache_PKBD, block_table_SM, query_start, context_len_S, out_TQD
    )
    check.tensor("the plan's lse", plan.lse_WQ, "W Q", [torch.float32])
    check.tensor("the plan's partial", plan.partial_WQD, "W Q D", [torch.float32])
    check.require(check["S"] <= plan.max_seqs, f"the plan is for {plan.max_seqs} sequences, got {check['S']}")
    if check["S"] == 0:
        return
    num_q_heads, num_kv_heads, head_dim = check["Q"], check["K"], check["D"]
    block_d = max(next_power_of_2(head_dim), 16)
    paged_decode_kernel[(check["S"] + plan.target, num_kv_heads)](
        q_TQD, k_cache_PKBD, v_cache_PKBD, block_table_SM, query_start, context_len_S,
        plan.work_seq_W, plan.first_work, plan.chunk, out_TQD, plan.partial_WQD, plan.lse_WQ,
        q_TQD.stride(0), out_TQD.stride(0), block_table_SM.stride(0), scale * LOG2_E,
        Q=num_q_heads, K=num_kv_heads, B=check["B"], D=head_dim,
        BLOCK_M=BLOCK_M, BLOCK_D=block_d, **launch_options(q_TQD.dtype),
    )  # fmt: skip
    merge_kernel[(check["S"], num_q_heads)](
        query_start, plan.first_work, out_TQD, plan.partial_WQD, plan.lse_WQ, out_TQD.stride(0),
        Q=num_q_heads, D=head_dim, BLOCK_W=16, BLOCK_D=block_d, num_warps=2,
    )  # fmt: skip


def check_attention(
    check: Checker,
    q_TQD: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_SM: torch.Tensor,
    query_start: torch.Tensor,
    context_len_S: torch.Tensor,
    out_TQD: torch.Tensor,
) -> None:
    """What both attention kernels ask of their arguments: shapes, dtypes, head counts and sizes, packing."""
    check.tensor("q", q_TQD, "T Q D", FLOATS)
    check.tensor("k_cache", k_cache_PKBD, "P K B D", [q_TQD.dtype], contiguous=True)
    check.tensor("v_cache", v_cache_PKBD, "P K B D", [q_TQD.dtype], contiguous=True)
    check.tensor("block_table", block_table_SM, "S M", [torch.int32])
    check.tensor("context_len", context_len_S, "S", [torch.int32])
    check.tensor("query_start", query_start, str(check["S"] + 1), [torch.int32])
    check.tensor("out", out_TQD, "T Q D", [q_TQD.dtype])
    check.require(
        check["Q"] % check["K"] == 0, f"{check['Q']} query heads do not divide among {check['K']} KV heads"
    )
    group = check["Q"] // check["K"]
    check.require(group <= BLOCK_M, f"at most {BLOCK_M} query heads may share a KV head, got {group}")
    check.require(check["D"] in (16, 32, 64, 96, 128), f"head size {check['D']} is not 16, 32, 64, 96 or 128")
    check.require(check["B"] in (16, 32, 64), f"page size {check['B']} is not 16, 32 or 64 tokens")
    for name, x in (("q", q_TQD), ("out", out_TQD)):
        check.require(
            x.stride(1) == check["D"], f"the heads of {name} must be packed, got strides {x.stride()}"
        )
