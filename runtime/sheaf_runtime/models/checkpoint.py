"""A checkpoint as named tensors: the safetensors files of a folder.

Files are memory-mapped, one at a time. Nothing is ever unpickled and no code of the folder is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sheaf_runtime.hub import weights as hub_weights
from sheaf_runtime.hub.weights import INDEX
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.mxfp4 import BLOCKS, SCALES, dequantize

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LFS_POINTER = b"version https://git-lfs"


class Checkpoint(Protocol):
    """Tensors by transformers' names. Both raise ``UnsupportedModelError``."""

    @property
    def names(self) -> frozenset[str]: ...
    def tensors(self) -> Iterator[tuple[str, Tensor]]: ...
    def read(self, name: str) -> Tensor: ...


class SafetensorsFolder:
    """``names`` are those of what ``tensors`` yields: weights in MXFP4 are two tensors in the file and one
    here."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            with _opened(path) as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dict
                    if (other := self._files.setdefault(name, path)) != path:
                        raise UnsupportedModelError(f"{name} is in {other.name} and again in {path.name}")
        self.names = frozenset(
            name.removesuffix(BLOCKS) if self._quantized(name) else name
            for name in self._files
            if not (name.endswith(SCALES) and self._quantized(name.removesuffix(SCALES) + BLOCKS))
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for path in dict.fromkeys(self._files.values()):
            with _opened(path) as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dict
                    if self._quantized(name):
                        whole = name.removesuffix(BLOCKS)
                        yield whole, dequantize(shard.get_tensor(name), self.read(whole + SCALES))
                    elif name in self.names:
                        yield name, shard.get_tensor(name)

    def read(self, name: str) -> Tensor:
        with _opened(self._files[name]) as shard:
            tensor: Tensor = shard.get_tensor(name)
        return tensor

    def _quantized(self, name: str) -> bool:
        return name.endswith(BLOCKS) and name.removesuffix(BLOCKS) + SCALES in self._files


def stored_dtype(folder: Path) -> str | None:
    """The name of the dtype of the first tensor that is not quantized; None if there is none to be read."""
    try:
        with _opened(weight_files(folder)[0]) as shard:
            kinds = (STORED.get(shard.get_slice(name).get_dtype()) for name in shard.keys())  # noqa: SIM118
            return next(filter(None, kinds), None)
    except UnsupportedModelError:  # whoever loads it says why
        return None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        if _is_pointer(path):
            problem = f"{path} is a pointer of Git LFS, not the weights; run `git lfs pull` in the folder"
            raise UnsupportedModelError(problem) from error
        raise UnsupportedModelError(f"{path} is damaged or incomplete: {error}") from error


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files that hold its weights, in order. Raises ``UnsupportedModelError``."""
    index = folder / INDEX
    try:
        text = index.read_text(encoding="utf-8-sig") if index.is_file() else None
        names = hub_weights.weight_files({path.name for path in folder.iterdir()}, text, str(folder))
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedModelError(f"cannot read {index}: {error}") from error
    except hub_weights.WeightsError as error:
        raise UnsupportedModelError(str(error)) from error
    return [folder / name for name in names]
