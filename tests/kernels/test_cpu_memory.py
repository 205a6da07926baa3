"""Tensors in huge pages: they are what torch's own would be, and the kernel is asked for the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from sheaf_kernels.cpu.memory import HUGE_PAGE, Arena, huge_empty

SMAPS = Path("/proc/self/smaps")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (7, 1 << 18)])
def test_a_tensor(shape: tuple[int, int], dtype: torch.dtype) -> None:
    made = huge_empty(shape, dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert made.data_ptr() % HUGE_PAGE == 0 or made.numel() == 0
    made.fill_(1)
    assert made.sum(dtype=torch.float32) == made.numel()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the kernel has none")
def test_the_kernel_is_asked() -> None:
    made = huge_empty((HUGE_PAGE,), torch.uint8)
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        first, last = (int(address, 16) for address in mapping.split(" ", 1)[0].split("-"))
        if first <= made.data_ptr() < last:
            assert " hg" in mapping.partition("VmFlags:")[2]
            assert mapping.split(" ", 2)[1] == "rw-p", "shared memory: huge pages are off for it by default"
            return
    raise AssertionError("it lies nowhere")


def test_pieces_of_an_arena_do_not_meet() -> None:
    arena = Arena(chunk=1 << 12)
    sizes = [1, 64, 65, 1000, 3000, 0, 4096, 5000, 7]  # some begin a new chunk, some have one of their own
    pieces = [arena.empty((size,), torch.uint8) for size in sizes]
    for value, piece in enumerate(pieces):
        piece.fill_(value)
    for value, (size, piece) in enumerate(zip(sizes, pieces, strict=True)):
        assert piece.shape == (size,)
        assert (piece == value).all()
        assert piece.data_ptr() % 64 == 0 or not size
