"""The memory in which a step's inputs lie: one piece, filled by the host and given to the device in one copy.

The arrays of a step are taken one behind the other, in one order, so steps of the same sizes have them at
the same places of the device's memory: what was captured for one finds those of the next. Where the device
computes in the host's memory there is no copy, and its tensors see what the host has written.

The host fills the buffer of the next step while the device reads those of the steps under way: a buffer
belongs to its step until that has been collected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 64
# From an array of a step's to the device's tensor of it; other arrays are copied there.
There = Callable[[npt.NDArray[Any]], Tensor]


class StepBuffer:
    """``device_N`` is the device's memory for all steps, one after the other; None: the host's is its own."""

    def __init__(self, nbytes: int, device_N: Tensor | None) -> None:
        pinned = device_N is not None and device_N.is_cuda
        self._host_N = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self._bytes: npt.NDArray[np.uint8] = self._host_N.numpy()
        self._begin = self._host_N.data_ptr()
        self._device_N = device_N
        self._used = 0

    def clear(self) -> None:
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The next piece, to be written before ``upload``."""
        kind = np.dtype(dtype)
        start, size = self._used, math.prod(shape) * kind.itemsize
        self._used = start + -(-size // _ALIGNMENT) * _ALIGNMENT
        assert self._used <= len(self._bytes), "a step that is larger than the engine's largest"
        return self._bytes[start : start + size].view(kind).reshape(shape)

    def put(self, values: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        piece = self.take(values.shape, dtype)
        piece[...] = values
        return piece

    def upload(self) -> None:
        """Enqueue the step's one copy."""
        if self._device_N is not None:
            self._device_N[: self._used].copy_(self._host_N[: self._used], non_blocking=True)

    def there(self, array: npt.NDArray[Any]) -> Tensor:
        """``There``; good from ``upload`` until the next step's."""
        if self._device_N is None:
            return torch.from_numpy(array)
        start = array.__array_interface__["data"][0] - self._begin
        if not 0 <= start < len(self._bytes):
            return to_device(array, self._device_N.device)
        whole = torch.from_numpy(array)
        return self._device_N[start : start + array.nbytes].view(whole.dtype).view(whole.shape)


class StepBuffers:
    """As many as there are steps under way. ``apart``: the device has a memory of its own."""

    def __init__(self, nbytes: int, device: torch.device, *, apart: bool) -> None:
        self._nbytes = nbytes
        self._device_N = torch.empty(nbytes, dtype=torch.uint8, device=device) if apart else None
        self._free: list[StepBuffer] = []

    def lease(self) -> StepBuffer:
        buffer = self._free.pop() if self._free else StepBuffer(self._nbytes, self._device_N)
        buffer.clear()
        return buffer

    def give_back(self, buffer: StepBuffer) -> None:
        """Nothing reads it any more."""
        self._free.append(buffer)


def padded_bytes(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    """What ``StepBuffer.take`` uses up."""
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy that the host does not wait for: its source must be pinned for that."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
