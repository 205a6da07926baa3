"""The layers a decoder is built of. They hold plain tensors: nothing here is ever trained.

Legend: T tokens of the step, Q query heads, K key/value heads, N = Q + 2K, D head size, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.config import RopeConfig

# oneDNN blocks a packed weight for one number of rows. Measured on AVX-512 from 1 to 512 rows, the layout
# chosen for many rows is also the fastest for few.
PACK_FOR_ROWS = 512


class Attention(Protocol):
    """What a model needs of the worker: paged attention over all requests of the step."""

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """Rotate q and k, store k and v in the layer's pages, return the rotated q [T, Q, D]."""
        ...

    def attend(self, layer: int, q_TQD: Tensor) -> Tensor:
        """Causal attention of rotated queries over what the pages hold: [T, Q, D]."""
        ...


class Linear:
    """``y = x W^T + b``; several matrices of a checkpoint may be stacked in one (q, k and v).

    ``weight`` is [out, in]. After ``pack`` on a CPU with oneDNN it is gone: only the packed copy stays.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight: Tensor | None = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self.bias = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        self._packed: Tensor | None = None

    def pack(self) -> None:
        """Call once, when the weight is loaded."""
        weight = self.weight
        assert weight is not None
        if can_pack(weight):
            self._packed = pack_weight(weight)
            self.weight = None

    def __call__(self, x_TC: Tensor) -> Tensor:
        if self._packed is not None:
            return packed_linear(x_TC, self._packed, self.bias)
        assert self.weight is not None
        return F.linear(x_TC, self.weight, self.bias)


class Output:
    """The projection to the vocabulary: a ``Linear`` whose weight may be the embedding's own."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._packed: Tensor | None = None

    def pack(self) -> None:
        """Packs a copy: the embedding needs its rows as they are. It is worth its memory, because this is
        the largest matrix of a small model (three times faster at 16 rows)."""
        if can_pack(self.weight):
            self._packed = pack_weight(self.weight)

    def __call__(self, x_TC: Tensor) -> Tensor:
        if self._packed is not None:
            return packed_linear(x_TC, self._packed, None)
        return F.linear(x_TC, self.weight)


def can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and torch._C._has_mkldnn
        and (weight.dtype == torch.float32 or _packs_bfloat16(weight.dtype))
    )


def _packs_bfloat16(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_weight(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_FOR_ROWS)
    return packed


def packed_linear(x_TC: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x_TC, packed, bias, "none", [], "")
    return y


def swiglu(gate_up_TC: Tensor) -> Tensor:
    """``silu(gate) * up`` of [T, 2C] with the gate first: [T, C]."""
    gate, up = gate_up_TC.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


@dataclass(frozen=True)
class Ops:
    """The layers that a backend may run as one kernel each; the defaults are plain torch.

    ``rms_norm`` is called with x [T, C], weight [C], eps and residual [T, C] or None, and returns what
    ``RMSNorm`` returns. ``None``: as ``RMSNorm`` has it.
    """

    rms_norm: Callable[[Tensor, Tensor, float, Tensor | None], tuple[Tensor, Tensor]] | None = None
    swiglu: Callable[[Tensor], Tensor] = swiglu


TORCH_OPS = Ops()


class RMSNorm:
    """``h = x + residual; y = h / sqrt(mean(h^2) + eps) * weight``, the mean and the division in float32.

    Returns (y, h): h is the residual of what comes next. Without a residual h is x itself.
    """

    def __init__(
        self, features: int, eps: float, *, dtype: torch.dtype, device: torch.device, ops: Ops
    ) -> None:
        self.weight = torch.empty(features, dtype=dtype, device=device)
        self._eps = eps
        self._eps_tensor = torch.full((1, 1), eps, device=device)
        self._fused = ops.rms_norm

    def __call__(self, x_TC: Tensor, residual_TC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._fused is not None:
            return self._fused(x_TC, self.weight, self._eps, residual_TC)
        h_TC = x_TC if residual_TC is None else x_TC + residual_TC
        x = h_TC.float()
        # Few launches count more than few operations here: norm^2 / C + eps in one.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps_tensor, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).to(h_TC.dtype).mul_(self.weight), h_TC


class Rope:
    """Rotary embedding: cos and sin of every position up to ``max_position``, one row each, in float32."""

    def __init__(self, config: RopeConfig, head_dim: int, max_position: int, device: torch.device) -> None:
        inv_freq = rope_frequencies(config, head_dim)
        angles = torch.arange(max_position, dtype=torch.float32)[:, None] * inv_freq
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), dim=-1).unsqueeze(1).to(device)
        self._sin = torch.cat((-sin, sin), dim=-1).unsqueeze(1).to(device)

    def __call__(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin as ``rotate`` wants them, [T, 1, D] each: both halves, sin negative in the first."""
        return self._cos[positions_T], self._sin[positions_T]


def rope_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each channel pair: [D / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inv_freq = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        return inv_freq / config.factor
    if config.kind == "llama3":
        # Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
        wavelength = 2 * math.pi / inv_freq
        turns = config.original_max_position / wavelength
        smooth = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
        smooth = smooth.clamp(0, 1)
        return (1 - smooth) * inv_freq / config.factor + smooth * inv_freq
    return inv_freq


def rotate(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotate channel d with channel d + D/2 of every head, in float32."""
    x = x_TND.float()
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos_T1D).addcmul_(swapped, sin_T1D).to(x_TND.dtype)
