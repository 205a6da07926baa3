"""The header of a GGUF file: metadata and where each tensor lies.

Layout, all little-endian: magic, version, number of tensors, number of metadata; each metadatum a key, a
type and a value; each tensor a name, its dimensions (the fastest first), its type and its offset in the data,
which starts at the next multiple of the alignment.
Source: ggml's specification of the format, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sheaf_runtime.gguf.errors import MAGIC, GGUFError

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")  # of a string
# Numbers, and bytes, of one block of each type that can be read.
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144), "Q6_K": (256, 210),
}  # fmt: skip
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 12: "Q4_K", 14: "Q6_K", 30: "BF16"}


@dataclass(frozen=True)
class TensorInfo:
    """``shape`` has the slowest dimension first, as in torch."""

    shape: tuple[int, ...]
    type: str
    offset: int  # in the file

    @property
    def num_bytes(self) -> int:
        numbers, size = BLOCKS[self.type]
        return int(np.prod(self.shape)) // numbers * size


class GGUFFile:
    """Raises ``GGUFError``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise GGUFError(f"cannot read {path}: {error}") from error
        try:
            self.metadata, self.tensors = self._header()
        except (struct.error, UnicodeDecodeError, KeyError, IndexError, OverflowError) as error:
            raise GGUFError(f"{path} is damaged or incomplete") from error

    def read(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, still in the file."""
        return np.frombuffer(self._data, np.uint8, info.num_bytes, info.offset)

    def _header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self._data[:4] != MAGIC:
            raise GGUFError(f"{self.path} is no GGUF file")
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise GGUFError(f"{self.path} is GGUF version {version}; versions 2 and 3 can be read")
        num_tensors, num_metadata = self._scalar("<Q"), self._scalar("<Q")
        metadata = {}
        for _ in range(num_metadata):
            key = self._string()
            metadata[key] = self._value(self._scalar("<I"))
        if metadata.get("split.count", 1) > 1:
            raise GGUFError(
                f"{self.path} is one of {metadata['split.count']} parts; merge them with gguf-split"
            )
        placed = [self._placed() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        tensors = {name: TensorInfo(shape, kind, start + offset) for name, shape, kind, offset in placed}
        for name, info in tensors.items():
            if info.offset + info.num_bytes > len(self._data):
                raise GGUFError(f"{self.path} is incomplete: it ends before the tensor {name} does")
        return metadata, tensors

    def _placed(self) -> tuple[str, tuple[int, ...], str, int]:
        name = self._string()
        shape = [self._scalar("<Q") for _ in range(self._scalar("<I"))]
        number, offset = self._scalar("<I"), self._scalar("<Q")
        if number not in _TYPES:
            raise GGUFError(
                f"{self.path}: tensor {name} has a type (number {number}) that cannot be read; "
                f"those that can are {', '.join(BLOCKS)}"
            )
        return name, tuple(reversed(shape)), _TYPES[number], offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        element, count = self._scalar("<I"), self._scalar("<Q")
        if element == _STRING:
            return self._strings(count)
        if element == _ARRAY:
            return [self._value(element) for _ in range(count)]
        dtype = np.dtype(_SCALARS[element])
        if self._at + count * dtype.itemsize > len(self._data):
            raise IndexError("the array is longer than the file")
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at += count * dtype.itemsize
        return values.tolist()

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """Hundreds of thousands are in a vocabulary: one loop, no calls of our own within."""
        data, at, size, length_of = self._data, self._at, len(self._data), _LENGTH.unpack_from
        strings = []
        for _ in range(count):
            (length,) = length_of(data, at)
            at += 8
            if length > size - at:
                raise IndexError("the string is longer than the file")
            strings.append(data[at : at + length].decode("utf-8"))
            at += length
        self._at = at
        return strings
