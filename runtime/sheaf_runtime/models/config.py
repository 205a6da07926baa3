"""A decoder's architecture, read from a Hugging Face folder's ``config.json`` and nothing else.

``ARCHITECTURES`` says what an architecture's name implies beyond its ``config.json``; a new family of the
same shape is a new row. Whatever would change the numbers and is not understood is refused by name, never
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

RopeKind = Literal["default", "linear", "llama3"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3")


class UnsupportedModelError(ValueError):
    """The folder is not a model that can be served; the message says what to change."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding. The last four fields matter to ``llama3`` only (``factor`` to ``linear`` too)."""

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class Architecture:
    """What a name in ``architectures`` implies. ``None``: ``config.json`` says (``attention_bias``)."""

    qkv_bias: bool | None = None
    output_bias: bool | None = None


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(),
}


@dataclass(frozen=True)
class ModelConfig:
    """One decoder. ``checkpoint_dtype`` is what the weights are stored in, as ``config.json`` says."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    checkpoint_dtype: str
    eos_token_ids: tuple[int, ...]


def load_model_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` and the end ids of ``generation_config.json``.

    Raises:
        UnsupportedModelError: no such file, or something in it that this runtime does not implement.
    """
    raw = _read_json(folder / "config.json")
    if raw is None:
        raise UnsupportedModelError(f"{folder} has no config.json: MODEL must be a Hugging Face model folder")
    generation = _read_json(folder / "generation_config.json") or {}
    return parse_model_config(raw, generation)


def parse_model_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """The pure half of ``load_model_config``."""
    row = _architecture(raw)
    _refuse_unknown(raw)
    hidden, heads = _int(raw, "hidden_size"), _int(raw, "num_attention_heads")
    kv_heads = _int(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})"
        )
    if raw.get("head_dim") is None and hidden % heads:
        raise UnsupportedModelError(
            f"hidden_size ({hidden}) is no multiple of num_attention_heads ({heads}): head_dim is needed"
        )
    head_dim = _int(raw, "head_dim", hidden // heads)
    if head_dim % 2:
        raise UnsupportedModelError(f"head_dim ({head_dim}) must be even: rotary embedding pairs channels")
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        vocab_size=_int(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_int(raw, "intermediate_size"),
        num_layers=_int(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=_int(raw, "max_position_embeddings", 2048),
        rope=_rope(raw),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias if row.qkv_bias is None else row.qkv_bias,
        output_bias=attention_bias if row.output_bias is None else row.output_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=_eos_token_ids(raw, generation),
    )


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    names = raw.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    found = ", ".join(map(str, names)) or "none named"
    raise UnsupportedModelError(
        f"unsupported architecture ({found}); config.json's `architectures` must name one of: "
        + ", ".join(ARCHITECTURES)
    )


def _refuse_unknown(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"unsupported hidden_act {activation!r}; only silu is implemented")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"the checkpoint is quantized ({method}), which is not supported; use the unquantized model"
        )


def _rope(raw: Mapping[str, Any]) -> RopeConfig:
    """transformers 5 writes ``rope_parameters``, earlier versions ``rope_theta`` and ``rope_scaling``."""
    given: dict[str, Any] = {"rope_theta": raw.get("rope_theta")}
    given |= raw.get("rope_scaling") or {}
    given |= raw.get("rope_parameters") or {}
    named = given.get("rope_type") or given.get("type") or "default"
    kind = next((known for known in ROPE_KINDS if known == named), None)
    if kind is None:
        raise UnsupportedModelError(
            f"unsupported rope type {named!r}; implemented are {', '.join(ROPE_KINDS)}"
        )
    partial = given.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise UnsupportedModelError(f"unsupported partial_rotary_factor {partial}; only 1.0 is implemented")
    required = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }.get(kind, ())
    if missing := [name for name in required if given.get(name) is None]:
        raise UnsupportedModelError(f"rope type {kind} needs {', '.join(missing)} in config.json")
    return RopeConfig(
        theta=float(given.get("rope_theta") or 10000.0),
        kind=kind,
        factor=float(given.get("factor") or 1.0),
        low_freq_factor=float(given.get("low_freq_factor") or 1.0),
        high_freq_factor=float(given.get("high_freq_factor") or 4.0),
        original_max_position=int(given.get("original_max_position_embeddings") or 8192),
    )


def _eos_token_ids(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    value = generation.get("eos_token_id")
    if value is None:
        value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id_) is int for id_ in ids):
        raise UnsupportedModelError(f"eos_token_id must be a token id or a list of them, got {value!r}")
    return tuple(ids)


def _int(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or value <= 0:
        raise UnsupportedModelError(f"config.json: {name} must be a positive integer, got {value!r}")
    return value


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} must hold a JSON object")
    return content
