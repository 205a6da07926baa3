"""How the matrix of a linear layer is stored, in a checkpoint and in memory: one small class for each way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.errors import UnsupportedModelError

if TYPE_CHECKING:
    from sheaf_runtime.models.layers import Ops

# Columns of int8 weights that have one scale.
GROUP = 64

# From x [T, in] and the bias to y [T, out].
PackedLinear = Callable[[Tensor, Tensor | None], Tensor]


class Scheme(Protocol):
    """``parameters`` are a checkpoint's tensors by the ends of their names, with a row for each output
    channel. Once they are filled, ``pack`` makes of them what multiplies from then on; None: ``weight`` does,
    as it is. ``saved_bytes``: how many fewer they take when they are packed.
    """

    def parameters(
        self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]: ...

    def pack(self, parameters: dict[str, Tensor], ops: Ops) -> PackedLinear | None: ...

    def saved_bytes(self, parameters: dict[str, Tensor]) -> int: ...


@dataclass(frozen=True)
class Plain:
    """Floats of the model's dtype."""

    def parameters(
        self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        return {"weight": torch.empty(out_features, in_features, dtype=dtype, device=device)}

    def pack(self, parameters: dict[str, Tensor], ops: Ops) -> PackedLinear | None:
        return ops.pack_linear(parameters["weight"])

    def saved_bytes(self, parameters: dict[str, Tensor]) -> int:
        return 0


@dataclass(frozen=True)
class Int8OnLoad(Plain):
    """Floats in the checkpoint; integers with a scale for each 64 columns of a row once they are loaded."""

    def pack(self, parameters: dict[str, Tensor], ops: Ops) -> PackedLinear | None:
        assert ops.pack_int8 is not None
        return ops.pack_int8(*rounded_to_int8(parameters["weight"]))

    def saved_bytes(self, parameters: dict[str, Tensor]) -> int:
        weight = parameters["weight"]
        return weight.nbytes - weight.numel() - 4 * len(weight) * -(-weight.shape[1] // GROUP)


@dataclass(frozen=True)
class Int8Stored:
    """Integers in the checkpoint, with one scale for each output channel."""

    def parameters(
        self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        return {
            "weight": torch.empty(out_features, in_features, dtype=torch.int8, device=device),
            "weight_scale": torch.empty(out_features, 1, device=device),
        }

    def pack(self, parameters: dict[str, Tensor], ops: Ops) -> PackedLinear | None:
        assert ops.pack_int8 is not None
        weight = parameters["weight"]
        groups = -(-weight.shape[1] // GROUP)
        return ops.pack_int8(weight, parameters["weight_scale"].expand(-1, groups))

    def saved_bytes(self, parameters: dict[str, Tensor]) -> int:
        return 0


@dataclass(frozen=True)
class Int8Packed(Int8Stored):
    """The same, four integers in each of the checkpoint's, the first one lowest, with 128 added."""

    def parameters(
        self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        if in_features % 4:
            raise UnsupportedModelError(f"packed int8 weights have multiples of 4 columns, not {in_features}")
        return {
            "weight_packed": torch.empty(out_features, in_features // 4, dtype=torch.int32, device=device),
            "weight_scale": torch.empty(out_features, 1, device=device),
        }

    def pack(self, parameters: dict[str, Tensor], ops: Ops) -> PackedLinear | None:
        weight = (parameters["weight_packed"].view(torch.uint8) ^ 128).view(torch.int8)
        return super().pack({"weight": weight, "weight_scale": parameters["weight_scale"]}, ops)


@dataclass(frozen=True)
class Int8Grouped(Int8Stored):
    """Integers with a scale for each 64 columns, which is how ``packed`` reads what has smaller ones."""

    def parameters(
        self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        return {
            "weight": torch.empty(out_features, in_features, dtype=torch.int8, device=device),
            "weight_scale": torch.empty(out_features, -(-in_features // GROUP), device=device),
        }


@dataclass(frozen=True)
class Int4Grouped:
    """Two weights of a row in each byte, the first in its lower half, with a scale and a zero point for each
    64 columns, which is how ``packed`` reads what has four bits."""

    def parameters(
        self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        if in_features % 2:
            raise UnsupportedModelError(f"weights of 4 bits have even numbers of columns, not {in_features}")
        groups = -(-in_features // GROUP)
        return {
            "weight": torch.empty(out_features, in_features // 2, dtype=torch.uint8, device=device),
            "weight_zero": torch.empty(out_features, groups, dtype=torch.uint8, device=device),
            "weight_scale": torch.empty(out_features, groups, device=device),
        }

    def pack(self, parameters: dict[str, Tensor], ops: Ops) -> PackedLinear | None:
        assert ops.pack_int4 is not None
        pairs = parameters["weight"]
        weight = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)
        return ops.pack_int4(weight, parameters["weight_zero"], parameters["weight_scale"])

    def saved_bytes(self, parameters: dict[str, Tensor]) -> int:
        return 0


PLAIN, INT8_ON_LOAD, INT8_STORED, INT8_PACKED = Plain(), Int8OnLoad(), Int8Stored(), Int8Packed()
INT8_GROUPED, INT4_GROUPED = Int8Grouped(), Int4Grouped()


def rounded_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers from -127 to 127 and the scale of each 64 columns of a row, float32 [out, ceil(in / 64)], of
    floats [out, in]. A group that is zero stays so, one that holds something infinite or no number has scale
    NaN."""
    columns = weight.shape[1]
    groups = F.pad(weight.float(), (0, -columns % GROUP)).reshape(len(weight), -1, GROUP)
    scale = groups.abs().amax(dim=2) / 127
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    steps = (groups / scale[..., None]).nan_to_num_(0.0).round_().clamp_(-127, 127)
    return steps.to(torch.int8).flatten(1)[:, :columns], scale
