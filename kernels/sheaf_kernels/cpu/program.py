"""Kernel calls that are recorded once and run many times, as one parallel region.

A step of a small batch makes some hundred short calls; Python, the tensors' bookkeeping and the waking of
threads then cost as much as the work. Inside ``Program.record`` the kernels here run nothing: their calls are
kept, with the addresses that they were given, and ``run`` does them all in their order. What goes in is
written where it lay when it was recorded; what comes out lies where it lay then.

Anything else that torch would compute meanwhile is refused, since it would see what is not there yet.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sheaf_kernels.cpu.library import load

_ALIGNMENT = 64
_VIEWS = frozenset(
    [
        "alias",
        "as_strided",
        "detach",
        "expand",
        "lift_fresh",  # of memory that numpy has
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unsqueeze",
        "view",
        "_unsafe_view",
    ]
)


class CannotRecordError(RuntimeError):
    """Something is to be computed that is no kernel of these; the message names it."""


class _State(threading.local):
    program: Program | None = None


_state = _State()


class _FeedAddresses(ctypes.Structure):
    """``feed`` in csrc/lookup.c."""

    _fields_ = (("pieces", ctypes.c_void_p), ("count", ctypes.c_int64))


class Feed:
    """What the next run of a program copies first. ``pieces`` are made ahead, wherever that costs nothing;
    to give them to the program is two writes."""

    def __init__(self) -> None:
        self.addresses = _FeedAddresses(None, 0)
        self._pieces: npt.NDArray[np.int64] | None = None

    @staticmethod
    def pieces(copies: Iterable[tuple[int, int, int]]) -> npt.NDArray[np.int64]:
        """Of (address to, address from, bytes) each."""
        return np.array(list(copies), np.int64).reshape(-1, 3)

    def give(self, pieces: npt.NDArray[np.int64], address: int) -> None:
        """``address`` of ``pieces``, which must be kept unchanged, as what they name, until the run."""
        self._pieces = pieces
        self.addresses.pieces, self.addresses.count = address, len(pieces)


class Program:
    """``memory`` is what its results lie in; programs that never run at the same time may have one together,
    and a result is good until another of them runs."""

    def __init__(self, memory: Memory) -> None:
        functions = load().functions
        self._handle: int = functions.sheaf_program_new()
        self._memory = memory
        weakref.finalize(self, functions.sheaf_program_free, self._handle).atexit = False

    def takes(self, feed: Feed) -> None:
        """Call first inside ``record``: a run begins with ``feed``'s copies."""
        load().functions.sheaf_feed(recording(), ctypes.addressof(feed.addresses))

    @contextmanager
    def record(self) -> Iterator[None]:
        """Raises CannotRecordError, and is of no use then."""
        assert _state.program is None, "one is being recorded"
        self._memory.begin()
        _state.program = self
        try:
            with _OnlyViews():
                yield
        finally:
            _state.program = None

    def run(self) -> None:
        library = load()
        library.functions.sheaf_program_run(self._handle, library.threads)


def recording() -> int | None:
    """What a kernel is given as its program."""
    return None if _state.program is None else _state.program._handle


def output(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory for a kernel's result."""
    if _state.program is None:
        return torch.empty(shape, dtype=dtype)
    return _state.program._memory.empty(shape, dtype)


class Memory:
    """The results of a program's calls. What nothing refers to any more while it is recorded is used again:
    the calls run in the order in which they were recorded. Pieces are powers of two, so that programs for
    other numbers of rows share them."""

    def __init__(self) -> None:
        self._all: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self._free: dict[int, list[npt.NDArray[np.uint8]]] = {}

    @property
    def nbytes(self) -> int:
        return sum(size * len(pieces) for size, pieces in self._all.items())

    def begin(self) -> None:
        """A program starts with all of it. Lists are new, so what an earlier one gives back gets lost."""
        self._free = {size: list(pieces) for size, pieces in self._all.items()}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        wanted = math.prod(shape) * dtype.itemsize
        size = max(_ALIGNMENT, 1 << (wanted - 1).bit_length())
        free = self._free.setdefault(size, [])
        if free:
            piece = free.pop()
        else:
            whole = np.empty(size + _ALIGNMENT, np.uint8)
            start = -whole.ctypes.data % _ALIGNMENT
            piece = whole[start : start + size]
            self._all.setdefault(size, []).append(piece)
        mine = piece[:]  # lives as long as a tensor that sees this memory does
        weakref.finalize(mine, free.append, piece).atexit = False
        return torch.from_numpy(mine)[:wanted].view(dtype).view(shape)


class _OnlyViews(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and importing torch's compiler takes three seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _VIEWS:
            raise CannotRecordError(name)
        return func(*args, **(kwargs or {}))
