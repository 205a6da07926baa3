"""Paged attention for chunks of prompts: many query tokens a sequence, causal, over a paged prefix.

    out_t = softmax(scale * q_t @ K[0..p_t]^T) @ V[0..p_t],    p_t = context_len - query_len + t

A sequence's last ``query_len`` tokens are the queries of this step; their own keys and values are in the
cache already. A tile's rows are BLOCK_Q tokens times the G = Q / K query heads of one key-value head, up to
BLOCK_M rows. Keys that every row of the tile may see are read in a loop without a mask; the rest (the
diagonal, and the ragged end) in a second, masked one.

The grid's size depends on T and S alone: sequence s owns the tiles from query_start[s] // BLOCK_Q + s on,
which a program inverts by binary search, and those beyond a sequence's last token end at once.

Shapes: T tokens in the step, S sequences, Q query heads, K key-value heads, G = Q / K, D head size, P
pages, B slots a page, M pages a sequence can have.
q_TQD, out_TQD; k_cache_PKBD, v_cache_PKBD; block_table_SM (int32); query_start [S + 1], context_len_S
(int32).
Source: Dao, FlashAttention-2, arXiv 2307.08691; Kwon et al., PagedAttention, arXiv 2309.06180."""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import Checker
from sheaf_kernels.numerics import LOG2_E, architecture, dot_operand, next_power_of_2, round_to
from sheaf_kernels.paged_decode import check_attention
from sheaf_kernels.paging import gather_kv_reference, page_offsets


def paged_prefill_reference(
    q_TQD: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_SM: torch.Tensor,
    query_start: torch.Tensor,
    context_len_S: torch.Tensor,
    scale: float,
    out_TQD: torch.Tensor,
    min_query_len: int = 1,
) -> None:
    """Writes the rows of out_TQD whose sequences have ``min_query_len`` or more query tokens."""
    for s in range(len(context_len_S)):
        row, end, context = int(query_start[s]), int(query_start[s + 1]), int(context_len_S[s])
        if end - row < min_query_len:
            continue
        k_CQD, v_CQD = gather_kv_reference(
            k_cache_PKBD, v_cache_PKBD, block_table_SM[s], context, q_TQD.shape[1]
        )
        score_QTC = torch.einsum("tqd,cqd->qtc", q_TQD[row:end].float(), k_CQD.float()) * scale
        position_T = torch.arange(context - (end - row), context, device=q_TQD.device)
        hidden_TC = torch.arange(context, device=q_TQD.device)[None, :] > position_T[:, None]
        score_QTC = score_QTC.masked_fill(hidden_TC, float("-inf"))
        out_TQD[row:end] = torch.einsum("qtc,cqd->tqd", score_QTC.softmax(-1), v_CQD.float()).to(
            out_TQD.dtype
        )


@triton.jit
def attend_tile(
    q, k_cache_ptr, v_cache_ptr, pages_ptr, tile, end, last_key, kv_head, scale_log2, row_max, row_sum, acc,
    K: tl.constexpr, B: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold keys tile .. tile + BLOCK_N into the running softmax. A row sees keys up to ``last_key``."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    valid = tile + n < end
    offset = page_offsets(pages_ptr, tile, n, valid, kv_head, K, B, D, BLOCK_N)
    kv_mask = (d < D)[None, :]
    if MASKED:
        # Slots past the end may hold anything, NaN included: they are read as zero, and scored -inf.
        kv_mask = kv_mask & valid[:, None]
    k = tl.load(k_cache_ptr + offset[:, None] + d[None, :], mask=kv_mask, other=0.0)
    score = tl.dot(q, tl.trans(dot_operand(k)), input_precision=PRECISION) * scale_log2
    if MASKED:
        score = tl.where((tile + n)[None, :] <= last_key[:, None], score, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(score, axis=1))
    p = tl.exp2(score - new_max[:, None])
    decay = tl.exp2(row_max - new_max)
    row_sum = row_sum * decay + tl.sum(p, axis=1)
    v = tl.load(v_cache_ptr + offset[:, None] + d[None, :], mask=kv_mask, other=0.0)
    p = dot_operand(round_to(p, v.dtype))
    acc = tl.dot(p, dot_operand(v), acc * decay[:, None], input_precision=PRECISION)
    return new_max, row_sum, acc


@triton.jit(do_not_specialize=["num_seqs", "block_table_stride"])
def paged_prefill_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, block_table_ptr, query_start_ptr, context_len_ptr, out_ptr,
    q_stride, out_stride, block_table_stride, num_seqs, scale_log2,
    Q: tl.constexpr, K: tl.constexpr, B: tl.constexpr, D: tl.constexpr, MIN_QUERY_LEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q tokens of one sequence and one key-value head per program."""
    G: tl.constexpr = Q // K
    BLOCK_Q: tl.constexpr = BLOCK_M // G
    tile_index = tl.program_id(0)
    kv_head = tl.program_id(1)
    # The last s whose first tile is at or before this one.
    s = 0
    high = num_seqs
    while high - s > 1:
        middle = (s + high) // 2
        if tl.load(query_start_ptr + middle) // BLOCK_Q + middle <= tile_index:
            s = middle
        else:
            high = middle
    first_row = tl.load(query_start_ptr + s)
    query_len = tl.load(query_start_ptr + s + 1) - first_row
    first_query = (tile_index - (first_row // BLOCK_Q + s)) * BLOCK_Q
    if (first_query >= query_len) | (query_len < MIN_QUERY_LEN):
        return
    before = tl.load(context_len_ptr + s) - query_len  # the position of the sequence's first query

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    query = first_query + m // G
    q_mask = ((m < BLOCK_Q * G) & (query < query_len))[:, None] & (d < D)[None, :]
    row = (first_row + query).to(tl.int64)
    q_head = kv_head * G + m % G
    in_row = q_head[:, None] * D + d[None, :]
    q = dot_operand(tl.load(q_ptr + row[:, None] * q_stride + in_row, mask=q_mask, other=0.0))
    pages_ptr = block_table_ptr + tl.cast(s, tl.int64) * block_table_stride

    # Key 0 is visible to every row, rows without a token included: no row is ever without a finite score.
    last_key = before + query
    last_query = tl.minimum(first_query + BLOCK_Q, query_len) - 1
    end = before + last_query + 1
    masked_from = (before + first_query + 1) // BLOCK_N * BLOCK_N

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for tile in range(0, masked_from, BLOCK_N):
        row_max, row_sum, acc = attend_tile(
            q, k_cache_ptr, v_cache_ptr, pages_ptr, tile, end, last_key, kv_head, scale_log2,
            row_max, row_sum, acc,
            K, B, D, BLOCK_N, BLOCK_D, PRECISION, MASKED=False,
        )  # fmt: skip
    for tile in range(masked_from, end, BLOCK_N):
        row_max, row_sum, acc = attend_tile(
            q, k_cache_ptr, v_cache_ptr, pages_ptr, tile, end, last_key, kv_head, scale_log2,
            row_max, row_sum, acc,
            K, B, D, BLOCK_N, BLOCK_D, PRECISION, MASKED=True,
        )  # fmt: skip
    out = round_to(acc / row_sum[:, None], out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * out_stride + in_row, out, mask=q_mask)


def launch_options(dtype: torch.dtype, head_dim: int, arch: int) -> dict[str, int | str]:
    """Tile, warps, stages. 128 rows compile to wgmma on sm_90; float32 is for checks, not speed."""
    if dtype == torch.float32:
        return {"BLOCK_M": 32, "BLOCK_N": 16, "PRECISION": "ieee", "num_warps": 8, "num_stages": 2}
    # Without wgmma the accumulator shares the registers with the operands: 64 keys of 128 would spill.
    block_n = 32 if arch < 90 and head_dim > 64 else 64
    return {"BLOCK_M": 128, "BLOCK_N": block_n, "PRECISION": "tf32", "num_warps": 8, "num_stages": 3}


def paged_prefill(
    q_TQD: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_SM: torch.Tensor,
    query_start: torch.Tensor,
    context_len_S: torch.Tensor,
    scale: float,
    out_TQD: torch.Tensor,
    min_query_len: int = 1,
) -> None:
    """Writes the rows of out_TQD whose sequences have ``min_query_len`` or more query tokens.

    ``min_query_len=2`` leaves the single tokens to ``paged_decode``. Page numbers must be inside the cache:
    the device does not check them. Raises TypeError or ValueError naming the argument.
    """
    check = Checker("paged_prefill")
    check_attention(
        check, q_TQD, k_cache_PKBD, v_cache_PKBD, block_table_SM, query_start, context_len_S, out_TQD
    )
    if check["S"] == 0 or check["T"] == 0:
        return
    options = launch_options(q_TQD.dtype, check["D"], architecture(q_TQD.device))
    block_q = int(options["BLOCK_M"]) // (check["Q"] // check["K"])
    paged_prefill_kernel[(check["T"] // block_q + check["S"], check["K"])](
        q_TQD, k_cache_PKBD, v_cache_PKBD, block_table_SM, query_start, context_len_S, out_TQD,
        q_TQD.stride(0), out_TQD.stride(0), block_table_SM.stride(0), check["S"], scale * LOG2_E,
        Q=check["Q"], K=check["K"], B=check["B"], D=check["D"], MIN_QUERY_LEN=min_query_len,
        BLOCK_D=max(next_power_of_2(check["D"]), 16), **options,
    )  # fmt: skip
