"""Conversions that are right both compiled and in Triton's interpreter, and constants that kernels share.

The interpreter (``TRITON_INTERPRET=1``) keeps bfloat16 as raw 16-bit integers: arithmetic and ``tl.dot`` on
them silently compute with the integers, and its float32 -> bfloat16 conversion loses carries into the
exponent. So no kernel here computes in bfloat16 directly: values are widened with ``.to(tl.float32)``
(which is right in both), narrowed with ``round_to``, and given to ``tl.dot`` through ``dot_operand``.
Compiled, these are plain casts."""

import functools
import math

import torch
import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret
_INTERPRETED = tl.constexpr(INTERPRETED)

# Said explicitly, because the default differs between versions of Triton.
triton.knobs.language.default_fp_fusion = True

LOG2_E = math.log2(math.e)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """float32 -> dtype, to nearest, ties to even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot_operand(x):
    """x as ``tl.dot`` may take it: unchanged when compiled, bfloat16 widened in the interpreter."""
    if _INTERPRETED and x.dtype == tl.bfloat16:
        return x.to(tl.float32)
    return x


def architecture(device: torch.device) -> int:
    """The card's compute capability as in ``sm_90``; 90 in the interpreter."""
    return 90 if INTERPRETED else _architecture(device)


@functools.cache
def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n`` (1 for ``n`` <= 1)."""
    return 1 << max(n - 1, 0).bit_length()
