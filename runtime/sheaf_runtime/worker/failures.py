"""Whose trouble an exception is: one request's, or everybody's."""

from __future__ import annotations

import torch

_OF_THE_DEVICE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
# What torch and Triton raise as plain RuntimeError.
_WORDS = ("CUDA", "CUBLAS", "CUDNN", "can't allocate memory")


def is_device_failure(error: BaseException) -> bool:
    """Whether nothing can be computed any more: the device is lost, or there is no memory."""
    if isinstance(error, _OF_THE_DEVICE):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
