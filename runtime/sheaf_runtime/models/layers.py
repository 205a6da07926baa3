"""The layers a decoder is built of. They hold plain tensors: nothing here is ever trained.

Legend: T tokens of the step, Q query heads, K key/value heads, N = Q + 2K, D head size, H = D / 2,
C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.config import Activation
from sheaf_runtime.models.schemes import PLAIN, PackedLinear, Scheme

# Where a part of a checkpoint goes: its tensor's name and a view of the parameter that it fills.
Target = tuple[str, Tensor]

# A module of a checkpoint by its name, and the rows that are its part of a layer.
Module = tuple[str, slice]

# oneDNN blocks a packed weight for one number of rows. Measured on AVX-512 from 1 to 512 rows, the layout
# chosen for many rows is also the fastest for few.
PACK_FOR_ROWS = 512


# Cosines and sines of each token's position, [T, D / 2] each, in float32 and in one piece.
Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Lookups:
    """All that a decoder's layers know of a step's tokens: ``tokens_T`` are rows of the embedding, ``angles``
    those of each rotary embedding. ``rows_S`` are the tokens of which something is wanted, None: all."""

    tokens_T: Tensor
    angles: list[Angles]
    rows_S: Tensor | None
    adapters: StepAdapters | None = None


# What is wanted of tokens of a step: hidden states alone, logits as well, or also the likeliest tokens.
Want = Literal["hidden", "logits", "tokens"]


@dataclass(frozen=True)
class Computed:
    """``hidden_TC`` behind the final norm, and what else was wanted. ``tokens_T`` (-1 where no largest logit
    is a number) are found on a CPU, and else left to the sampler."""

    hidden_TC: Tensor
    logits_TV: Tensor | None = None
    tokens_T: npt.NDArray[np.int64] | None = None


Layers = Callable[[Lookups], Computed]


class Attention(Protocol):
    """What a model needs of the worker: paged attention over all requests of the step."""

    def run(self, layers: Layers, given: Lookups, want: Want) -> Computed:
        """``layers(given)``, or what a recording of it gives; good until the next step. ``layers`` of one
        model differ in nothing but what they ``want``."""
        ...

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        """Rotate q and k, store k and v in the layer's pages, return the rotated q [T, Q, D]."""
        ...

    def attend(
        self, layer: int, q_TQD: Tensor, sinks_Q: Tensor | None = None, rows_S: Tensor | None = None
    ) -> Tensor:
        """Causal attention of rotated queries over what the pages hold: [T, Q, D], or [S, Q, D] of
        ``rows_S``, which are those that ``run`` was given.

        ``sinks_Q``: a score of each head that takes part in the softmax and adds nothing.
        """
        ...


class RowAdapters(Protocol):
    """Adapters of the rows of a step; other rows have none."""

    def add(self, layer: Linear, x_TC: Tensor, y_TN: Tensor) -> None:
        """To what ``layer`` made of ``x``, in place: what the adapters make of those rows that are theirs."""
        ...


@dataclass(frozen=True)
class StepAdapters:
    """Those of all tokens of a step, and of ``Lookups.rows_S``."""

    tokens: RowAdapters
    rows: RowAdapters


class Linear:
    """``y = x W^T + b``; several matrices of a checkpoint may be stacked in one (q, k and v).

    ``parameters`` are what its scheme takes of a checkpoint. After ``pack`` on a CPU they are gone: only the
    packed copy stays.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        scheme: Scheme = PLAIN,
    ) -> None:
        self._scheme = scheme
        self.in_features, self.out_features = in_features, out_features
        self.parameters = scheme.parameters(out_features, in_features, dtype, device)
        self.bias = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        self._packed: PackedLinear | None = None

    def pack(self, ops: Ops) -> int:
        """Call once, when the parameters are loaded. Returns how many bytes fewer they take from then on."""
        saved = self._scheme.saved_bytes(self.parameters)
        self._packed = self._scheme.pack(self.parameters, ops)
        if self._packed is not None:
            self.parameters = {}
        return saved

    def __call__(self, x_TC: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        if self._packed is not None:
            y_TN = self._packed(x_TC, self.bias)
        else:
            y_TN = F.linear(x_TC, self.parameters["weight"], self.bias)
        if adapters is not None:
            adapters.add(self, x_TC, y_TN)
        return y_TN

    def modules(self, prefix: str, names: tuple[str, ...], rows: tuple[int, ...]) -> Iterator[Module]:
        """The checkpoint's modules of so many rows that are stacked here; a single one may be all of it."""
        if len(names) == 1:
            rows = (self.out_features,)
        start = 0
        for name, count in zip(names, rows, strict=True):
            yield prefix + name, slice(start, start + count)
            start += count

    def targets(self, prefix: str, names: tuple[str, ...], rows: tuple[int, ...]) -> Iterator[Target]:
        """The parameters of ``modules``, and their biases."""
        for name, part in self.modules(prefix, names, rows):
            for kind, tensor in self.parameters.items():
                yield f"{name}.{kind}", tensor[part]
            if self.bias is not None:
                yield f"{name}.bias", self.bias[part]


@dataclass(frozen=True)
class Adaptable:
    """A layer to which adapters may add, and the modules that it is made of. ``reorder`` puts rows of output
    [out, *] in the order in which the layer has them, in place; None: it has them as the checkpoint does."""

    layer: Linear
    modules: tuple[Module, ...]
    reorder: Callable[[Tensor], None] | None = None


class Output:
    """The projection to the vocabulary: a ``Linear`` whose weight may be the embedding's own."""

    def __init__(self, weight: Tensor, scheme: Scheme = PLAIN, *, tied: bool = True) -> None:
        self.weight: Tensor | None = weight
        self._scheme, self._tied = scheme, tied
        self._packed: PackedLinear | None = None

    def pack(self, ops: Ops) -> int:
        """As ``Linear.pack``. Of a tied weight it packs a copy: the embedding needs its rows as they are. It
        is worth its memory, because this is the largest matrix of a small model (three times faster at 16
        rows)."""
        assert self.weight is not None
        parameters = {"weight": self.weight}
        saved = 0 if self._tied else self._scheme.saved_bytes(parameters)
        self._packed = self._scheme.pack(parameters, ops)
        if self._packed is not None:
            self.weight = None
        return saved

    def __call__(self, x_TC: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed(x_TC, None)
        assert self.weight is not None
        return F.linear(x_TC, self.weight)


def pack_with_onednn(weight: Tensor) -> PackedLinear | None:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return None
    if weight.dtype != torch.float32 and not _packs_bfloat16(weight.dtype):
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_FOR_ROWS)

    def linear(x_TC: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x_TC, packed, bias, "none", [], "")
        return y

    return linear


def _packs_bfloat16(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def take_rows(table: Tensor, index_T: Tensor, factor: float) -> Tensor:
    y_TC = F.embedding(index_T, table)
    return y_TC if factor == 1.0 else y_TC * factor


def activate(x_TC: Tensor, activation: Activation, gated: bool) -> Tensor:
    """``act(gate) * up`` of [T, 2I] with the gate first, or ``act(x)`` of [T, I]: [T, I]."""
    gate, up = x_TC.chunk(2, dim=-1) if gated else (x_TC, None)
    if activation == "silu":
        y_TC = F.silu(gate)
    else:
        y_TC = F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
    return y_TC if up is None else y_TC.mul_(up)


def clamped_swiglu(gate_up_TC: Tensor, alpha: float, limit: float) -> Tensor:
    """GPT-OSS's: gates and ups take turns, both are bounded, and one is added to up."""
    gate = gate_up_TC[..., ::2].clamp(max=limit)
    up = gate_up_TC[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(gate * alpha) * (up + 1)


class GroupedExperts(Protocol):
    """K of E MLPs for each of T tokens: the sum of their weighted results, [T, C]."""

    def __call__(
        self,
        x_TC: Tensor,
        weights_TK: Tensor,
        chosen_TK: Tensor,
        gate_up: tuple[Tensor, Tensor | None],
        down: tuple[Tensor, Tensor | None],
        act: Callable[[Tensor], Tensor],
        weigh_input: bool,
    ) -> Tensor:
        """``gate_up`` and ``down``: weight [E, out, in] and bias [E, out] of all experts. ``weigh_input``: a
        token's weight scales what the expert sees, not what it gives."""
        ...


@dataclass(frozen=True)
class Ops:
    """The layers that a backend may run as one kernel each; the defaults are plain torch.

    ``rms_norm`` is called with x [T, C], weight [C] (in float32: rounded once, after it), eps and residual
    [T, C] or None, and returns what ``RMSNorm`` returns. ``None``: as ``RMSNorm`` has it.

    ``head_norm`` is the same without a residual for each head of [T, H, D], in place.

    ``take_rows`` gives rows of a table [*, C], times a factor.

    ``likeliest`` tells of logits [T, V] what ``Computed.tokens_T`` is; None: the sampler does.

    ``experts`` runs all experts at once, on weights as they are; ``None``: one after the other.

    ``pack_linear`` makes of a weight [out, in] what multiplies with a copy of it in a better order; None:
    there is none. ``pack_int8`` does so of integers [out, in] and their scales [out, ceil(in / 64)], where
    the backend has int8, ``pack_int4`` of integers from 0 to 15, zero points and scales. ``scheme`` is that
    of all linear layers but routers and the head, which has ``head_scheme``.
    """

    rms_norm: Callable[[Tensor, Tensor, float, Tensor | None], tuple[Tensor, Tensor]] | None = None
    head_norm: Callable[[Tensor, Tensor, float], None] | None = None
    take_rows: Callable[[Tensor, Tensor, float], Tensor] = take_rows
    likeliest: Callable[[Tensor], npt.NDArray[np.int64]] | None = None
    activate: Callable[[Tensor, Activation, bool], Tensor] = activate
    clamped_swiglu: Callable[[Tensor, float, float], Tensor] = clamped_swiglu
    experts: GroupedExperts | None = None
    pack_linear: Callable[[Tensor], PackedLinear | None] = pack_with_onednn
    pack_int8: Callable[[Tensor, Tensor], PackedLinear] | None = None
    pack_int4: Callable[[Tensor, Tensor, Tensor], PackedLinear] | None = None
    scheme: Scheme = PLAIN
    head_scheme: Scheme = PLAIN


TORCH_OPS = Ops()
