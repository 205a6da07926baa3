"""The compiled kernels, loaded once a process, on torch's own threads."""

from __future__ import annotations

import ctypes
import functools
import platform
from ctypes import c_float, c_int, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch

from sheaf_kernels.cpu.build import UnavailableError, built_library, levels_of, machine_features

DTYPES = (torch.float32, torch.bfloat16)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "sheaf_use_pool": (None, [c_void_p, c_int]),
    "sheaf_lanes": (c_int, []),
    "sheaf_widens": (c_int, []),
    "sheaf_widen": (None, [c_void_p, c_void_p, c_long, c_void_p, c_int, c_int, c_int]),
    "sheaf_ask_for_tiles": (c_int, []),
    "sheaf_program_new": (c_void_p, []),
    "sheaf_program_run": (None, [c_void_p, c_int]),
    "sheaf_program_free": (None, [c_void_p]),
    "sheaf_linear": (
        None,
        [c_void_p, c_void_p, c_long, c_void_p, c_void_p, c_void_p, c_long, *[c_int] * 5],
    ),
    "sheaf_int8_group_bytes": (c_int, []),
    "sheaf_int8_offset": (c_int, []),
    "sheaf_int8_quantize": (None, [c_void_p, c_void_p, c_long, c_void_p, *[c_int] * 4]),
    "sheaf_integer_linear": (None, [*[c_void_p] * 7, c_long, *[c_int] * 5]),
    "sheaf_rms_norm": (
        None,
        [c_void_p, c_void_p, c_long, c_void_p, c_long, c_void_p, c_void_p, c_void_p, c_float, *[c_int] * 5],
    ),
    "sheaf_head_norm": (None, [c_void_p, c_void_p, c_long, c_void_p, c_float, *[c_int] * 6]),
    "sheaf_activate": (
        None,
        [c_void_p, c_void_p, c_void_p, *[c_int] * 4, c_float, c_float, c_int, c_int],
    ),
    "sheaf_feed": (None, [c_void_p, c_void_p]),
    "sheaf_take_rows": (None, [c_void_p, c_void_p, c_void_p, c_void_p, c_float, *[c_int] * 5]),
    "sheaf_likeliest": (None, [c_void_p, c_void_p, c_long, c_void_p, *[c_int] * 4]),
    "sheaf_rope_kv_write": (None, [c_void_p, c_void_p, c_long, *[c_void_p] * 5, *[c_int] * 7]),
    "sheaf_attention_items": (c_int, [c_void_p, c_void_p, *[c_int] * 5, c_void_p, c_int]),
    "sheaf_attention_scratch": (c_long, [c_void_p, c_int, c_int, c_int]),
    "sheaf_paged_attention": (
        None,
        [
            *(c_void_p, c_void_p, c_long, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
            *(*[c_int] * 4, c_float, c_float, c_int, c_int),
        ],
    ),
}


class Library:
    """The functions of ``csrc`` by their names, how many ``threads`` they are to use, how many floats a
    vector has, and whether linear layers in bfloat16 want their rows widened."""

    def __init__(self, path: Path, level: str) -> None:
        self.level = level
        self.threads = torch.get_num_threads()
        self.functions: Any = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments
        self.lanes: int = self.functions.sheaf_lanes()
        self.widens = bool(self.functions.sheaf_widens())
        self.int8_group_bytes: int = self.functions.sheaf_int8_group_bytes()
        self.int8_offset: int = self.functions.sheaf_int8_offset()


@functools.cache
def load() -> Library:
    """Raises UnavailableError where the kernels cannot run."""
    levels = levels_of(platform.machine(), machine_features())
    if not levels:
        raise UnavailableError(f"there are none for this CPU ({platform.machine()} without AVX2)")
    pool = _torch_pool()
    for level in levels:
        library = Library(built_library(level), level.name)
        if library.functions.sheaf_ask_for_tiles():
            library.functions.sheaf_use_pool(pool, library.threads)
            return library
    raise AssertionError("only the best level asks for anything")


def _torch_pool() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that torch has loaded."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        function = ctypes.CDLL(str(path)).GOMP_parallel
        address = ctypes.cast(function, c_void_p).value
        assert address is not None
        return address
    raise UnavailableError("torch brings no OpenMP runtime (libgomp) whose threads they could share")
