"""Numbers of embeddings in fewer bits than float32, rounded to the nearest, ties to even, as torch rounds."""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

NAN = 0x7F  # of both kinds of eight bits
# Bits of the mantissa, what is taken off the exponent, and the codes up to infinity or NaN.
_EIGHT = {"fp8_e4m3": (3, 7, 0x7F), "fp8_e5m2": (2, 15, 0x7C)}


def narrow(vector: array[float], dtype: str) -> npt.NDArray[Any]:
    """The bits of each number: of ``float16``, ``bfloat16``, ``fp8_e4m3`` or ``fp8_e5m2``. What is larger
    than the kind can tell becomes infinite, or NaN in ``fp8_e4m3``, which has no infinity."""
    numbers = np.frombuffer(vector, np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half: npt.NDArray[Any] = numbers.astype(np.float16).view(np.uint16)
        return half
    if dtype == "bfloat16":
        bits = numbers.view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        kept: npt.NDArray[Any] = np.where(np.isnan(numbers), 0x7FC0, rounded).astype(np.uint16)
        return kept
    sizes, middles = np.abs(numbers.astype(np.float64)), _middles(dtype)
    low, high = (np.searchsorted(middles, sizes, side) for side in ("left", "right"))
    codes = np.where(low % 2 == 0, low, high)  # they differ where two are equally near
    codes = np.where(np.isnan(numbers), NAN, codes)
    signed: npt.NDArray[Any] = (codes | np.where(np.signbit(numbers), 0x80, 0)).astype(np.uint8)
    return signed


@cache
def _middles(dtype: str) -> npt.NDArray[np.float64]:
    """Between the number of each code and that of the next."""
    bits, bias, last = _EIGHT[dtype]
    codes = np.arange(last + 1)
    exponents, mantissas = codes >> bits, (codes & (2**bits - 1)) / 2.0**bits
    values = np.where(
        exponents == 0, mantissas * 2.0 ** (1 - bias), (1 + mantissas) * 2.0 ** (exponents - float(bias))
    )
    middles: npt.NDArray[np.float64] = (values[:-1] + values[1:]) / 2
    return middles
