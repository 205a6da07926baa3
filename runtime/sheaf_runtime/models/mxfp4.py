"""MXFP4 weights, as GPT-OSS is published in: read, never computed with.

32 numbers of four bits (a sign, two bits of exponent, one of mantissa) share a scale, a power of two. A byte
holds two numbers, the earlier one in its lower half.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS, SCALES = "_blocks", "_scales"
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127  # of the scales' exponents


def dequantize(blocks: Tensor, scales: Tensor) -> Tensor:
    """[E, rows, columns / 32, 16] and [E, rows, columns / 32], both uint8, to [E, columns, rows].

    In bfloat16, which holds every such number exactly."""
    values = torch.tensor([*_MAGNITUDES, *(-m for m in _MAGNITUDES)], dtype=torch.bfloat16)
    out = torch.empty(*blocks.shape[:-1], 32, dtype=torch.bfloat16)
    for expert, (block, scale) in enumerate(
        zip(blocks, scales, strict=True)
    ):  # indices are 16 times as large
        out[expert, ..., ::2] = values[(block & 15).long()]
        out[expert, ..., 1::2] = values[(block >> 4).long()]
        out[expert] *= torch.exp2(scale.float() - _BIAS).bfloat16()[..., None]
    return out.flatten(-2).transpose(1, 2)
