"""Tiny GGUF files, written by ggml's own library from a folder that transformers wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.torch import load_file

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
ARCHITECTURES |= {
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "GraniteForCausalLM": "granite",
}


def write_gguf(folder: Path, path: Path, kind: str = "F32", **metadata: Any) -> Path:
    """``folder``'s model and byte-level tokenizer; matrices as ``kind``, norms and biases as F32."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    writer.add_rope_freq_base(whole.get("rope_theta", 10000.0))
    if whole.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(whole["factor"])
    if arch.startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    _add_tokenizer(writer, folder)
    _add_tensors(writer, folder, config, arch, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def _add_tensors(writer: Any, folder: Path, config: dict[str, Any], arch: str, kind: str) -> None:
    count = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), count)
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            array = tensor.float().numpy()
            if arch in ("llama", "granite"):
                if "q_proj" in name:
                    array = permuted(array, config["num_attention_heads"])
                elif "k_proj" in name:
                    array = permuted(array, config["num_key_value_heads"])
            if arch.startswith("gemma") and name.endswith("norm.weight"):
                array = array + 1
            stem, _, suffix = name.rpartition(".")
            to = f"{names.get_name(stem)}.{suffix}"
            wanted = kind if array.ndim > 1 else "F32"
            data = quantize(array, gguf.GGMLQuantizationType[wanted])
            writer.add_tensor(to, data, raw_dtype=gguf.GGMLQuantizationType[wanted])


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes queries and keys: channels that turn together beside each other."""
    pairs = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
