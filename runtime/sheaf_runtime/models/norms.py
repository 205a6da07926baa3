"""Normalisation before, after and inside a layer's parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.config import NormKind
from sheaf_runtime.models.layers import Ops


class RMSNorm:
    """``h = x + residual; y = h / sqrt(mean(h^2) + eps) * weight``, the mean and the division in float32.

    Returns (y, h): h is the residual of what comes next. Without a residual h is x itself. ``wide`` keeps the
    weight in float32 and rounds once, after multiplying with it; ``offset`` is added to the loaded weight.
    """

    def __init__(
        self,
        features: int,
        eps: float,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops,
        wide: bool = False,
        offset: float = 0.0,
    ) -> None:
        self.weight = torch.empty(features, dtype=torch.float32 if wide else dtype, device=device)
        self._eps = eps
        self._eps_tensor = torch.full((1, 1), eps, device=device)
        self._wide = wide
        self._offset = offset
        self._fused = ops.rms_norm
        self._heads = ops.head_norm

    def heads_(self, x_THD: Tensor) -> bool:
        """Normalize each head in place, where there is a kernel for it."""
        if self._heads is None:
            return False
        self._heads(x_THD, self.weight, self._eps)
        return True

    def finish(self) -> None:
        """Call once, when the weight is loaded."""
        if self._offset:
            self.weight += self._offset

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def __call__(self, x_TC: Tensor, residual_TC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._fused is not None:
            return self._fused(x_TC, self.weight, self._eps, residual_TC)
        h_TC = x_TC if residual_TC is None else x_TC + residual_TC
        x = h_TC.float()
        # Few launches count more than few operations here: norm^2 / C + eps in one.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps_tensor, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        if self._wide:
            return (x * scale).mul_(self.weight).to(h_TC.dtype), h_TC
        return (x * scale).to(h_TC.dtype).mul_(self.weight), h_TC


class LayerNorm:
    """``h = x + residual; y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias``; see ``RMSNorm``."""

    def __init__(
        self, features: int, eps: float, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight = torch.empty(features, dtype=dtype, device=device)
        self.bias = torch.empty(features, dtype=dtype, device=device) if bias else None
        self._eps = eps

    def finish(self) -> None: ...

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}

    def __call__(self, x_TC: Tensor, residual_TC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h_TC = x_TC if residual_TC is None else x_TC + residual_TC
        return F.layer_norm(h_TC, self.weight.shape, self.weight, self.bias, self._eps), h_TC


class NoNorm:
    """``h = x + residual``, for both."""

    def finish(self) -> None: ...

    def parameters(self) -> dict[str, Tensor]:
        return {}

    def __call__(self, x_TC: Tensor, residual_TC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h_TC = x_TC if residual_TC is None else x_TC + residual_TC
        return h_TC, h_TC


class UnitNorm:
    """``y = x / sqrt(mean(x^2) + eps)``, rounded at the end: an ``RMSNorm`` without a weight."""

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def finish(self) -> None: ...

    def parameters(self) -> dict[str, Tensor]:
        return {}

    def __call__(self, x_TC: Tensor, residual_TC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h_TC = x_TC if residual_TC is None else x_TC + residual_TC
        return F.rms_norm(h_TC.float(), h_TC.shape[-1:], eps=self._eps).to(h_TC.dtype), h_TC


Norm = RMSNorm | LayerNorm | NoNorm | UnitNorm


def make_norm(
    kind: NormKind,
    features: int,
    eps: float,
    *,
    bias: bool,
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops,
) -> Norm:
    if kind == "layer":
        return LayerNorm(features, eps, bias=bias, dtype=dtype, device=device)
    return RMSNorm(
        features,
        eps,
        dtype=dtype,
        device=device,
        ops=ops,
        wide=kind != "rms",
        offset=1.0 if kind == "rms_offset" else 0.0,
    )
