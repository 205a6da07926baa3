"""Root-mean-square norms, with the residual addition or in place, and activations.

The norm's formula, shapes and reference are those of ``sheaf_kernels.rms_norm``; activations are torch's.
Rows go through by themselves; many of them share the threads."""

from __future__ import annotations

import torch

from sheaf_kernels.cpu.checks import describe, fits, refuse, require_dtype
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.program import output, recording

KINDS = ("silu", "gelu", "gelu_tanh")  # in the order of csrc/elementwise.c


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


def head_norm(x_THD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> None:
    """The norm of every head by itself, in place. Heads of a row lie one behind the other; rows may have a
    gap between them."""
    dtype = x_THD.dtype
    require_dtype("head_norm", dtype)
    rows, heads, channels = x_THD.shape
    if not fits(x_THD, dtype, 3) or (heads > 1 and x_THD.stride(1) != channels):
        raise refuse("head_norm", f"x must be [T, H, D] with rows in one piece, got {describe(x_THD)}")
    wide = weight_D.dtype is torch.float32
    if not fits(weight_D, torch.float32 if wide else dtype, 1) or len(weight_D) != channels:
        raise refuse("head_norm", f"weight must be [{channels}], got {describe(weight_D)}")
    library = load()
    library.functions.sheaf_head_norm(
        recording(),
        x_THD.data_ptr(),
        x_THD.stride(0),
        weight_D.data_ptr(),
        eps,
        rows,
        heads,
        channels,
        dtype is torch.bfloat16,
        wide and dtype is not torch.float32,
        library.threads,
    )


def activate(x_TC: torch.Tensor, kind: str, gated: bool) -> torch.Tensor:
    """``act(gate) * up`` of [T, 2I] with the gate first, or ``act(x)`` of [T, I]: [T, I]. ``kind`` is silu,
    gelu or gelu_tanh."""
    return _activate(x_TC, KINDS.index(kind), gated, 0.0, 0.0)


def clamped_swiglu(gate_up_TC: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """``gate * sigmoid(alpha gate) * (up + 1)`` of [T, 2I] in which gates and ups take turns, gates at most
    ``limit`` and ups within it: [T, I]."""
    return _activate(gate_up_TC, len(KINDS), True, alpha, limit)


def _activate(x_TC: torch.Tensor, kind: int, gated: bool, alpha: float, limit: float) -> torch.Tensor:
    dtype = x_TC.dtype
    require_dtype("activate", dtype)
    if not fits(x_TC, dtype, 2) or (gated and x_TC.shape[1] % 2) or not x_TC.is_contiguous():
        raise refuse(
            "activate", f"x must be a contiguous [T, {'2I' if gated else 'I'}], got {describe(x_TC)}"
        )
    rows, inner = x_TC.shape[0], x_TC.shape[1] // (2 if gated else 1)
    y_TC = output((rows, inner), dtype)
    library = load()
    library.functions.sheaf_activate(
        recording(),
        x_TC.data_ptr(),
        y_TC.data_ptr(),
        rows,
        inner,
        kind,
        gated,
        alpha,
        limit,
        dtype is torch.bfloat16,
        library.threads,
    )
    return y_TC
