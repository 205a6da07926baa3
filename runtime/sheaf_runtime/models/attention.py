"""The projections around paged attention: queries, keys and values of a layer, and its output.

Legend: T tokens of the step, C hidden size, Q query heads, K key/value heads, N = Q + 2K, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sheaf_runtime.models.architectures import ARCHITECTURES, Names
from sheaf_runtime.models.config import ModelConfig, Sharpening
from sheaf_runtime.models.layers import Adaptable, Attention, Linear, Ops, StepAdapters, Target
from sheaf_runtime.models.norms import Norm, RMSNorm, UnitNorm, make_norm
from sheaf_runtime.models.rope import channel_order


class SelfAttention:
    def __init__(
        self, index: int, config: ModelConfig, *, dtype: torch.dtype, device: torch.device, ops: Ops
    ) -> None:
        c = config.attention
        self._index = index
        self._heads, self._kv_heads, self._head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        self._clip = c.clip
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self._rows = (q, kv, kv)
        self.qkv = Linear(
            config.hidden_size, q + 2 * kv, bias=c.qkv_bias, dtype=dtype, device=device, scheme=ops.scheme
        )
        self.output = Linear(
            q, config.hidden_size, bias=c.output_bias, dtype=dtype, device=device, scheme=ops.scheme
        )
        self.sinks = torch.empty(c.num_heads, dtype=dtype, device=device) if c.sinks else None
        self._per_head = c.qk_norm != "all"
        rope = config.layers[index].rope
        self._sharpening = config.layers[index].sharpening

        def norm(features: int) -> Norm:
            if c.qk_norm == "unit":
                return UnitNorm(config.norm_eps)
            width = c.head_dim if self._per_head else features
            return make_norm(
                config.norm, width, config.norm_eps, bias=False, dtype=dtype, device=device, ops=ops
            )

        without = c.qk_norm is None or (c.qk_norm == "unit" and rope is None)
        self.qk_norms = None if without else (norm(q), norm(kv))
        interleaved = ARCHITECTURES[config.architecture].interleaved
        self._order = None if rope is None else channel_order(c.head_dim, rope.rotary_dim, interleaved)

    def __call__(
        self,
        x_TC: Tensor,
        positions_T: Tensor,
        angles: tuple[Tensor, Tensor],
        attention: Attention,
        rows_S: Tensor | None,
        adapters: StepAdapters | None,
    ) -> Tensor:
        """[T, C], or [S, C] of ``rows_S``; the keys and values of all are written."""
        heads, kv_heads = self._heads, self._kv_heads
        tokens, rows = (None, None) if adapters is None else (adapters.tokens, adapters.rows)
        qkv_TND = self.qkv(x_TC, tokens).view(-1, heads + 2 * kv_heads, self._head_dim)
        if self.qk_norms is not None:
            self._normalize(self.qk_norms[0], qkv_TND[:, :heads])
            self._normalize(self.qk_norms[1], qkv_TND[:, heads:-kv_heads])
        if self._clip is not None:
            qkv_TND.clamp_(-self._clip, self._clip)
        if self._sharpening is not None:
            qkv_TND[:, :heads].mul_(_sharpness(self._sharpening, positions_T)[:, None, None])
        q_TQD = attention.write_kv(self._index, qkv_TND, *angles)
        attended = attention.attend(self._index, q_TQD, self.sinks, rows_S)
        return self.output(attended.view(-1, heads * self._head_dim), tokens if rows_S is None else rows)

    def _normalize(self, norm: Norm, x_TND: Tensor) -> None:
        if not self._per_head:
            x_TND = x_TND.flatten(1)[:, None]
        if isinstance(norm, RMSNorm) and norm.heads_(x_TND):
            return
        width = x_TND.shape[2]
        x_TND.copy_(norm(x_TND.reshape(-1, width))[0].view(x_TND.shape))

    def targets(self, prefix: str, names: Names) -> Iterator[Target]:
        yield from self.qkv.targets(prefix, names.qkv, self._rows)
        yield from self.output.targets(prefix, (names.output,), ())
        if self.sinks is not None:
            yield f"{prefix}self_attn.sinks", self.sinks
        if self.qk_norms is not None:
            for name, norm in zip((names.q_norm, names.k_norm), self.qk_norms, strict=True):
                for kind, tensor in norm.parameters().items():
                    yield f"{prefix}{name}.{kind}", tensor

    def adaptable(self, prefix: str, names: Names) -> Iterator[Adaptable]:
        order = self._order
        reorder = None if order is None else lambda rows: self._rotated_to(order, rows)
        yield Adaptable(self.qkv, tuple(self.qkv.modules(prefix, names.qkv, self._rows)), reorder)
        yield Adaptable(self.output, tuple(self.output.modules(prefix, (names.output,), ())))

    def finish(self, ops: Ops) -> int:
        """Call once, when the weights are loaded. Returns what ``Linear.pack`` does."""
        for norm in self.qk_norms or ():
            norm.finish()
        if self._order is not None:
            self._reorder(self._order)
        return self.qkv.pack(ops) + self.output.pack(ops)

    def _reorder(self, order: list[int]) -> None:
        """Put the channels of every query and key head in the order in which they are rotated."""
        for tensor in self.qkv.parameters.values():
            self._rotated_to(order, tensor)
        if self.qkv.bias is not None:
            self._rotated_to(order, self.qkv.bias)
        for norm in self.qk_norms or ():
            for tensor in norm.parameters().values():
                self._heads_to(order, tensor)

    def _rotated_to(self, order: list[int], rows: Tensor) -> None:
        self._heads_to(order, rows[: (self._heads + self._kv_heads) * self._head_dim])

    def _heads_to(self, order: list[int], rows: Tensor) -> None:
        heads = rows.view(-1, self._head_dim, *rows.shape[1:])
        heads.copy_(heads[:, order])


def _sharpness(config: Sharpening, positions_T: Tensor) -> Tensor:
    """What each token's query is multiplied by, in float32."""
    return torch.log1p((positions_T + 1).div(config.step).floor()) * config.weight + 1.0
