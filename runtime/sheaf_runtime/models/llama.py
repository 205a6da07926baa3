"""The Llama family: pre-norm decoder, rotary embedding, grouped-query attention, gated MLP.

Legend: T tokens of the step, C hidden size, Q query heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.config import ModelConfig
from sheaf_runtime.models.layers import TORCH_OPS, Attention, Linear, Ops, Output, RMSNorm, Rope

# Where the parts of a checkpoint go: its tensor's name and a view of the parameter it fills.
Target = tuple[str, Tensor]


class DecoderLayer:
    def __init__(
        self, index: int, config: ModelConfig, *, dtype: torch.dtype, device: torch.device, ops: Ops
    ) -> None:
        self._index = index
        self._heads, self._kv_heads, self._head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def linear(in_features: int, out_features: int, bias: bool) -> Linear:
            return Linear(in_features, out_features, bias=bias, dtype=dtype, device=device)

        self.input_norm = RMSNorm(hidden, config.rms_norm_eps, dtype=dtype, device=device, ops=ops)
        self.qkv = linear(hidden, q + 2 * kv, config.qkv_bias)
        self.output = linear(q, hidden, config.output_bias)
        self.mlp_norm = RMSNorm(hidden, config.rms_norm_eps, dtype=dtype, device=device, ops=ops)
        self.gate_up = linear(hidden, 2 * inner, config.mlp_bias)
        self.down = linear(inner, hidden, config.mlp_bias)
        self._swiglu = ops.swiglu

    def __call__(
        self,
        x_TC: Tensor,
        residual_TC: Tensor | None,
        cos_T1D: Tensor,
        sin_T1D: Tensor,
        attention: Attention,
    ) -> tuple[Tensor, Tensor]:
        """(x, residual) of the next layer, whose first norm adds them; the first layer has no residual."""
        heads, kv_heads = self._heads, self._kv_heads
        normed, residual_TC = self.input_norm(x_TC, residual_TC)
        qkv = self.qkv(normed).view(-1, heads + 2 * kv_heads, self._head_dim)
        q = attention.write_kv(self._index, qkv, cos_T1D, sin_T1D)
        attended = attention.attend(self._index, q).view(-1, heads * self._head_dim)
        normed, residual_TC = self.mlp_norm(self.output(attended), residual_TC)
        return self.down(self._swiglu(self.gate_up(normed))), residual_TC

    def targets(self) -> Iterator[Target]:
        prefix = f"model.layers.{self._index}."
        q, kv = self._heads * self._head_dim, self._kv_heads * self._head_dim
        assert self.down.weight is not None
        inner = self.down.weight.shape[1]
        yield prefix + "input_layernorm.weight", self.input_norm.weight
        yield prefix + "post_attention_layernorm.weight", self.mlp_norm.weight
        yield from _split(prefix + "self_attn.", self.qkv, {"q_proj": q, "k_proj": kv, "v_proj": kv})
        yield from _split(prefix + "self_attn.", self.output, {"o_proj": None})
        yield from _split(prefix + "mlp.", self.gate_up, {"gate_proj": inner, "up_proj": inner})
        yield from _split(prefix + "mlp.", self.down, {"down_proj": None})

    def pack(self) -> None:
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            linear.pack()


def _split(prefix: str, linear: Linear, rows: dict[str, int | None]) -> Iterator[Target]:
    """The checkpoint's matrices that are stacked in one ``Linear``; ``None`` rows: all of them."""
    assert linear.weight is not None
    start = 0
    for name, count in rows.items():
        stop = linear.weight.shape[0] if count is None else start + count
        yield f"{prefix}{name}.weight", linear.weight[start:stop]
        if linear.bias is not None:
            yield f"{prefix}{name}.bias", linear.bias[start:stop]
        start = stop


class Decoder:
    """Parameters are allocated but not filled; ``targets`` says what to fill them with, then ``pack``."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_position: int,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops = TORCH_OPS,
    ) -> None:
        self.config = config
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [
            DecoderLayer(i, config, dtype=dtype, device=device, ops=ops) for i in range(config.num_layers)
        ]
        self.final_norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device, ops=ops
        )
        tied = config.tie_word_embeddings
        self.output = Output(self.embedding if tied else torch.empty_like(self.embedding))
        self.rope = Rope(config.rope, config.head_dim, max_position, device)

    def forward(self, tokens_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
        """Hidden states [T, C] after the final norm; keys and values go to the pages on the way."""
        x, residual = F.embedding(tokens_T, self.embedding), None
        cos, sin = self.rope(positions_T)
        for layer in self.layers:
            x, residual = layer(x, residual, cos, sin, attention)
        return self.final_norm(x, residual)[0]

    def logits(self, hidden_RC: Tensor) -> Tensor:
        """Next-token logits [R, V] of the given rows of ``forward``'s result."""
        return self.output(hidden_RC)

    def targets(self) -> Iterator[Target]:
        yield "model.embed_tokens.weight", self.embedding
        for layer in self.layers:
            yield from layer.targets()
        yield "model.norm.weight", self.final_norm.weight
        if not self.config.tie_word_embeddings:
            yield "lm_head.weight", self.output.weight

    def ignored(self) -> tuple[str, ...]:
        """Tensors that a checkpoint may hold although this model has no place for them."""
        return ("lm_head.weight",) if self.config.tie_word_embeddings else ()

    def pack(self) -> None:
        """Call once, when every target is filled."""
        for layer in self.layers:
            layer.pack()
        self.output.pack()
