"""Root-mean-square norm with the residual addition, and SwiGLU.

Formulas, shapes and references are those of ``sheaf_kernels.rms_norm`` and ``sheaf_kernels.swiglu``. Rows go
through by themselves; many of them share the threads."""

from __future__ import annotations

import torch

from sheaf_kernels.cpu.checks import describe, fits, refuse, require_dtype
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.program import output, recording


def rms_norm(
    x_TC: torch.Tensor, weight_C: torch.Tensor, eps: float, residual_TC: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y_TC, h_TC); without a residual h is x."""
    dtype = x_TC.dtype
    require_dtype("rms_norm", dtype)
    if not fits(x_TC, dtype, 2):
        raise refuse("rms_norm", f"x must be [T, C] with rows in one piece, got {describe(x_TC)}")
    if residual_TC is not None and (not fits(residual_TC, dtype, 2) or residual_TC.shape != x_TC.shape):
        raise refuse("rms_norm", f"residual must be like x, {describe(x_TC)}, got {describe(residual_TC)}")
    wide = weight_C.dtype is torch.float32
    if not fits(weight_C, torch.float32 if wide else dtype, 1) or len(weight_C) != x_TC.shape[1]:
        raise refuse("rms_norm", f"weight must be [{x_TC.shape[1]}], got {describe(weight_C)}")
    rows, channels = x_TC.shape
    y_TC = output((rows, channels), dtype)
    h_TC = x_TC if residual_TC is None else output((rows, channels), dtype)
    library = load()
    library.functions.sheaf_rms_norm(
        recording(),
        x_TC.data_ptr(),
        x_TC.stride(0),
        None if residual_TC is None else residual_TC.data_ptr(),
        0 if residual_TC is None else residual_TC.stride(0),
        weight_C.data_ptr(),
        y_TC.data_ptr(),
        h_TC.data_ptr(),
        eps,
        rows,
        channels,
        dtype is torch.bfloat16,
        wide and dtype is not torch.float32,
        library.threads,
    )
    return y_TC, h_TC


def swiglu(gate_up_TC: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of [T, 2I], the gate first: [T, I]."""
    dtype = gate_up_TC.dtype
    require_dtype("swiglu", dtype)
    if not fits(gate_up_TC, dtype, 2) or gate_up_TC.shape[1] % 2 or not gate_up_TC.is_contiguous():
        raise refuse("swiglu", f"gate_up must be a contiguous [T, 2I], got {describe(gate_up_TC)}")
    rows, inner = gate_up_TC.shape[0], gate_up_TC.shape[1] // 2
    y_TC = output((rows, inner), dtype)
    library = load()
    library.functions.sheaf_swiglu(
        recording(),
        gate_up_TC.data_ptr(),
        y_TC.data_ptr(),
        rows,
        inner,
        dtype is torch.bfloat16,
        library.threads,
    )
    return y_TC
