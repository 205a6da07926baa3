"""Linear layers whose weights are int8: y = x W^T + b, where x is made int8 as well, on the fly.

Both have one scale for each group of 64 input channels, W of every output channel and x of every row: one
for a whole row of x would leave what stands beside an outlier a few steps to be told apart by, and one for
a whole channel of W costs the demo model 1.4 % of perplexity. Integers are multiplied and added exactly
within a group, and groups are added in float32 in the order of K: a row's result does not depend on the rows
beside it.

    q_TGI = round(x_TGI / s_TG), s_TG = max_I |x_TGI| / 127, to nearest with ties to even
    y_TN = sum_G(w_NG * s_TG * sum_I(q_TGI * W_NGI)) + b_N

A group of x that holds no number, or an infinite one, makes its row's results NaN.

Weights lie in panels of L output channels, as many as a vector has floats, and there in quads:
[N/L, K/4, L, 4]. Where the machine multiplies bytes, 128 is added to each, for it takes one factor without a
sign.

Shapes: T rows, K input and N output channels, G groups of I = 64.  x_TK, weight_NK (int8), scale_NG, bias_N.
Bytes: N K once per 240 rows; operations: 2 T N K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sheaf_kernels.cpu.checks import describe, fits, refuse, require_dtype
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.memory import Arena
from sheaf_kernels.cpu.program import output, recording

GROUP = 64
# Groups whose numbers are all smaller are zero.
TINY = 1e-30

_weights = Arena()


@dataclass(frozen=True)
class Int8Weight:
    panels: torch.Tensor
    scales: torch.Tensor  # [N/L, G, L]
    out_features: int
    in_features: int


def quantize_rows_reference(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(integers [T, G, 64] in float32, scale [T, G])."""
    groups_TGI = F.pad(x_TK.float(), (0, -x_TK.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    size_TG = groups_TGI.abs().amax(dim=2)
    finite_TG, some_TG = size_TG.isfinite(), size_TG > TINY
    factor_TG = torch.where(finite_TG & some_TG, size_TG.new_tensor(127) / size_TG, 0.0)
    # In float64, for the kernel's product and rounding are one operation: what ties is the exact product.
    scaled_TGI = groups_TGI.double() * factor_TG.double()[..., None]
    quantized_TGI = torch.where(finite_TG[..., None], scaled_TGI, 0.0).round().float()
    return quantized_TGI, torch.where(finite_TG, torch.where(some_TG, size_TG / 127, 0.0), torch.nan)


def linear_int8_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, scale_NG: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    quantized_TGI, scale_TG = quantize_rows_reference(x_TK)
    weight_NGI = F.pad(weight_NK.float(), (0, -weight_NK.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    sums_TGN = torch.einsum("tgi,ngi->tgn", quantized_TGI, weight_NGI)  # of integers below 2^24
    y_TN = (sums_TGN * scale_TG[..., None] * scale_NG.T).sum(1)
    return (y_TN if bias_N is None else y_TN + bias_N.float()).to(x_TK.dtype)


def pack_int8(weight_NK: torch.Tensor, scale_NG: torch.Tensor) -> Int8Weight:
    """Raises TypeError for another dtype than int8 and float32, ValueError for shapes that do not fit."""
    if weight_NK.dtype != torch.int8 or scale_NG.dtype != torch.float32:
        raise TypeError(f"pack_int8: int8 and float32 are taken, got {weight_NK.dtype} and {scale_NG.dtype}")
    rows, columns = weight_NK.shape
    groups = -(-columns // GROUP)
    if scale_NG.shape != (rows, groups):
        raise refuse("pack_int8", f"scale must be [{rows}, {groups}], got {describe(scale_NG)}")
    library = load()
    beyond = -rows % library.lanes
    padded = F.pad(weight_NK, (0, -columns % GROUP, 0, beyond))
    quads = padded.view(rows + beyond, -1, 4).view(-1, library.lanes, padded.shape[1] // 4, 4).transpose(1, 2)
    panels = _weights.empty(tuple(quads.shape), torch.int8).copy_(quads)
    if library.int8_offset:
        panels.view(torch.uint8).add_(library.int8_offset)
    scales = F.pad(scale_NG, (0, 0, 0, beyond)).view(-1, library.lanes, groups).transpose(1, 2).contiguous()
    return Int8Weight(panels, scales, rows, columns)


def linear_int8(x_TK: torch.Tensor, weight: Int8Weight, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    return linear_integers("linear_int8", x_TK, weight, None, bias_N)


def linear_integers(
    name: str, x_TK: torch.Tensor, weight: Int8Weight, zeros: torch.Tensor | None, bias_N: torch.Tensor | None
) -> torch.Tensor:
    """``zeros``: the zero points of weights of four bits (``int4``)."""
    dtype, columns = x_TK.dtype, weight.in_features
    require_dtype(name, dtype)
    if not fits(x_TK, dtype, 2) or x_TK.shape[1] != columns:
        raise refuse(name, f"x must be [T, {columns}], got {describe(x_TK)}")
    if bias_N is not None and (not fits(bias_N, dtype, 1) or len(bias_N) != weight.out_features):
        raise refuse(name, f"bias must be {dtype} [{weight.out_features}], got {describe(bias_N)}")
    library, rows, bf16 = load(), x_TK.shape[0], dtype is torch.bfloat16
    groups = -(-columns // GROUP)
    quantized = output((rows, groups * library.int8_group_bytes), torch.uint8)
    library.functions.sheaf_int8_quantize(
        recording(),
        x_TK.data_ptr(),
        x_TK.stride(0),
        quantized.data_ptr(),
        rows,
        columns,
        bf16,
        library.threads,
    )
    y_TN = output((rows, weight.out_features), dtype)
    library.functions.sheaf_integer_linear(
        recording(),
        quantized.data_ptr(),
        weight.panels.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        weight.scales.data_ptr(),
        None if bias_N is None else bias_N.data_ptr(),
        y_TN.data_ptr(),
        weight.out_features,
        rows,
        weight.out_features,
        groups * GROUP,
        bf16,
        library.threads,
    )
    return y_TN
