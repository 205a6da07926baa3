"""Large tensors of a CPU in huge pages, which Linux gives to those who ask (``madvise``).

A step reads all weights, and pages of the KV cache that lie anywhere. With memory in pages of 4 KiB, the
processor has to look up where each of these lies; it remembers a few thousand. In a virtual machine a look-up
costs as much as reading the page.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np
import numpy.typing as npt
import torch

HUGE_PAGE = 2 << 20
_ALIGNMENT = 64


def huge_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory that nobody has written, taken from the machine as it is written, in pieces of a huge page. It
    is given back with the last tensor that lies in it."""
    wanted = math.prod(shape) * dtype.itemsize
    # Private, which is not Python's default: shared memory has huge pages only where shmem_enabled says so.
    region = mmap.mmap(-1, max(1, wanted) + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel without them
            region.madvise(advice)
    whole = np.frombuffer(region, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    return _tensor(whole[start : start + wanted], shape, dtype)


class Arena:
    """Tensors one behind the other, so that those smaller than a huge page lie in huge pages too. What is
    given back comes free with its last neighbour only: for weights."""

    def __init__(self, chunk: int = 16 * HUGE_PAGE) -> None:
        self._chunk = chunk
        self._left: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        wanted = math.prod(shape) * dtype.itemsize
        if wanted >= self._chunk:
            return huge_empty(shape, dtype)
        if wanted > len(self._left):
            self._left = huge_empty((self._chunk,), torch.uint8).numpy()
        piece, self._left = self._left[:wanted], self._left[-(-wanted // _ALIGNMENT) * _ALIGNMENT :]
        return _tensor(piece, shape, dtype)


def _tensor(memory: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(memory).view(dtype).view(shape)
