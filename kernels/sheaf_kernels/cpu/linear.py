"""Linear layers of any number of rows: y = x W^T + b.

W lies in panels of L output channels, as many as a vector has floats (16 in AVX-512, 8 in AVX2, 4 in NEON):
[N/L, K, L] in float32 and [N/L, K/2, L, 2] in bfloat16, so that a panel is read from front to back once for
up to twelve rows (six in AVX2, 32 in AMX), and one row streams the weights at the memory's speed. Sums are
float32, each in the order of K whatever the number of rows: a row's result does not depend on the rows beside
it.

Shapes: T rows, K input and N output channels.  x_TK, weight_NK, bias_N, y_TN.
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

_weights = Arena()


@dataclass(frozen=True)
class PackedWeight:
    panels: torch.Tensor
    out_features: int
    in_features: int


def linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    y_TN = x_TK.float() @ weight_NK.float().T
    return (y_TN if bias_N is None else y_TN + bias_N.float()).to(x_TK.dtype)


def pack(weight_NK: torch.Tensor) -> PackedWeight:
    """Raises TypeError for a dtype that there is no kernel for, ValueError for an odd K in bfloat16."""
    require_dtype("pack", weight_NK.dtype)
    rows, columns = weight_NK.shape
    lanes = load().lanes
    if weight_NK.dtype == torch.bfloat16 and columns % 2:
        raise refuse("pack", f"bfloat16 weights are taken in pairs, K must be even, got {columns}")
    padded = F.pad(weight_NK, (0, 0, 0, -rows % lanes)) if rows % lanes else weight_NK
    if weight_NK.dtype == torch.float32:
        panels = padded.view(-1, lanes, columns).transpose(1, 2)
    else:
        panels = padded.view(-1, lanes, columns // 2, 2).transpose(1, 2)
    packed = _weights.empty(tuple(panels.shape), panels.dtype)
    return PackedWeight(packed.copy_(panels), rows, columns)


def linear(x_TK: torch.Tensor, weight: PackedWeight, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    panels = weight.panels
    if not fits(x_TK, panels.dtype, 2) or x_TK.shape[1] != weight.in_features:
        raise refuse("linear", f"x must be {panels.dtype} [T, {weight.in_features}], got {describe(x_TK)}")
    if bias_N is not None and (not fits(bias_N, panels.dtype, 1) or len(bias_N) != weight.out_features):
        raise refuse("linear", f"bias must be [{weight.out_features}], got {describe(bias_N)}")
    y_TN = output((x_TK.shape[0], weight.out_features), panels.dtype)
    library = load()
    if panels.dtype is torch.bfloat16 and library.widens:
        x_TK = _widen(x_TK)
    library.functions.sheaf_linear(
        recording(),
        x_TK.data_ptr(),
        x_TK.stride(0),
        panels.data_ptr(),
        None if bias_N is None else bias_N.data_ptr(),
        y_TN.data_ptr(),
        weight.out_features,
        x_TK.shape[0],
        weight.out_features,
        weight.in_features,
        panels.dtype is torch.bfloat16,
        library.threads,
    )
    return y_TN


def _widen(x_TK: torch.Tensor) -> torch.Tensor:
    """In float32, once for all the panels that it meets, where the machine has no product of bfloat16."""
    wide_TK = output(tuple(x_TK.shape), torch.float32)
    library = load()
    library.functions.sheaf_widen(
        recording(), x_TK.data_ptr(), x_TK.stride(0), wide_TK.data_ptr(), *x_TK.shape, library.threads
    )
    return wide_TK
