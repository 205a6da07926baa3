"""Rotary position embedding of queries and keys, fused with the write of keys and values into their pages.

With x = [x1 | x2] split at half the head size, and the cosines and sines of the token's position:

    rotate(x) = [x1 * cos - x2 * sin | x2 * cos + x1 * sin]
    q <- rotate(q) in place;   K page slot <- rotate(k);   V page slot <- v

Computed in float32 and rounded once. A token with a negative slot is padding: neither cache is written for
it.

Shapes: T tokens, Q query heads, K key-value heads, D head size, H = D / 2, L table length, P pages, B slots
a page.
q_TQD, k_TKD, v_TKD, cos_LH, sin_LH (float32), position_T (int64), slot_mapping_T (int64: page * B + slot in
it),
k_cache_PKBD, v_cache_PKBD.
Source: Su et al., RoFormer, arXiv 2104.09864, in the half-split form of GPT-NeoX and Llama."""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import next_power_of_2, round_to

BLOCK_HEADS = 8


def rope_reference(x_TND: torch.Tensor, cos_TH: torch.Tensor, sin_TH: torch.Tensor) -> torch.Tensor:
    """Rotate N heads of every token by that token's row of cosines and sines; returns x_TND's dtype."""
    x1, x2 = x_TND.float().chunk(2, dim=-1)
    cos, sin = cos_TH[:, None], sin_TH[:, None]
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x_TND.dtype)


def rope_kv_write_reference(
    q_TQD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cos_TH: torch.Tensor,
    sin_TH: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
) -> None:
    """Writes q, k_cache and v_cache in place."""
    q_TQD.copy_(rope_reference(q_TQD, cos_TH, sin_TH))
    k_TKD = rope_reference(k_TKD, cos_TH, sin_TH)
    real = slot_mapping_T >= 0
    page, slot = slot_mapping_T[real] // k_cache_PKBD.shape[2], slot_mapping_T[real] % k_cache_PKBD.shape[2]
    k_cache_PKBD[page, :, slot] = k_TKD[real]
    v_cache_PKBD[page, :, slot] = v_TKD[real]


@triton.jit
def rope_kv_write_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, slot_mapping_ptr, k_cache_ptr, v_cache_ptr,
    q_stride, k_stride, v_stride, cos_stride, sin_stride,
    Q: tl.constexpr, K: tl.constexpr, B: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HEADS: tl.constexpr,
):  # fmt: skip
    """One token and BLOCK_HEADS heads per program: tiles of query heads first, then of key-value heads."""
    H: tl.constexpr = D // 2
    Q_TILES: tl.constexpr = (Q + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    d = tl.arange(0, BLOCK_H)[None, :]
    cos = tl.load(cos_ptr + token * cos_stride + d, mask=d < H, other=0.0)
    sin = tl.load(sin_ptr + token * sin_stride + d, mask=d < H, other=0.0)
    if tile < Q_TILES:
        head = tile * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
        mask = (head < Q) & (d < H)
        x1_ptr = q_ptr + token * q_stride + head * D + d
        x1 = tl.load(x1_ptr, mask=mask, other=0.0).to(tl.float32)
        x2 = tl.load(x1_ptr + H, mask=mask, other=0.0).to(tl.float32)
        tl.store(x1_ptr, round_to(x1 * cos - x2 * sin, q_ptr.dtype.element_ty), mask=mask)
        tl.store(x1_ptr + H, round_to(x2 * cos + x1 * sin, q_ptr.dtype.element_ty), mask=mask)
    else:
        slot_index = tl.load(slot_mapping_ptr + token)
        if slot_index >= 0:
            head = (tile - Q_TILES) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
            mask = (head < K) & (d < H)
            x1_ptr = k_ptr + token * k_stride + head * D + d
            x1 = tl.load(x1_ptr, mask=mask, other=0.0).to(tl.float32)
            x2 = tl.load(x1_ptr + H, mask=mask, other=0.0).to(tl.float32)
            # slot_mapping is int64, so the page offset below is too.
            to = (slot_index // B * K + head) * (B * D) + slot_index % B * D + d
            tl.store(k_cache_ptr + to, round_to(x1 * cos - x2 * sin, k_cache_ptr.dtype.element_ty), mask=mask)
            tl.store(
                k_cache_ptr + to + H, round_to(x2 * cos + x1 * sin, k_cache_ptr.dtype.element_ty), mask=mask
            )
            from_ptr = v_ptr + token * v_stride + head * D + d
            tl.store(v_cache_ptr + to, tl.load(from_ptr, mask=mask), mask=mask)
            tl.store(v_cache_ptr + to + H, tl.load(from_ptr + H, mask=mask), mask=mask)


def rope_kv_write(
    q_TQD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cos_TH: torch.Tensor,
    sin_TH: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
) -> None:
    """Writes q, k_cache and v_cache in place, as ``rope_kv_write_reference`` does.

    q, k and v may be views into one fused projection: tokens may have any stride, heads must be packed. cos
    and sin may have a stride too.
    Slots must be inside the cache: the device does not check them.
    Raises TypeError or ValueError naming the argument.
    """
    check = Checker("rope_kv_write")
    check.tensor("q", q_TQD, "T Q D", FLOATS)
    check.tensor("k", k_TKD, "T K D", [q_TQD.dtype])
    check.tensor("v", v_TKD, "T K D", [q_TQD.dtype])
    check.require(check["D"] % 2 == 0, f"the head size must be even, got {check['D']}")
    for name, x in (("q", q_TQD), ("k", k_TKD), ("v", v_TKD)):
        check.require(
            x.stride(1) == check["D"], f"the heads of {name} must be packed, got strides {x.stride()}"
        )
    check.tensor("cos", cos_TH, f"T {check['D'] // 2}", [torch.float32])
    check.tensor("sin", sin_TH, f"T {check['D'] // 2}", [torch.float32])
    check.tensor("slot_mapping", slot_mapping_T, "T", [torch.int64])
    check.tensor("k_cache", k_cache_PKBD, "P K B D", [q_TQD.dtype], contiguous=True)
    check.tensor("v_cache", v_cache_PKBD, "P K B D", [q_TQD.dtype], contiguous=True)
    if check["T"] == 0:
        return
    tiles = triton.cdiv(check["Q"], BLOCK_HEADS) + triton.cdiv(check["K"], BLOCK_HEADS)
    rope_kv_write_kernel[(check["T"], tiles)](
        q_TQD, k_TKD, v_TKD, cos_TH, sin_TH, slot_mapping_T, k_cache_PKBD, v_cache_PKBD,
        q_TQD.stride(0), k_TKD.stride(0), v_TKD.stride(0), cos_TH.stride(0), sin_TH.stride(0),
        Q=check["Q"], K=check["K"], B=check["B"], D=check["D"],
        BLOCK_H=next_power_of_2(check["D"] // 2), BLOCK_HEADS=BLOCK_HEADS, num_warps=2,
    )  # fmt: skip
