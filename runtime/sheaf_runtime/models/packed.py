"""Checkpoints whose matrices are small integers with a scale for each group of columns: GPTQ, AWQ, and those
of compressed-tensors. Each module is some tensors in the files; here it becomes one matrix.

On the CPU kernels four bits stay four bits, where each group is a multiple of 64 columns in their order in
all layers; else they are int8 with a scale for each 64 columns. That says the same numbers exactly where
groups are such, and what has other ones is rounded once more, to within 1/254 of the largest of 64 numbers.
Elsewhere they are floats.

Legend: N output channels, K input channels, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sheaf_runtime.models.checkpoint import Checkpoint
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.schemes import GROUP, rounded_to_int8

WORD = 32  # bits of the integers that others are packed in
# Where AWQ has the eight columns of a word, from its lowest bits on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LAYERS = "layers."  # in the names of what has linear layers; embeddings and the head have not


@dataclass(frozen=True)
class Integers:
    """``W[n, k] = (steps[n, k] - zeros[n, group[k]]) * scale[n, group[k]]``."""

    steps_NK: Tensor  # int16, from 0 on
    zeros_NG: Tensor  # int16
    scale_NG: Tensor  # float32
    group_K: Tensor  # int64

    def floats(self) -> Tensor:
        return self._signed() * self.scale_NG[:, self.group_K]

    def int4(self) -> dict[str, Tensor]:
        """What ``schemes.INT4_GROUPED`` takes, of groups that ``are_whole``."""
        pairs = self.steps_NK.to(torch.uint8).reshape(len(self.steps_NK), -1, 2)
        first_G = self.group_K[::GROUP]
        return {
            "weight": pairs[..., 0] | pairs[..., 1] << 4,
            "weight_zero": self.zeros_NG[:, first_G].to(torch.uint8),
            "weight_scale": self.scale_NG[:, first_G],
        }

    def int8(self) -> tuple[Tensor, Tensor]:
        """As ``schemes.rounded_to_int8`` gives it."""
        steps_NK = self._signed()
        if not are_whole(self.group_K) or steps_NK.min() < -128 or steps_NK.max() > 127:
            return rounded_to_int8(self.floats())
        return steps_NK.to(torch.int8), self.scale_NG[:, self.group_K[::GROUP]]

    def _signed(self) -> Tensor:
        return self.steps_NK - self.zeros_NG[:, self.group_K]


def are_whole(group_K: Tensor) -> bool:
    """Whether each 64 columns are of one group."""
    return torch.equal(group_K, group_K[torch.arange(len(group_K)) // GROUP * GROUP])


@dataclass(frozen=True)
class GPTQ:
    """Words of columns below each other. ``zero_offset``: what stored zero points are short of, 1 before the
    second version of the format."""

    bits: int
    group_size: int | None
    zero_offset: int
    order: ClassVar = "g_idx"
    parts: ClassVar = ("qweight", "qzeros", "scales", "g_idx")

    def read(self, tensors: Mapping[str, Tensor]) -> Integers:
        scale_NG = tensors["scales"].float().T.contiguous()
        steps_NK = unpacked(tensors["qweight"].T, self.bits)
        zeros_NG = unpacked(tensors["qzeros"], self.bits).T
        zeros_NG = zeros_NG + self._offset(zeros_NG)
        group_K = _groups(steps_NK.shape[1], self.group_size, tensors.get("g_idx"))
        return _integers(steps_NK, zeros_NG, scale_NG, group_K)

    def _offset(self, zeros_NG: Tensor) -> int:
        """Of symmetric weights all zero points are half of the range, which tells the version better than
        the name of it does: some tools write the second under the name of the first (vllm#38966)."""
        half = 1 << self.bits - 1
        same = zeros_NG.numel() and bool((zeros_NG == zeros_NG[0, 0]).all())
        short = half - int(zeros_NG[0, 0]) if same else None
        return short if short in (0, 1) else self.zero_offset


@dataclass(frozen=True)
class AWQ:
    """Words of eight columns beside each other, in an order of their own."""

    group_size: int | None
    bits: ClassVar = 4
    order: ClassVar = None
    parts: ClassVar = ("qweight", "qzeros", "scales")

    def read(self, tensors: Mapping[str, Tensor]) -> Integers:
        scale_NG = tensors["scales"].float().T.contiguous()
        steps_NK, zeros_NG = (self._columns(tensors[name]).T for name in ("qweight", "qzeros"))
        return _integers(steps_NK, zeros_NG, scale_NG, _groups(steps_NK.shape[1], self.group_size))

    def _columns(self, words: Tensor) -> Tensor:
        placed = unpacked(words, 4).reshape(len(words), -1, len(AWQ_ORDER))
        ordered = torch.empty_like(placed)
        ordered[..., list(AWQ_ORDER)] = placed
        return ordered.flatten(1)


@dataclass(frozen=True)
class PackQuantized:
    """Of compressed-tensors: words of columns beside each other, zero points of rows below each other; half
    of the range is added to both."""

    bits: int
    group_size: int | None
    symmetric: bool
    order: ClassVar = "weight_g_idx"
    parts: ClassVar = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")

    def read(self, tensors: Mapping[str, Tensor]) -> Integers:
        scale_NG = tensors["weight_scale"].float()
        rows, columns = tensors["weight_shape"].tolist()
        packed = tensors["weight_packed"]
        if packed.shape != (rows, -(-columns * self.bits // WORD)):
            raise ValueError(f"weight_packed is {list(packed.shape)}, weight_shape says [{rows}, {columns}]")
        steps_NK = unpacked(packed, self.bits)[:, :columns]
        if self.symmetric and "weight_zero_point" not in tensors:
            zeros_NG = steps_NK.new_full(scale_NG.shape, 1 << self.bits - 1)
        else:
            zeros_NG = unpacked(tensors["weight_zero_point"].T, self.bits).T[:rows]
        group_K = _groups(columns, self.group_size, tensors.get("weight_g_idx"))
        return _integers(steps_NK, zeros_NG, scale_NG, group_K)


# ``parts`` are the ends of the names of a module's tensors; the first of them is always there. ``read``
# raises ``KeyError`` for one that is missing, ``ValueError`` for shapes that do not fit each other.
Format = GPTQ | AWQ | PackQuantized


# What linear layers become.
Become = Literal["int4", "int8", "floats"]


class PackedCheckpoint:
    """``checkpoint`` with each module in one matrix, ``NAME.weight``; of linear layers in what they are to
    ``become``, then with what that has beside it, also of those that the checkpoint has in floats."""

    become: Become = "floats"

    def __init__(self, checkpoint: Checkpoint, form: Format) -> None:
        self._checkpoint, self._form = checkpoint, form
        main, *others = (f".{part}" for part in form.parts)
        self._modules = {name.removesuffix(main) for name in checkpoint.names if name.endswith(main)}
        self._hidden = {f"{module}{part}" for module in self._modules for part in others}
        self._main = main
        self.names = frozenset(
            f"{name.removesuffix(main)}.weight" if name.endswith(main) else name
            for name in checkpoint.names - self._hidden
        )

    def become_integers(self) -> Become:
        """Four bits if they are in every linear layer, in groups of which the kernels can have a scale."""
        form = self._form
        layers = filter(_is_of_a_layer, self.names)
        floats = (name for name in layers if name.removesuffix(".weight") not in self._modules)
        four = form.bits == 4 and not any(self._checkpoint.read(name).dim() == 2 for name in floats)
        self.become = "int4" if four and all(map(self._has_whole_groups, self._modules)) else "int8"
        return self.become

    def _has_whole_groups(self, module: str) -> bool:
        """By the order of its columns, which is small."""
        order = f"{module}.{self._form.order}" if self._form.order else ""
        told = self._checkpoint.read(order) if order in self._checkpoint.names else None
        size = self._form.group_size
        if told is None or not (told != told.flatten()[:1]).any():
            return size is None or size % GROUP == 0
        return are_whole(told)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._checkpoint.tensors():
            if name in self._hidden:
                continue
            if name.endswith(self._main):
                module = name.removesuffix(self._main)
                yield from self._module(module, self._integers(module, tensor))
            elif self.become == "int8" and _is_of_a_layer(name) and tensor.dim() == 2:
                yield from _as_int8(name.removesuffix(".weight"), rounded_to_int8(tensor))
            else:
                yield name, tensor

    def read(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        if module not in self._modules:
            return self._checkpoint.read(name)
        return self._integers(module, self._checkpoint.read(module + self._main)).floats()

    def _module(self, module: str, integers: Integers) -> Iterator[tuple[str, Tensor]]:
        if self.become == "int4" and LAYERS in module:
            yield from ((f"{module}.{name}", tensor) for name, tensor in integers.int4().items())
        elif self.become == "int8" and LAYERS in module:
            yield from _as_int8(module, integers.int8())
        else:
            yield f"{module}.weight", integers.floats()

    def _integers(self, module: str, main: Tensor) -> Integers:
        first, *others = self._form.parts
        given = {part: f"{module}.{part}" for part in others}
        there = {part: name for part, name in given.items() if name in self._checkpoint.names}
        try:
            return self._form.read({first: main} | {p: self._checkpoint.read(n) for p, n in there.items()})
        except KeyError as error:
            raise UnsupportedModelError(f"the checkpoint lacks the tensor {module}.{error.args[0]}") from None
        except ValueError as error:
            raise UnsupportedModelError(f"the tensors of {module} do not fit each other: {error}") from None


def _as_int8(module: str, made: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield f"{module}.weight", made[0]
    yield f"{module}.weight_scale", made[1]


def _is_of_a_layer(name: str) -> bool:
    return LAYERS in name and name.endswith(".weight")


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Integers without a sign of int32 words, lowest bits first: int16 [*, n * 32 / bits] of [*, n]."""
    if words.dtype != torch.int32:
        raise ValueError(f"packed integers are int32, not {words.dtype}")
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    each = words.contiguous()[..., None] >> shifts & (1 << bits) - 1
    return each.to(torch.int16).flatten(-2)


def _groups(columns: int, size: int | None, told: Tensor | None = None) -> Tensor:
    """The group of each column: ``told``, unless that says nothing (all the same, 0 or -1: exllama#44), else
    those of ``size`` in order."""
    if told is not None and told.numel() and bool((told != told.flatten()[0]).any()):
        if told.shape != (columns,) or told.min() < 0:
            raise ValueError(f"{columns} columns have groups {list(told.shape)} from {int(told.min())} on")
        return told.long()
    return torch.arange(columns) // (size or columns)


def _integers(steps_NK: Tensor, zeros_NG: Tensor, scale_NG: Tensor, group_K: Tensor) -> Integers:
    rows, groups = len(steps_NK), int(group_K.max()) + 1
    if zeros_NG.shape != scale_NG.shape or len(scale_NG) != rows or scale_NG.shape[1] < groups:
        raise ValueError(
            f"{rows} channels in {groups} groups have scales {list(scale_NG.shape)} and zero points "
            f"{list(zeros_NG.shape)}"
        )
    return Integers(steps_NK, zeros_NG, scale_NG, group_K)
