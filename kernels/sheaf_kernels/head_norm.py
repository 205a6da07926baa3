"""Root-mean-square norm of each head, in place: of queries and keys before they are rotated.

    x = weight * round(x / sqrt(mean(x^2 over D) + eps))

in the order of ``rms_norm``, whose reference it is held to. Heads are short and many: a program takes
BLOCK_HEADS of a token's, a row of lanes each, where one program a head would mostly start and end.

Shapes: T tokens, H heads, D head size.  x_THD, a part of a fused projection; weight_D.
Source: Dehghani et al., Scaling Vision Transformers to 22 Billion Parameters, arXiv 2302.05442.
"""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import next_power_of_2, round_to
from sheaf_kernels.rms_norm import rms_norm_reference

MAX_BLOCK_HEADS = 8


def head_norm_reference(x_THD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> None:
    x_THD.copy_(rms_norm_reference(x_THD, weight_D, eps)[0])


@triton.jit
def head_norm_kernel(
    x_ptr, weight_ptr, x_stride, eps,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_HEADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One token and BLOCK_HEADS heads per program."""
    dtype = x_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (head < H) & (d < D)
    at_ptr = x_ptr + token * x_stride + head * D + d
    x = tl.load(at_ptr, mask=mask, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)[:, None]
    if not WIDE:
        normed = round_to(normed, dtype).to(tl.float32)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(at_ptr, round_to(weight * normed, dtype), mask=mask)


def head_norm(x_THD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> None:
    """Writes x_THD, as ``head_norm_reference`` does. Tokens may have any stride, heads must be packed.

    Raises TypeError or ValueError naming the argument.
    """
    check = Checker("head_norm")
    check.tensor("x", x_THD, "T H D", FLOATS)
    check.tensor("weight", weight_D, "D", [x_THD.dtype, torch.float32])
    tokens, heads, head_dim = check["T"], check["H"], check["D"]
    check.require(
        heads == 1 or x_THD.stride(1) == head_dim,
        f"the heads of x must be packed, got strides {x_THD.stride()}",
    )
    if tokens == 0:
        return
    block_heads = min(next_power_of_2(heads), MAX_BLOCK_HEADS)  # one "head" may be all of a projection
    head_norm_kernel[(tokens, triton.cdiv(heads, block_heads))](
        x_THD, weight_D, x_THD.stride(0), eps,
        H=heads, D=head_dim, BLOCK_D=next_power_of_2(head_dim), BLOCK_HEADS=block_heads,
        WIDE=weight_D.dtype != x_THD.dtype, num_warps=4,
    )  # fmt: skip
