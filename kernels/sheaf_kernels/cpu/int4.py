"""Linear layers whose weights have four bits: y = x W^T + b, with x in int8 as in ``int8``.

    q_TGI, s_TG as in ``int8``
    y_TN = sum_G(w_NG * s_TG * sum_I(q_TGI * (W_NGI - z_NG))) + b_N

W is from 0 to 15, the zero point z from 0 to 127; z is taken off by the sum of a group's q, once for all of
its weights, so that sums of integers stay exact.

Weights lie in panels of L output channels, in pairs of quads: [N/L, K/8, L, 4], of which byte i has weight
8k + i in its lower half and 8k + 4 + i in its upper.

Shapes as in ``int8``. Bytes: N K / 2 once per 240 rows; operations: 2 T N K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sheaf_kernels.cpu.checks import describe, refuse
from sheaf_kernels.cpu.int8 import GROUP, Int8Weight, linear_int8_reference, linear_integers
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.memory import Arena

_weights = Arena()


@dataclass(frozen=True)
class Int4Weight(Int8Weight):
    """``panels`` in bytes of two; ``zeros`` (int8) as ``scales`` are."""

    zeros: torch.Tensor


def linear_int4_reference(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    zero_NG: torch.Tensor,
    scale_NG: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    zero_NK = zero_NG.repeat_interleave(GROUP, dim=1)[:, : weight_NK.shape[1]]
    return linear_int8_reference(x_TK, weight_NK.int() - zero_NK.int(), scale_NG, bias_N)


def pack_int4(weight_NK: torch.Tensor, zero_NG: torch.Tensor, scale_NG: torch.Tensor) -> Int4Weight:
    """Raises TypeError for other dtypes than uint8, uint8 and float32, ValueError for shapes that do not
    fit."""
    if (weight_NK.dtype, zero_NG.dtype, scale_NG.dtype) != (torch.uint8, torch.uint8, torch.float32):
        raise TypeError(
            "pack_int4: uint8, uint8 and float32 are taken, got "
            f"{weight_NK.dtype}, {zero_NG.dtype} and {scale_NG.dtype}"
        )
    rows, columns = weight_NK.shape
    groups = -(-columns // GROUP)
    for name, given in (("zero", zero_NG), ("scale", scale_NG)):
        if given.shape != (rows, groups):
            raise refuse("pack_int4", f"{name} must be [{rows}, {groups}], got {describe(given)}")
    lanes = load().lanes
    beyond = -rows % lanes
    padded = F.pad(weight_NK, (0, -columns % GROUP, 0, beyond)).view(rows + beyond, -1, 2, 4)
    bytes_ = (padded[:, :, 0] & 15) | (padded[:, :, 1] << 4)
    quads = bytes_.view(-1, lanes, bytes_.shape[1], 4).transpose(1, 2)
    panels = _weights.empty(tuple(quads.shape), torch.uint8).copy_(quads)

    def by_lanes(given: torch.Tensor) -> torch.Tensor:
        return F.pad(given, (0, 0, 0, beyond)).view(-1, lanes, groups).transpose(1, 2).contiguous()

    zeros = by_lanes(zero_NG).view(torch.int8)
    return Int4Weight(panels, by_lanes(scale_NG), rows, columns, zeros)


def linear_int4(x_TK: torch.Tensor, weight: Int4Weight, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    return linear_integers("linear_int4", x_TK, weight, weight.zeros, bias_N)
