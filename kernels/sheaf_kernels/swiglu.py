"""The gated activation of Llama's MLP on the fused gate-and-up projection.

    y = silu(gate) * up,   silu(z) = z / (1 + exp(-z)),   gate_up = [gate | up]

Computed in float32 and rounded once.

Shapes: T tokens, C hidden channels.  gate_up [T, 2C] (gate first), y_TC.
Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.
"""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import round_to

BLOCK_C = 1024


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """Returns y_TC."""
    gate_TC, up_TC = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate_TC) * up_TC).to(gate_up.dtype)


@triton.jit
def swiglu_kernel(gate_up_ptr, y_ptr, gate_up_stride, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """One row and BLOCK_C channels per program."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < C
    gate = tl.load(gate_up_ptr + row * gate_up_stride + c, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * gate_up_stride + C + c, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y_ptr + row * C + c, round_to(y, y_ptr.dtype.element_ty), mask=mask)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [T, 2C] -> y_TC. Raises TypeError or ValueError naming the argument."""
    check = Checker("swiglu")
    check.tensor("gate_up", gate_up, "T 2C", FLOATS)
    check.require(check["2C"] % 2 == 0, f"gate_up must have an even last dimension, got {check['2C']}")
    channels = check["2C"] // 2
    y_TC = torch.empty((check["T"], channels), dtype=gate_up.dtype, device=gate_up.device)
    if y_TC.numel() == 0:
        return y_TC
    grid = (check["T"], triton.cdiv(channels, BLOCK_C))
    swiglu_kernel[grid](gate_up, y_TC, gate_up.stride(0), C=channels, BLOCK_C=BLOCK_C, num_warps=4)
    return y_TC
