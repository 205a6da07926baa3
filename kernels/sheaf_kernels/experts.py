"""Matrix products of tokens with the experts that they chose: one launch for all experts.

    y_p = (s_p * x_t) @ W_e^T + b_e,    y_p = s_p * y_p instead where the scale belongs to the result

for every pair p of a token t and one of its K experts e. ``sort_pairs`` orders the pairs by expert, then by
pair, on the device; ``grouped_linear`` cuts each expert's pairs into tiles of BLOCK_M and multiplies. The
host knows the number of pairs alone: the grid holds the most tiles that they can have, and programs without a
tile end at once, so a CUDA graph can hold it. An expert that nobody chose has no tile, and its weight is not
read.

Rows of x are tokens (row p // K) or pairs in sorted order; rows of y are pairs in sorted order, or in their
own (``in_order``), so that a token's K results lie beside each other. Sums are float32, in an order that
depends on the tile's size alone.

Shapes: T tokens, K experts of a token, P = T * K pairs, E experts, C channels in, N out.
chosen_TK (int64), sorted_P, first_E1 [E + 1] (int32); weight_ENC, bias_EN, scale_P; x [T or P, C], y_PN.
Source: Gale et al., MegaBlocks, arXiv 2211.15841.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import dot_operand, next_power_of_2, round_to

BLOCK_P = 1024  # pairs that the sort reads at a time
MIN_TILE, MAX_TILE = 16, 128


@dataclass(frozen=True)
class Groups:
    """Pairs by expert: those of expert e are sorted_P[first_E1[e] : first_E1[e + 1]]."""

    sorted_P: torch.Tensor
    first_E1: torch.Tensor
    top_k: int


def sort_pairs_reference(chosen_TK: torch.Tensor, num_experts: int) -> Groups:
    flat_P = chosen_TK.flatten()
    count_E = torch.bincount(flat_P, minlength=num_experts)
    first_E1 = torch.nn.functional.pad(count_E.cumsum(0), (1, 0))
    return Groups(flat_P.argsort(stable=True).int(), first_E1.int(), chosen_TK.shape[1])


def grouped_linear_reference(
    x: torch.Tensor,
    weight_ENC: torch.Tensor,
    bias_EN: torch.Tensor | None,
    groups: Groups,
    *,
    by_token: bool,
    in_order: bool,
    scale_in_P: torch.Tensor | None = None,
    scale_out_P: torch.Tensor | None = None,
) -> torch.Tensor:
    """y_PN. float32 inside; the scaled input is rounded."""
    y_PN = torch.empty(len(groups.sorted_P), weight_ENC.shape[1], dtype=x.dtype, device=x.device)
    for i, pair in enumerate(groups.sorted_P.tolist()):
        expert = int((groups.first_E1 <= i).sum()) - 1
        row_C = x[pair // groups.top_k if by_token else i]
        if scale_in_P is not None:
            row_C = (row_C.float() * scale_in_P[pair].float()).to(x.dtype)
        row_N = weight_ENC[expert].float() @ row_C.float()
        if bias_EN is not None:
            row_N = row_N + bias_EN[expert].float()
        if scale_out_P is not None:
            row_N = row_N * scale_out_P[pair].float()
        y_PN[pair if in_order else i] = row_N.to(x.dtype)
    return y_PN


@triton.jit(do_not_specialize=["pairs"])
def sort_pairs_kernel(chosen_ptr, sorted_ptr, first_ptr, pairs, BLOCK_P: tl.constexpr):
    """One expert per program, and one more that writes the end. It reads all pairs twice: to learn how many
    belong to earlier experts, and to list its own."""
    expert = tl.program_id(0)
    before = tl.full([], 0, tl.int32)
    for start in range(0, pairs, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        chosen = tl.load(chosen_ptr + p, mask=p < pairs, other=0).to(tl.int32)
        before += tl.sum(((p < pairs) & (chosen < expert)).to(tl.int32), axis=0)
    tl.store(first_ptr + expert, before)
    place = before
    for start in range(0, pairs, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        chosen = tl.load(chosen_ptr + p, mask=p < pairs, other=0).to(tl.int32)
        mine = (p < pairs) & (chosen == expert)
        at = place + tl.cumsum(mine.to(tl.int32), axis=0) - 1
        tl.store(sorted_ptr + at, p, mask=mine)
        place += tl.sum(mine.to(tl.int32), axis=0)


@triton.jit
def grouped_linear_kernel(
    x_ptr, weight_ptr, bias_ptr, sorted_ptr, first_ptr, scale_ptr, y_ptr, x_stride,
    E: tl.constexpr, C: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr,
    BY_TOKEN: tl.constexpr, IN_ORDER: tl.constexpr, BIASED: tl.constexpr,
    SCALE_IN: tl.constexpr, SCALE_OUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of one expert's pairs and BLOCK_N channels per program."""
    tile = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    first_E = tl.load(first_ptr + e, mask=e < E, other=0)
    count_E = tl.load(first_ptr + e + 1, mask=e < E, other=0) - first_E
    tiles_E = (count_E + BLOCK_M - 1) // BLOCK_M
    ends_E = tl.cumsum(tiles_E, axis=0)
    expert = tl.sum((ends_E <= tile).to(tl.int32), axis=0)
    if expert >= E:
        return
    mine = e == expert
    first = tl.sum(tl.where(mine, first_E + (tile - ends_E + tiles_E) * BLOCK_M, 0), axis=0)
    end = tl.sum(tl.where(mine, first_E + count_E, 0), axis=0)

    m = first + tl.arange(0, BLOCK_M)
    row_mask = m < end
    pair = tl.load(sorted_ptr + m, mask=row_mask, other=0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_row = pair // TOP_K if BY_TOKEN else m.to(tl.int64)
    x_row_ptr = x_ptr + (x_row * x_stride)[:, None]
    # An expert's weight begins beyond 2^31 elements in large models.
    weight_row_ptr = weight_ptr + expert.to(tl.int64) * (N * C) + n.to(tl.int64)[None, :] * C
    if SCALE_IN or SCALE_OUT:
        scale = tl.load(scale_ptr + pair, mask=row_mask, other=0.0).to(tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(x_row_ptr + c[None, :], mask=row_mask[:, None] & (c < C)[None, :], other=0.0)
        if SCALE_IN:
            x = round_to(x.to(tl.float32) * scale[:, None], x_ptr.dtype.element_ty)
        weight = tl.load(weight_row_ptr + c[:, None], mask=(c < C)[:, None] & (n < N)[None, :], other=0.0)
        acc = tl.dot(dot_operand(x), dot_operand(weight), acc, input_precision=PRECISION)
    if BIASED:
        bias = tl.load(bias_ptr + expert.to(tl.int64) * N + n, mask=n < N, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    if SCALE_OUT:
        acc *= scale[:, None]
    y_row = pair if IN_ORDER else m.to(tl.int64)
    y = round_to(acc, y_ptr.dtype.element_ty)
    tl.store(y_ptr + (y_row * N)[:, None] + n[None, :], y, mask=row_mask[:, None] & (n < N)[None, :])


def sort_pairs(chosen_TK: torch.Tensor, num_experts: int) -> Groups:
    """Raises TypeError or ValueError naming the argument. Ids must be below ``num_experts``: the device does
    not check them."""
    check = Checker("sort_pairs")
    check.tensor("chosen", chosen_TK, "T K", [torch.int64], contiguous=True)
    pairs = chosen_TK.numel()
    sorted_P = torch.empty(pairs, dtype=torch.int32, device=chosen_TK.device)
    first_E1 = torch.empty(num_experts + 1, dtype=torch.int32, device=chosen_TK.device)
    sort_pairs_kernel[(num_experts + 1,)](chosen_TK, sorted_P, first_E1, pairs, BLOCK_P=BLOCK_P, num_warps=4)
    return Groups(sorted_P, first_E1, chosen_TK.shape[1])


def launch_options(dtype: torch.dtype, rows: int) -> dict[str, int | str]:
    """``rows``: of a tile, by which the weights' reading and the products are balanced."""
    if dtype == torch.float32:  # for checks, not for speed
        return {"BLOCK_N": 32, "BLOCK_C": 32, "PRECISION": "ieee", "num_warps": 4, "num_stages": 2}
    wide = {"BLOCK_N": 128, "BLOCK_C": 64, "num_warps": 8, "num_stages": 3}
    narrow = {"BLOCK_N": 64, "BLOCK_C": 128, "num_warps": 4, "num_stages": 4}
    return {**(wide if rows >= 64 else narrow), "PRECISION": "tf32"}


def tile_rows(pairs: int, num_experts: int) -> int:
    """What an expert gets if all get as many, and no less than ``tl.dot`` takes."""
    return min(max(next_power_of_2(pairs // num_experts), MIN_TILE), MAX_TILE)


def grouped_linear(
    x: torch.Tensor,
    weight_ENC: torch.Tensor,
    bias_EN: torch.Tensor | None,
    groups: Groups,
    *,
    by_token: bool,
    in_order: bool,
    scale_in_P: torch.Tensor | None = None,
    scale_out_P: torch.Tensor | None = None,
) -> torch.Tensor:
    """y_PN, as ``grouped_linear_reference`` gives it. Raises TypeError or ValueError naming the argument."""
    check = Checker("grouped_linear")
    check.tensor("sorted", groups.sorted_P, "P", [torch.int32])
    check.tensor("x", x, "T C" if by_token else "P C", FLOATS)
    check.tensor("weight", weight_ENC, "E N C", [x.dtype], contiguous=True)
    check.tensor("first", groups.first_E1, str(check["E"] + 1), [torch.int32])
    if bias_EN is not None:
        check.tensor("bias", bias_EN, "E N", [x.dtype], contiguous=True)
    check.require(scale_in_P is None or scale_out_P is None, "a scale belongs to the input or the result")
    scale_P = scale_out_P if scale_in_P is None else scale_in_P
    if scale_P is not None:
        check.tensor("scale", scale_P, "P", FLOATS)
    pairs, experts, channels = check["P"], check["E"], check["N"]
    y_PN = torch.empty(pairs, channels, dtype=x.dtype, device=x.device)
    if pairs == 0:
        return y_PN
    rows = tile_rows(pairs, experts)
    options = launch_options(x.dtype, rows)
    tiles = pairs // rows + min(experts, pairs)
    grouped_linear_kernel[(tiles, triton.cdiv(channels, int(options["BLOCK_N"])))](
        x, weight_ENC, x if bias_EN is None else bias_EN, groups.sorted_P, groups.first_E1,
        x if scale_P is None else scale_P, y_PN, x.stride(0),
        E=experts, C=check["C"], N=channels, TOP_K=groups.top_k, BY_TOKEN=by_token, IN_ORDER=in_order,
        BIASED=bias_EN is not None, SCALE_IN=scale_in_P is not None, SCALE_OUT=scale_out_P is not None,
        BLOCK_E=next_power_of_2(experts), BLOCK_M=rows, **options,
    )  # fmt: skip
    return y_PN
