"""Root-mean-square norm, with the residual addition before it.

    h = x + residual                                     (h = x without a residual)
    y = weight * round(h / sqrt(mean(h^2 over C) + eps))

The sum h is rounded to the dtype before it is squared, because it goes on as the next residual; the mean
and the quotient are float32; the quotient is rounded before the multiplication, which is Llama's order; with
a weight in float32 it is not (Gemma, OLMo 2, GPT-OSS).

Shapes: T tokens, C channels.  x_TC, residual_TC, y_TC, h_TC; weight_C.
Source: Zhang & Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467.
"""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import next_power_of_2, round_to


def rms_norm_reference(
    x_TC: torch.Tensor, weight_C: torch.Tensor, eps: float, residual_TC: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (y_TC, h_TC)."""
    h_TC = x_TC if residual_TC is None else x_TC + residual_TC
    wide_TC = h_TC.float()
    normed_TC = wide_TC * torch.rsqrt(wide_TC.square().mean(-1, keepdim=True) + eps)
    if weight_C.dtype != x_TC.dtype:
        return (weight_C * normed_TC).to(x_TC.dtype), h_TC
    return weight_C * normed_TC.to(x_TC.dtype), h_TC


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, h_ptr,
    x_stride, residual_stride, eps,
    C: tl.constexpr, BLOCK_C: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One row per program."""
    dtype = y_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    h = tl.load(x_ptr + row * x_stride + c, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + row * residual_stride + c, mask=mask, other=0.0).to(tl.float32)
        rounded = round_to(h, dtype)
        tl.store(h_ptr + row * C + c, rounded, mask=mask)
        h = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(h * h, axis=0) / C + eps)
    normed = h * rstd
    if not WIDE:
        normed = round_to(normed, dtype).to(tl.float32)
    weight = tl.load(weight_ptr + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * C + c, round_to(weight * normed, dtype), mask=mask)


def launch_options(channels: int) -> dict[str, int]:
    """Warps for one row: about 8 elements a thread and pass."""
    return {"num_warps": min(max(next_power_of_2(channels) // 256, 1), 16), "num_stages": 1}


def rms_norm(
    x_TC: torch.Tensor, weight_C: torch.Tensor, eps: float, residual_TC: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (y_TC, h_TC), as ``rms_norm_reference`` does; h_TC is x_TC itself when there is no residual.

    x and residual may be views with a row stride. Raises TypeError or ValueError naming the argument.
    """
    check = Checker("rms_norm")
    check.tensor("x", x_TC, "T C", FLOATS)
    check.tensor("weight", weight_C, "C", [x_TC.dtype, torch.float32])
    y_TC = torch.empty(x_TC.shape, dtype=x_TC.dtype, device=x_TC.device)
    h_TC = x_TC
    if residual_TC is not None:
        check.tensor("residual", residual_TC, "T C", [x_TC.dtype])
        h_TC = torch.empty_like(y_TC)
    if check["T"] == 0:
        return y_TC, h_TC
    residual = x_TC if residual_TC is None else residual_TC
    rms_norm_kernel[(check["T"],)](
        x_TC, residual, weight_C, y_TC, h_TC,
        x_TC.stride(0), residual.stride(0), eps,
        C=check["C"], BLOCK_C=next_power_of_2(check["C"]), HAS_RESIDUAL=residual_TC is not None,
        WIDE=weight_C.dtype != x_TC.dtype,
        **launch_options(check["C"]),
    )  # fmt: skip
    return y_TC, h_TC
