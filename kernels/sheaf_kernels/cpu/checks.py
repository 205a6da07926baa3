"""What the wrappers here ask of tensors. A step calls a hundred kernels, so each wrapper tells with one cheap
expression whether all is well, and only what is wrong is looked at closely."""

from __future__ import annotations

import torch

from sheaf_kernels.cpu.library import DTYPES


def refuse(op: str, problem: str) -> ValueError:
    return ValueError(f"{op}: {problem}")


def fits(x: torch.Tensor, dtype: torch.dtype, dims: int) -> bool:
    """A tensor in this machine's memory whose last dimension has no gaps."""
    return x.dtype is dtype and x.dim() == dims and x.stride(-1) == 1 and x.is_cpu


def describe(x: torch.Tensor) -> str:
    kind = str(x.dtype).removeprefix("torch.")
    return f"{kind} {tuple(x.shape)} with strides {x.stride()} on {x.device}"


def require_dtype(op: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"{op}: float32 and bfloat16 are supported, got {str(dtype).removeprefix('torch.')}")
