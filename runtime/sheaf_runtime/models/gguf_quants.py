"""GGUF's quantized blocks as float32: n blocks of so many numbers, each with scales of its own.

Source: ggml's definition of its block types.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sheaf_runtime.gguf.reader import BLOCKS

# Numbers at a time: what lies between bytes and floats stays in the caches, at a third of the time.
PIECE = 1 << 16

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def dequantize(raw: Bytes, kind: str) -> Floats:
    """All numbers of a tensor, flat. ``raw`` may be read-only; the result is the caller's own."""
    if kind == "F32":
        return raw.view("<f4").astype(np.float32)
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    numbers, size = BLOCKS[kind]
    blocks = raw.reshape(-1, size)
    values = np.empty(len(blocks) * numbers, np.float32)
    for start in range(0, len(blocks), PIECE // numbers):
        part = blocks[start : start + PIECE // numbers]
        values[start * numbers :][: len(part) * numbers] = _DEQUANTIZE[kind](part).reshape(-1)
    return values


def _half(blocks: Bytes) -> Floats:
    """Two bytes of each block as a number: [n, 1]."""
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """The lower halves of all bytes, then the upper halves: [n, 2 * bytes]."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks[:, 2:4])


def _q4_k(blocks: Bytes) -> Floats:
    """Eight parts of 32 numbers; scales and minima have six bits, of the last four the upper two apart."""
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    low, high, rest = packed[:, 0], packed[:, 1], packed[:, 2]
    scale = np.concatenate((low & 63, rest & 15 | low >> 6 << 4), axis=-1)
    minimum = np.concatenate((high & 63, rest >> 4 | high >> 6 << 4), axis=-1)
    numbers = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    scaled: Floats = (_half(blocks[:, :2]) * scale)[..., None] * numbers
    scaled -= (_half(blocks[:, 2:4]) * minimum)[..., None]
    return scaled


def _q6_k(blocks: Bytes) -> Floats:
    """Sixteen parts of 16 numbers of six bits: four in ``low``, two in ``high``."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shift = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shift) & 3
    numbers = (low | high << 4).astype(np.float32) - 32
    scale = _half(blocks[:, 208:]) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    scaled: Floats = scale[..., None] * numbers.reshape(-1, 16, 16)
    return scaled


_DEQUANTIZE: dict[str, Callable[[Bytes], Floats]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
