"""A random tiny model of each family, written by transformers, every odd feature of it switched on.

Each entry is ``(architecture, fields of its config)``. Contexts of the tests are longer than the windows, and
the numbers that a family multiplies with are far from one, so that a forgotten one shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import tiny_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama-bias": (
        "LlamaForCausalLM",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 20, "rope_parameters": LINEAR},
    ),
    "llama-dynamic": ("LlamaForCausalLM", {"rope_parameters": DYNAMIC, "num_attention_heads": 6}),
    "llama4": (
        "Llama4ForCausalLM",
        {
            "head_dim": 16,
            "num_hidden_layers": 5,
            "no_rope_layers": [1, 1, 0, 1, 0],
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 72,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "attention_chunk_size": 16,
            "floor_scale": 7,
            "attn_scale": 0.6,
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": 9, "head_dim": 16}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "rope_parameters": YARN},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 30,
            "sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 30,
            "sliding_window": 9,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 11}),
    "phi4": (
        "Phi3ForCausalLM",
        {
            "partial_rotary_factor": 0.67,
            "original_max_position_embeddings": 32,
            "rope_parameters": LONGROPE,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {"num_key_value_heads": 4}),
    "granite": (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.7,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.11,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "smollm3": ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}),
    "smollm3-window": (
        "SmolLM3ForCausalLM",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 9},
    ),
    "cohere2": (
        "Cohere2ForCausalLM",
        {"sliding_window": 9, "num_hidden_layers": 5, "logit_scale": 0.3, "attention_bias": True},
    ),
    "glm4": ("Glm4ForCausalLM", {"head_dim": 16}),
    "starcoder2": ("Starcoder2ForCausalLM", {"sliding_window": 9}),
    "mixtral": (
        "MixtralForCausalLM",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 9},
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 6, "num_experts_per_tok": 3, "clip_qkv": 0.8}),
    "gpt-oss": (
        "GptOssForCausalLM",
        {
            "head_dim": 16,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 9,
            "swiglu_limit": 1.0,
            "rope_parameters": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        },
    ),
}


def write_tiny(
    folder: Path, family: str, *, seed: int = 0, tokenizer: bool = False, **overrides: Any
) -> Path:
    """Write a folder of this family; ``overrides`` replace fields of its config."""
    architecture, fields = FAMILIES[family]
    model_class: Any = getattr(transformers, architecture)
    config = model_class.config_class(**{**COMMON, **fields, **overrides})
    torch.manual_seed(seed)
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                centre = 0.0 if architecture.startswith("Gemma") else 1.0
                parameter.copy_(centre + 0.2 * noise)
            else:
                parameter.copy_(0.2 * noise)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=[2, 0])
    model.save_pretrained(folder, max_shard_size="40KB")
    if tokenizer:
        tiny_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder
