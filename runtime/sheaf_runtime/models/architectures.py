"""The table of architectures: what a name in ``config.json``'s ``architectures`` implies.

A row says which parts a layer has and how the checkpoint names them, and what holds where ``config.json`` is
silent. A family of parts that exist is a new row; nothing else knows families by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sheaf_runtime.models.config import NormKind, QKNorm, Scoring

# Where windows are: on every layer if `sliding_window` is set; on the layers that `layer_types` names; on
# those too, but only if `use_sliding_window`. "chunks": chunks instead, on the layers that it names.
Windows = Literal["none", "all", "layer_types", "switched", "chunks"]
# Layers without rotary embedding: none; those that `no_rope_layers` has a 0 for; those without a window.
NoRope = Literal["none", "listed", "full_layers"]


@dataclass(frozen=True)
class Names:
    """The checkpoint's names of a layer's parts. None: a layer has no such part. One name where several
    matrices could be: they are stacked in the file too."""

    input_norm: str | None = "input_layernorm"
    attention_out_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_out_norm: str | None = None
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    # None: all experts in one tensor, `gate_up_proj`, and one `down_proj`, each matrix turned over.
    expert_gate_up: tuple[str, str] | None = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"
    shared_gate_up: tuple[str, str] = ("", "")
    shared_down: str = ""


@dataclass(frozen=True)
class Architecture:
    """``defaults`` are transformers' for keys that ``config.json`` may lack. Biases are fixed, or the key
    that decides. ``expert_size`` is the key of the experts' own size, ``dense_size`` that of other MLPs."""

    family: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: Names = Names()
    norm: NormKind = "rms"
    norm_eps: str = "rms_norm_eps"
    norm_bias: bool = False
    qk_norm: QKNorm | None = None
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    gated: bool = True
    activation: str = "hidden_act"
    parallel: bool = False
    interleaved: bool = False
    windows: Windows = "none"
    window_pattern: int = 0  # every so many layers one without a window, where `layer_types` is missing
    no_rope: NoRope = "none"
    rope_types: Mapping[Any, str] = field(default_factory=dict)  # other names of rope types
    scales_embedding: bool = False  # by the root of its size
    sinks: bool = False
    experts: Scoring | None = None
    expert_size: str = "intermediate_size"
    dense_size: str = "intermediate_size"
    shared_expert: bool = False  # of the experts' size
    renormalize: bool | str = False


_LLAMA = Architecture(
    "Llama 2 and 3",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
)
_MISTRAL = Architecture(
    "Mistral",
    windows="all",
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
)
_SANDWICH = Names(
    attention_out_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)
_GEMMA2 = Architecture(
    "Gemma 2",
    norm="rms_offset",
    scales_embedding=True,
    names=_SANDWICH,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    activation="hidden_activation",
    windows="layer_types",
    window_pattern=2,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
)
_QWEN2 = Architecture(
    "Qwen2",
    qkv_bias=True,
    windows="switched",
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
)
_QWEN3 = replace(
    _QWEN2,
    family="Qwen3",
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    defaults={**_QWEN2.defaults, "head_dim": 128},
)
_FUSED = Names(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))
_MIXTRAL_NAMES = Names(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts",
    expert_gate_up=("w1", "w3"),
    expert_down="w2",
)

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "Llama4ForCausalLM": Architecture(
        "Llama 4 (text)",
        names=Names(
            gate_up=("feed_forward.gate_proj", "feed_forward.up_proj"),
            down="feed_forward.down_proj",
            router="feed_forward.router",
            experts="feed_forward.experts",
            expert_gate_up=None,
            shared_gate_up=("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
            shared_down="feed_forward.shared_expert.down_proj",
        ),
        qk_norm="unit",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        interleaved=True,
        windows="chunks",
        no_rope="listed",
        experts="sigmoid_input",
        dense_size="intermediate_size_mlp",
        shared_expert=True,
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size_mlp": 16384,
            "rope_theta": 500000.0,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "moe_layers": None,
            "interleave_moe_layer_step": 1,
            "use_qk_norm": True,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
    ),
    "MistralForCausalLM": _MISTRAL,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": replace(
        _GEMMA2,
        family="Gemma 3 (text)",
        qk_norm="head",
        window_pattern=6,
        defaults={
            **_GEMMA2.defaults,
            "max_position_embeddings": 131072,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
        },
    ),
    "Phi3ForCausalLM": Architecture(
        "Phi-3 and 4",
        names=_FUSED,
        windows="all",
        rope_types={"su": "longrope", "yarn": "longrope"},  # as its first files call it
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "sliding_window": None,
            "partial_rotary_factor": 1.0,
        },
    ),
    "Olmo2ForCausalLM": Architecture(
        "OLMo 2",
        norm="rms_wide",
        qk_norm="all",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        names=replace(_SANDWICH, input_norm=None, mlp_norm=None),
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    ),
    "GraniteForCausalLM": replace(
        _LLAMA,
        family="Granite",
        defaults={
            **_LLAMA.defaults,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
    ),
    "SmolLM3ForCausalLM": replace(
        _LLAMA,
        family="SmolLM3",
        windows="switched",
        no_rope="listed",
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2000000.0,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "sliding_window": None,
        },
    ),
    "Cohere2ForCausalLM": Architecture(
        "Cohere 2",
        norm="layer",
        norm_eps="layer_norm_eps",
        names=Names(mlp_norm=None),
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        parallel=True,
        interleaved=True,
        windows="layer_types",
        window_pattern=4,
        no_rope="full_layers",
        defaults={
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "logit_scale": 0.0625,
            "sliding_window": 4096,
        },
    ),
    "Glm4ForCausalLM": Architecture(
        "GLM-4",
        names=Names(
            attention_out_norm="post_self_attn_layernorm",
            mlp_out_norm="post_mlp_layernorm",
            gate_up=("mlp.gate_up_proj",),
        ),
        qkv_bias="attention_bias",
        interleaved=True,
        defaults={
            "rms_norm_eps": 0.00000015625,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
        },
    ),
    "Starcoder2ForCausalLM": Architecture(
        "StarCoder 2",
        norm="layer",
        norm_eps="norm_epsilon",
        norm_bias=True,
        names=Names(gate_up=("mlp.c_fc",), down="mlp.c_proj"),
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        windows="all",
        defaults={
            "norm_epsilon": 1e-5,
            "max_position_embeddings": 4096,
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "use_bias": True,
            "sliding_window": None,
        },
    ),
    "MixtralForCausalLM": replace(
        _MISTRAL,
        family="Mixtral",
        names=_MIXTRAL_NAMES,
        experts="softmax",
        renormalize=True,
        defaults={
            **_MISTRAL.defaults,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "rope_theta": 1000000.0,
            "num_experts_per_tok": 2,
            "num_experts": 8,
        },
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "Qwen3-MoE",
        qk_norm="head",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        windows="all",
        experts="softmax",
        expert_size="moe_intermediate_size",
        renormalize="norm_topk_prob",
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
            "num_experts_per_tok": 8,
            "num_experts": 128,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
    ),
    "OlmoeForCausalLM": Architecture(
        "OLMoE",
        qk_norm="all",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        experts="softmax",
        renormalize="norm_topk_prob",
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "clip_qkv": None,
            "num_experts_per_tok": 8,
            "num_experts": 64,
            "norm_topk_prob": False,
        },
    ),
    "GptOssForCausalLM": Architecture(
        "GPT-OSS",
        norm="rms_wide",
        names=Names(router="mlp.router", expert_gate_up=None),
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        windows="layer_types",
        window_pattern=2,
        sinks=True,
        experts="softmax_chosen",
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "attention_bias": True,
            "sliding_window": 128,
            "num_experts_per_tok": 4,
            "num_experts": 128,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "rope_theta": 150000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
}
