"""The decoder: embedding, layers of attention and MLP, and the projection to the vocabulary.

One class for all families: what differs is in ``ModelConfig`` and, for the names of tensors, in the table of
architectures.

Legend: T tokens of the step, C hidden size, Q query heads, K key/value heads, N = Q + 2K, D head size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.models.architectures import ARCHITECTURES
from sheaf_runtime.models.attention import SelfAttention
from sheaf_runtime.models.config import ModelConfig
from sheaf_runtime.models.layers import (
    TORCH_OPS,
    Adaptable,
    Angles,
    Attention,
    Computed,
    Lookups,
    Ops,
    Output,
    StepAdapters,
    Target,
    Want,
)
from sheaf_runtime.models.mlp import MLP, Experts
from sheaf_runtime.models.norms import NoNorm, Norm, make_norm
from sheaf_runtime.models.rope import Rope


class DecoderLayer:
    def __init__(
        self, index: int, config: ModelConfig, *, dtype: torch.dtype, device: torch.device, ops: Ops
    ) -> None:
        names = ARCHITECTURES[config.architecture].names
        hidden = config.hidden_size

        def norm(name: str | None) -> Norm:
            if name is None:
                return NoNorm()
            return make_norm(
                config.norm,
                hidden,
                config.norm_eps,
                bias=config.norm_bias,
                dtype=dtype,
                device=device,
                ops=ops,
            )

        self._prefix = f"model.layers.{index}."
        self._names = names
        self._parallel = config.parallel
        self._multiplier = config.residual_multiplier
        self.input_norm = norm(names.input_norm)
        self.attention = SelfAttention(index, config, dtype=dtype, device=device, ops=ops)
        self.attention_out_norm = norm(names.attention_out_norm)
        self.mlp_norm = norm(names.mlp_norm)
        self.mlp: MLP | Experts
        if config.layers[index].sparse:
            assert config.experts is not None
            self.mlp = Experts(hidden, config.experts, config.mlp, dtype=dtype, device=device, ops=ops)
        else:
            self.mlp = MLP(hidden, config.mlp, dtype=dtype, device=device, ops=ops)
        self.mlp_out_norm = norm(names.mlp_out_norm)

    def __call__(
        self,
        x_TC: Tensor,
        residual_TC: Tensor | None,
        positions_T: Tensor,
        angles: Angles,
        attention: Attention,
        rows_S: Tensor | None,
        adapters: StepAdapters | None,
    ) -> tuple[Tensor, Tensor]:
        """(x, residual) of the next layer, whose first norm adds them; the first layer has no residual.
        With ``rows_S`` only of these, [S, C] each."""
        normed, residual_TC = self.input_norm(x_TC, residual_TC)
        attended = self.attention(normed, positions_T, angles, attention, rows_S, adapters)
        if rows_S is not None:
            normed, residual_TC = normed[rows_S], residual_TC[rows_S]
        if self._parallel:
            return attended + self._mlp(normed, rows_S, adapters), residual_TC
        attended = self._scaled(self.attention_out_norm(attended)[0])
        normed, residual_TC = self.mlp_norm(attended, residual_TC)
        return self._scaled(self.mlp_out_norm(self._mlp(normed, rows_S, adapters))[0]), residual_TC

    def _mlp(self, x_TC: Tensor, rows_S: Tensor | None, adapters: StepAdapters | None) -> Tensor:
        if adapters is None or not isinstance(self.mlp, MLP):
            return self.mlp(x_TC)
        return self.mlp(x_TC, adapters.tokens if rows_S is None else adapters.rows)

    def _scaled(self, x_TC: Tensor) -> Tensor:
        return x_TC if self._multiplier == 1.0 else x_TC * self._multiplier

    def _norms(self) -> Iterator[tuple[str | None, Norm]]:
        names = self._names
        yield names.input_norm, self.input_norm
        yield names.attention_out_norm, self.attention_out_norm
        yield names.mlp_norm, self.mlp_norm
        yield names.mlp_out_norm, self.mlp_out_norm

    def targets(self) -> Iterator[Target]:
        for name, norm in self._norms():
            for kind, tensor in norm.parameters().items():
                yield f"{self._prefix}{name}.{kind}", tensor
        yield from self.attention.targets(self._prefix, self._names)
        yield from self.mlp.targets(self._prefix, self._names)

    def adaptable(self) -> Iterator[Adaptable]:
        yield from self.attention.adaptable(self._prefix, self._names)
        if isinstance(self.mlp, MLP):
            yield from self.mlp.adaptable(self._prefix, self._names)

    def finish(self, ops: Ops) -> int:
        for _, norm in self._norms():
            norm.finish()
        return self.attention.finish(ops) + self.mlp.pack(ops)


class Decoder:
    """Parameters are allocated but not filled; ``targets`` says what to fill them with, then ``finish``.
    Without a ``head`` there are no logits."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops = TORCH_OPS,
        head: bool = True,
    ) -> None:
        self.config = config
        self._ops = ops
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [
            DecoderLayer(i, config, dtype=dtype, device=device, ops=ops) for i in range(config.num_layers)
        ]
        self.final_norm = make_norm(
            config.norm,
            config.hidden_size,
            config.norm_eps,
            bias=config.norm_bias,
            dtype=dtype,
            device=device,
            ops=ops,
        )
        self.output: Output | None = None
        if head:
            tied = config.tie_word_embeddings
            weight = self.embedding if tied else torch.empty_like(self.embedding)
            self.output = Output(weight, ops.head_scheme, tied=tied)
        distinct = list(dict.fromkeys(layer.rope for layer in config.layers))
        self.ropes = [Rope(rope, config.attention.head_dim, device) for rope in distinct]
        # Whether logits are what the head gives.
        self._bare = config.logit_multiplier == 1.0 and config.logit_softcap is None
        self._rope_of_layer = [distinct.index(layer.rope) for layer in config.layers]
        multiplier = torch.tensor(config.embedding_multiplier)
        self._embedding_multiplier = float(
            multiplier.to(dtype) if config.round_embedding_multiplier else multiplier.double()
        )

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        prompt_lens_T: Tensor,
        attention: Attention,
        *,
        rows_S: Tensor | None = None,
        want: Want = "hidden",
        angles: list[Angles] | None = None,
        adapters: StepAdapters | None = None,
    ) -> Computed:
        """Keys and values of all tokens go to the pages on the way; what is wanted is of ``rows_S``, or of
        all. Logits that are wanted here cost less than if they are asked for afterwards. ``prompt_lens_T`` is
        the length of each token's prompt, ``angles`` what the method of this name gives.
        """

        def layers(given: Lookups) -> Computed:
            x_TC = self._ops.take_rows(self.embedding, given.tokens_T, self._embedding_multiplier)
            residual_TC = None
            for layer, rope in zip(self.layers, self._rope_of_layer, strict=True):
                # Behind the last layer's keys and values, rows that nobody reads are not computed.
                rows_S = given.rows_S if layer is self.layers[-1] else None
                x_TC, residual_TC = layer(
                    x_TC, residual_TC, positions_T, given.angles[rope], attention, rows_S, given.adapters
                )
            hidden_TC, _ = self.final_norm(x_TC, residual_TC)
            if want == "hidden":
                return Computed(hidden_TC)
            logits_TV = self._projected(hidden_TC)
            return Computed(hidden_TC, logits_TV, self._likeliest(logits_TV, want) if self._bare else None)

        if angles is None:
            angles = self.angles(positions_T, prompt_lens_T)
        given = Lookups(tokens_T, angles, rows_S, adapters)
        made = attention.run(layers, given, want)
        if self._bare or made.logits_TV is None:
            return made
        logits_TV = self._finished(made.logits_TV)
        return Computed(made.hidden_TC, logits_TV, self._likeliest(logits_TV, want))

    def angles(self, positions_T: Tensor, prompt_lens_T: Tensor) -> list[Angles]:
        """What ``forward`` computes of these itself, unless it is given it."""
        return [rope(positions_T, prompt_lens_T) for rope in self.ropes]

    def _likeliest(self, logits_TV: Tensor, want: Want) -> npt.NDArray[np.int64] | None:
        if want != "tokens" or self._ops.likeliest is None:
            return None
        return self._ops.likeliest(logits_TV)

    def logits(self, hidden_RC: Tensor) -> Tensor:
        """Next-token logits [R, V] of the given rows of ``forward``'s result."""
        return self._finished(self._projected(hidden_RC))

    def _projected(self, hidden_RC: Tensor) -> Tensor:
        assert self.output is not None, "a decoder without a head"
        return self.output(hidden_RC)

    def _finished(self, logits_RV: Tensor) -> Tensor:
        if self.config.logit_multiplier != 1.0:
            logits_RV.mul_(self.config.logit_multiplier)
        if (cap := self.config.logit_softcap) is not None:
            logits_RV.div_(cap).tanh_().mul_(cap)
        return logits_RV

    def targets(self) -> Iterator[Target]:
        yield "model.embed_tokens.weight", self.embedding
        for layer in self.layers:
            yield from layer.targets()
        for kind, tensor in self.final_norm.parameters().items():
            yield f"model.norm.{kind}", tensor
        if self.output is not None and not self.config.tie_word_embeddings:
            assert self.output.weight is not None
            yield "lm_head.weight", self.output.weight

    def adaptable(self) -> Iterator[Adaptable]:
        """The layers to which adapters may add: all linear ones but the head, routers and experts."""
        for layer in self.layers:
            yield from layer.adaptable()

    def ignored(self) -> tuple[str, ...]:
        """Tensors that a checkpoint may hold although this model has no place for them."""
        return ("lm_head.weight",) if self.output is None or self.config.tie_word_embeddings else ()

    def finish(self) -> int:
        """Call once, when every target is filled: what is stored another way is put in order, and packed.
        Returns how many bytes fewer the weights take from then on."""
        saved = sum(layer.finish(self._ops) for layer in self.layers)
        self.final_norm.finish()
        return saved if self.output is None else saved + self.output.pack(self._ops)
