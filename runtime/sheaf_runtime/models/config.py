"""One frozen description of a decoder: all that its layers, its cache and its attention are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sheaf_runtime.models.packed import Format
from sheaf_runtime.models.rope import RopeConfig
from sheaf_runtime.models.schemes import PLAIN, Scheme

# rms: the quotient is rounded before it is multiplied; rms_wide: after; rms_offset: after, and the factor is
# 1 more than what is stored; layer: mean and variance.
NormKind = Literal["rms", "rms_wide", "rms_offset", "layer"]
QKNorm = Literal["head", "all", "unit"]
Scoring = Literal["softmax", "softmax_chosen", "sigmoid_input"]
Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class Sharpening:
    """The query at position p is multiplied by ``1 + weight * log(1 + (p + 1) // step)``, which keeps
    attention over a long context from blurring where positions are not embedded (arXiv 2501.19399)."""

    weight: float
    step: int


@dataclass(frozen=True)
class LayerConfig:
    """Where layers differ. ``window`` counts the tokens that one sees, itself included; ``chunk``: it sees
    those since the last multiple of it; ``rope`` None: positions are not embedded; ``sparse``: experts
    instead of one MLP."""

    window: int | None = None
    chunk: int | None = None
    rope: RopeConfig | None = None
    sharpening: Sharpening | None = None
    sparse: bool = False


@dataclass(frozen=True)
class AttentionConfig:
    """``qk_norm`` normalises queries and keys each "head" by itself, or "all" of them as one vector; "unit":
    each head, without a weight, in the layers that embed positions (Llama 4's; rotation keeps the length).

    ``softcap``: scores are ``cap * tanh(score / cap)``. ``clip``: the bound of what the projections give.
    ``sinks``: each head has a score that takes part in the softmax and adds nothing.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None = None
    sinks: bool = False
    qk_norm: QKNorm | None = None
    clip: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False


@dataclass(frozen=True)
class MLPConfig:
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where it is not ``gated``."""

    intermediate_size: int
    activation: Activation
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class ExpertsConfig:
    """``top_k`` of ``count`` MLPs a token, weighted by a "softmax" over all scores or, "softmax_chosen", over
    those chosen; ``renormalize``: so that weights add up to one. "sigmoid_input": what goes into an expert is
    multiplied by its score's sigmoid, and nothing that comes out. ``shared``: the size of one more MLP, which
    each token goes through.

    ``clamped``: (alpha, limit) of GPT-OSS's activation, whose gates and ups are interleaved; its router has a
    bias, and so have its experts.
    """

    count: int
    top_k: int
    intermediate_size: int
    renormalize: bool = False
    scoring: Scoring = "softmax"
    shared: int | None = None
    clamped: tuple[float, float] | None = None
    bias: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """What the worker must know of any decoder. ``checkpoint_dtype`` is what the weights are stored in, as
    ``config.json`` says."""

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    attention: AttentionConfig
    checkpoint_dtype: str
    eos_token_ids: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def rope_switch(self) -> int | None:
        """Prompts longer than this have other keys for the same tokens; None: all have the same."""
        switches = {layer.rope.switch for layer in self.layers if layer.rope is not None}
        return next((switch for switch in switches if switch is not None), None)


@dataclass(frozen=True)
class ModelConfig(DecoderConfig):
    """What our own decoder is built from.

    ``parallel``: attention and MLP read the same normalised input. The multipliers and ``logit_softcap`` are
    applied where they are named. ``stored`` is how the checkpoint has the linear layers.
    """

    mlp: MLPConfig
    experts: ExpertsConfig | None
    norm: NormKind
    norm_eps: float
    norm_bias: bool
    parallel: bool
    tie_word_embeddings: bool
    embedding_multiplier: float = 1.0
    round_embedding_multiplier: bool = False  # to the weights' dtype, before it is used
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    stored: Scheme | Format = PLAIN
