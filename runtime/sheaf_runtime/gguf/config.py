"""A GGUF file's metadata as ``config.json`` and ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sheaf_runtime.gguf.errors import GGUFError
from sheaf_runtime.gguf.reader import GGUFFile

# End tokens by their text: the file names one, chat models stop at others too.
END_TOKENS = frozenset(
    {
        "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>",
        "<|end_of_text|>", "<|return|>", "<|call|>",
    }
)  # fmt: skip
CONTROL, USER_DEFINED = 3, 4

# The file's keys (after the architecture's name) and those of config.json.
KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _nothing(_: dict[str, Any]) -> dict[str, Any]:
    return {}


def _gemma_scale(large: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The file does not say what queries are divided by: the largest model, known by its layers, differs."""

    def derive(config: dict[str, Any]) -> dict[str, Any]:
        if config["num_hidden_layers"] == large:
            return {"query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]}
        return {"query_pre_attn_scalar": config["head_dim"]}

    return derive


@dataclass(frozen=True)
class Family:
    """``interleaved``: the file's queries and keys pair neighbouring channels. ``norm_shift`` was added to
    the weights of norms. ``norms`` names a layer's norms where they are not Llama's."""

    architecture: str
    interleaved: bool = False
    norm_shift: float = 0.0
    norms: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[dict[str, Any]], dict[str, Any]] = _nothing


_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", interleaved=True),
    "granite": Family("GraniteForCausalLM", interleaved=True),
    "qwen2": Family("Qwen2ForCausalLM"),
    "qwen3": Family("Qwen3ForCausalLM"),
    "gemma2": Family("Gemma2ForCausalLM", norm_shift=1.0, norms=_GEMMA_NORMS, derived=_gemma_scale(46)),
    "gemma3": Family("Gemma3ForCausalLM", norm_shift=1.0, norms=_GEMMA_NORMS, derived=_gemma_scale(62)),
}


def family_of(file: GGUFFile) -> Family:
    """Raises ``GGUFError``."""
    name = file.metadata.get("general.architecture")
    if name not in FAMILIES or f"{name}.expert_count" in file.metadata:
        kind = f"{name} with experts" if name in FAMILIES else name
        raise GGUFError(f"{file.path} holds {kind}; GGUF files are read for {', '.join(FAMILIES)}")
    return FAMILIES[name]


def model_config(file: GGUFFile) -> dict[str, Any]:
    """``config.json``. Raises ``GGUFError``."""
    family, metadata = family_of(file), file.metadata
    prefix = metadata["general.architecture"] + "."
    config: dict[str, Any] = {
        ours: _exact(metadata[prefix + theirs])
        for theirs, ours in KEYS.items()
        if metadata.get(prefix + theirs) is not None
    }
    if missing := [k for k in ("num_hidden_layers", "hidden_size", "num_attention_heads") if k not in config]:
        raise GGUFError(f"{file.path} lacks the metadata for {', '.join(missing)}")
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config |= {
        "architectures": [family.architecture],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "torch_dtype": _dtype(file),
        **family.derived(config),
    }
    if rope := _rope(file, prefix, config):
        config["rope_parameters"] = rope
    return config


def generation_config(file: GGUFFile) -> dict[str, Any]:
    """The file's end token, and those of its control tokens that are known to end a turn."""
    metadata = file.metadata
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    types = metadata.get("tokenizer.ggml.token_type", [])
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ends += [id_ for id_, kind in enumerate(types) if kind == CONTROL and tokens[id_] in END_TOKENS]
    return {"eos_token_id": list(dict.fromkeys(id_ for id_ in ends if id_ is not None))}


def _rope(file: GGUFFile, prefix: str, config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's stretching is stored as what it makes of each frequency."""
    metadata = file.metadata
    base = {"rope_theta": config.get("rope_theta", 10000.0)}
    if (factors := file.tensors.get("rope_freqs.weight")) is not None:
        listed = np.frombuffer(file.read(factors).tobytes(), "<f4").tolist()
        return {
            **base,
            "rope_type": "longrope",
            "short_factor": listed,
            "long_factor": listed,
            "attention_factor": 1.0,
            "original_max_position_embeddings": config["max_position_embeddings"],
        }
    kind = metadata.get(prefix + "rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise GGUFError(f"{file.path} has rope scaling {kind!r}; linear and yarn can be read")
    rope = {**base, "rope_type": kind, "factor": _exact(metadata[prefix + "rope.scaling.factor"])}
    if (original := metadata.get(prefix + "rope.scaling.original_context_length")) is not None:
        rope["original_max_position_embeddings"] = original
    return rope


def _dtype(file: GGUFFile) -> str:
    """What the matrices are stored in; quantized ones are computed with as float32."""
    up = file.tensors.get("blk.0.ffn_up.weight")
    return {"F16": "float16", "BF16": "bfloat16"}.get(up.type if up else "F32", "float32")


def _exact(value: Any) -> Any:
    """A float32 as the shortest decimal that is this float32: 1e-5, not 9.99999974737875e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
