"""From a Hugging Face folder's ``config.json`` to the description of its decoder, and nothing else.

Whatever would change the numbers and is not understood is refused by name, never ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib.resources.abc import Traversable
from typing import Any

from sheaf_runtime.config import generation_folder
from sheaf_runtime.models.architectures import ARCHITECTURES, Architecture
from sheaf_runtime.models.compressed import METHOD as COMPRESSED
from sheaf_runtime.models.compressed import read_compressed
from sheaf_runtime.models.config import (
    Activation,
    AttentionConfig,
    ExpertsConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    Sharpening,
)
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.packed import Format
from sheaf_runtime.models.packed_config import read_awq, read_gptq
from sheaf_runtime.models.rope import RopeConfig, parse_rope
from sheaf_runtime.models.schemes import PLAIN, Scheme

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
QUANTIZED: dict[str, Callable[[Mapping[str, Any]], Scheme | Format]] = {
    COMPRESSED: read_compressed,
    "gptq": read_gptq,
    "awq": read_awq,
}
SLIDING, FULL, CHUNKED = "sliding_attention", "full_attention", "chunked_attention"
# What some families multiply, cap or leave out; in the files of the others these keys mean nothing.
FAMILY_KEYS = frozenset(
    {
        "query_pre_attn_scalar",
        "attention_multiplier",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "embedding_multiplier",
        "residual_multiplier",
        "logit_scale",
        "logits_scaling",
        "clip_qkv",
        "use_sliding_window",
        "no_rope_layers",
        "decoder_sparse_step",
        "mlp_only_layers",
        "rope_local_base_freq",
        "use_qk_norm",
        "moe_layers",
        "interleave_moe_layer_step",
        "attention_chunk_size",
        "attn_temperature_tuning",
    }
)


def read_config(folder: Traversable) -> dict[str, Any]:
    """``config.json``. Raises ``UnsupportedModelError`` if there is none that can be read."""
    raw = read_json(folder / "config.json")
    if raw is None:
        raise UnsupportedModelError(f"{folder} has no config.json: MODEL must be a Hugging Face model folder")
    return raw


def is_native(raw: Mapping[str, Any]) -> bool:
    """Whether the table of architectures has what ``config.json`` names."""
    names = raw.get("architectures")
    return isinstance(names, list) and any(name in ARCHITECTURES for name in names)


def load_model_config(
    folder: Traversable, raw: Mapping[str, Any], generation_config: str = "auto"
) -> ModelConfig:
    """The folder's ``config.json``, and the end ids of the ``generation_config.json`` that counts.

    Raises:
        UnsupportedModelError: something in them that this runtime does not implement.
    """
    return parse_model_config(raw, read_generation_config(folder, generation_config))


def parse_model_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """The pure half of ``load_model_config``."""
    name, row = find_architecture(raw)
    raw = _completed(raw, row)
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedModelError("use_bidirectional_attention is not supported: only causal decoders are")
    hidden = _positive(raw, "hidden_size")
    attention = _attention(raw, row, hidden)
    vocab_size = _positive(raw, "vocab_size")
    experts = _experts(raw, row) if row.experts else None
    layers = _layers(raw, row, attention.head_dim)
    reach = max((layer.rope.reach for layer in layers if layer.rope is not None), default=0)
    return ModelConfig(
        architecture=name,
        vocab_size=vocab_size,
        hidden_size=hidden,
        max_position_embeddings=max(_positive(raw, "max_position_embeddings"), reach),
        layers=layers,
        attention=attention,
        mlp=MLPConfig(
            intermediate_size=_positive(raw, row.dense_size),
            activation=_activation(raw, row),
            gated=row.gated,
            bias=_flag(raw, row.mlp_bias),
        ),
        experts=experts,
        norm=row.norm,
        norm_eps=_number(raw, row.norm_eps),
        norm_bias=row.norm_bias,
        parallel=row.parallel,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=eos_token_ids(raw, generation, vocab_size),
        embedding_multiplier=(
            math.sqrt(hidden) if row.scales_embedding else _number(raw, "embedding_multiplier", 1.0)
        ),
        round_embedding_multiplier=row.scales_embedding,
        residual_multiplier=_number(raw, "residual_multiplier", 1.0),
        logit_multiplier=_number(raw, "logit_scale", 1.0) / _number(raw, "logits_scaling", 1.0),
        logit_softcap=_optional(raw, "final_logit_softcapping"),
        stored=_stored(raw, experts),
    )


def _stored(raw: Mapping[str, Any], experts: ExpertsConfig | None) -> Scheme | Format:
    quantization = raw.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if quantization is None or method not in QUANTIZED:
        refuse_quantized(raw)
        return PLAIN
    stored = QUANTIZED[method](quantization)
    if experts is not None and not isinstance(stored, Format):
        raise UnsupportedModelError(
            f"the checkpoint is quantized ({method}), which is not supported for experts; use the "
            "unquantized model"
        )
    return stored


def _completed(raw: Mapping[str, Any], row: Architecture) -> dict[str, Any]:
    """Keys of other families out, the family's defaults in, one name for what has two."""
    foreign = FAMILY_KEYS - row.defaults.keys()
    own = {key: value for key, value in raw.items() if key not in foreign}
    local = own.get("num_local_experts", row.defaults.get("num_local_experts"))
    if local is not None:
        own.setdefault("num_experts", local)
    return {**row.defaults, **own}


def find_architecture(raw: Mapping[str, Any]) -> tuple[str, Architecture]:
    names = raw.get("architectures") or []
    if not isinstance(names, list):
        raise UnsupportedModelError(f"config.json: architectures must be a list of names, got {names!r}")
    for name in names:
        if name in ARCHITECTURES:
            return name, ARCHITECTURES[name]
    found = ", ".join(map(str, names)) or "none named"
    raise UnsupportedModelError(
        f"unsupported architecture ({found}); --model-impl transformers may run it, and config.json's "
        f"`architectures` may name one of: {', '.join(ARCHITECTURES)}"
    )


def refuse_quantized(raw: Mapping[str, Any]) -> None:
    """MXFP4 weights are read and dequantized; other methods are refused."""
    quantization = raw.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
    if method != "mxfp4":
        raise UnsupportedModelError(
            f"the checkpoint is quantized ({method}), which is not supported; use the unquantized model"
        )


def _attention(raw: Mapping[str, Any], row: Architecture, hidden: int) -> AttentionConfig:
    heads = _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})"
        )
    if raw.get("head_dim") is None and hidden % heads:
        raise UnsupportedModelError(
            f"hidden_size ({hidden}) is no multiple of num_attention_heads ({heads}): head_dim is needed"
        )
    head_dim = _positive(raw, "head_dim", hidden // heads)
    if head_dim % 2:
        raise UnsupportedModelError(f"head_dim ({head_dim}) must be even: rotary embedding pairs channels")
    scale = _number(raw, "query_pre_attn_scalar", float(head_dim)) ** -0.5
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=_number(raw, "attention_multiplier", scale),
        softcap=_optional(raw, "attn_logit_softcapping"),
        sinks=row.sinks,
        qk_norm=row.qk_norm if raw.get("use_qk_norm", True) else None,
        clip=_optional(raw, "clip_qkv"),
        qkv_bias=_flag(raw, row.qkv_bias),
        output_bias=_flag(raw, row.output_bias),
    )


# --- layers -----------------------------------------------------------------------------------------------


def _layers(raw: Mapping[str, Any], row: Architecture, head_dim: int) -> tuple[LayerConfig, ...]:
    count = _positive(raw, "num_hidden_layers")
    rotates = _rotates(raw, row, count)
    types = _layer_types(raw, row, count, rotates)
    ropes = {kind: _rope(raw, row, kind, head_dim) for kind in dict.fromkeys(types)}
    window = _positive(raw, "sliding_window") if SLIDING in types else None
    chunk = _positive(raw, "attention_chunk_size") if CHUNKED in types else None
    sharpening = _sharpening(raw)
    if row.no_rope == "full_layers":
        rotates = [kind == SLIDING for kind in types]
    sparse = _sparse(raw, row, count)
    return tuple(
        LayerConfig(
            window=window if kind == SLIDING else None,
            chunk=chunk if kind == CHUNKED else None,
            rope=ropes[kind] if rotated else None,
            sharpening=None if rotated else sharpening,
            sparse=has_experts,
        )
        for kind, rotated, has_experts in zip(types, rotates, sparse, strict=True)
    )


def _layer_types(raw: Mapping[str, Any], row: Architecture, count: int, rotates: list[bool]) -> list[str]:
    windowed = row.windows != "none" and raw.get("sliding_window") is not None
    if windowed and raw.get("use_sliding_window") is False:
        windowed = False
    if row.windows in ("none", "all"):
        return [SLIDING if windowed else FULL] * count
    chunked = row.windows == "chunks"
    types = raw.get("layer_types")
    if types is None:
        if chunked:
            exists = raw.get("attention_chunk_size") is not None
            types = [CHUNKED if rotated and exists else FULL for rotated in rotates]
        elif row.no_rope == "listed":
            types = [FULL if not windowed or rotated else SLIDING for rotated in rotates]
        elif row.windows == "switched":
            first = _natural(raw, "max_window_layers")
            types = [SLIDING if windowed and i >= first else FULL for i in range(count)]
        else:
            pattern = _positive(raw, "sliding_window_pattern", row.window_pattern)
            types = [SLIDING if (i + 1) % pattern else FULL for i in range(count)]
    if not isinstance(types, list) or len(types) != count:
        raise UnsupportedModelError(f"config.json: layer_types must list {count} layers, got {types!r}")
    if unknown := [kind for kind in types if kind not in (CHUNKED if chunked else SLIDING, FULL)]:
        raise UnsupportedModelError(f"unsupported layer type {unknown[0]!r} in config.json's layer_types")
    if not windowed and SLIDING in types:
        if row.windows == "switched":  # as transformers: the switch beats the list
            return [FULL] * count
        raise UnsupportedModelError("config.json: layer_types has sliding_attention, sliding_window is null")
    return types


def _rotates(raw: Mapping[str, Any], row: Architecture, count: int) -> list[bool]:
    if row.no_rope != "listed":
        return [True] * count
    listed = raw.get("no_rope_layers")
    if listed is None or listed == []:  # as Llama 4 is published
        interval = _positive(raw, "no_rope_layer_interval")
        return [(i + 1) % interval != 0 for i in range(count)]
    if not isinstance(listed, list) or len(listed) < count:
        raise UnsupportedModelError(f"config.json: no_rope_layers must list {count} layers, got {listed!r}")
    return [bool(rotated) for rotated in listed[:count]]


def _sharpening(raw: Mapping[str, Any]) -> Sharpening | None:
    if not raw.get("attn_temperature_tuning"):
        return None
    return Sharpening(weight=_number(raw, "attn_scale"), step=_positive(raw, "floor_scale"))


def _rope(raw: Mapping[str, Any], row: Architecture, layer_type: str, head_dim: int) -> RopeConfig:
    """transformers 5 writes ``rope_parameters``, possibly one for each type of layer; earlier versions wrote
    ``rope_theta``, ``rope_scaling`` and, for windowed layers, ``rope_local_base_freq``."""
    outside = {
        "rope_theta": raw.get("rope_theta"),
        "partial_rotary_factor": raw.get("partial_rotary_factor"),
    }
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise UnsupportedModelError(f"config.json: rope_parameters must be an object, got {parameters!r}")
    if isinstance(parameters.get(layer_type), dict):
        parameters = parameters[layer_type]
    elif layer_type == SLIDING and raw.get("rope_local_base_freq") is not None:
        parameters, outside["rope_theta"] = {}, raw["rope_local_base_freq"]
    if "partial_rotary_factor" not in row.defaults and (outside["partial_rotary_factor"] or 1.0) != 1.0:
        raise UnsupportedModelError(f"{row.family} models do not have a partial_rotary_factor")
    given = outside | {key: value for key, value in parameters.items() if value is not None}
    if (original := raw.get("original_max_position_embeddings")) is not None:
        given["original_max_position_embeddings"] = original
    for key in ("type", "rope_type"):
        given[key] = row.rope_types.get(given.get(key), given.get(key))
    return parse_rope(given, head_dim=head_dim, max_position=_positive(raw, "max_position_embeddings"))


# --- MLPs -------------------------------------------------------------------------------------------------


def _experts(raw: Mapping[str, Any], row: Architecture) -> ExpertsConfig:
    count, top_k = _positive(raw, "num_experts"), _positive(raw, "num_experts_per_tok")
    if top_k > count:
        raise UnsupportedModelError(f"config.json: num_experts_per_tok ({top_k}) of {count} experts")
    assert row.experts is not None
    clamped = row.experts == "softmax_chosen"
    size = _positive(raw, row.expert_size)
    return ExpertsConfig(
        count=count,
        top_k=top_k,
        intermediate_size=size,
        renormalize=_flag(raw, row.renormalize),
        scoring=row.experts,
        shared=size if row.shared_expert else None,
        clamped=(_number(raw, "swiglu_alpha"), _number(raw, "swiglu_limit")) if clamped else None,
        bias=clamped,
    )


def _sparse(raw: Mapping[str, Any], row: Architecture, count: int) -> list[bool]:
    if row.experts is None:
        return [False] * count
    if "moe_layers" in row.defaults:
        step, listed = _positive(raw, "interleave_moe_layer_step"), raw.get("moe_layers")
        if listed is None:
            listed = range(step - 1, count, step)
        elif not isinstance(listed, list):
            raise UnsupportedModelError(f"config.json: moe_layers must be a list of layers, got {listed!r}")
        return [i in listed for i in range(count)]
    step, dense = _positive(raw, "decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    return [i not in dense and (i + 1) % step == 0 for i in range(count)]


def _activation(raw: Mapping[str, Any], row: Architecture) -> Activation:
    key = row.activation
    named = raw.get(key) or row.defaults.get(key, "silu")
    if not isinstance(named, str) or named not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"unsupported {key} {named!r}; implemented are {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[named]


# --- values -----------------------------------------------------------------------------------------------


def eos_token_ids(raw: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    value = generation.get("eos_token_id")
    if value is None:
        value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id_) is int for id_ in ids):
        raise UnsupportedModelError(f"eos_token_id must be a token id or a list of them, got {value!r}")
    if outside := [id_ for id_ in ids if not 0 <= id_ < vocab_size]:
        raise UnsupportedModelError(
            f"eos_token_id {outside[0]} is outside the vocabulary: ids are 0 to {vocab_size - 1}; correct "
            "generation_config.json or config.json"
        )
    return tuple(ids)


def _flag(raw: Mapping[str, Any], rule: bool | str) -> bool:
    return rule if isinstance(rule, bool) else bool(raw.get(rule, False))


def _positive(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if type(value) is not int or value <= 0:
        raise UnsupportedModelError(f"config.json: {name} must be a positive integer, got {value!r}")
    return value


def _natural(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if type(value) is not int or value < 0:
        raise UnsupportedModelError(f"config.json: {name} must be an integer, 0 or more, got {value!r}")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = raw.get(name)
    if value is None:
        value = default
    if type(value) not in (int, float) or value is None or not 0 < value < math.inf:
        raise UnsupportedModelError(f"config.json: {name} must be a number above 0, got {value!r}")
    return float(value)


def _optional(raw: Mapping[str, Any], name: str) -> float | None:
    return None if raw.get(name) is None else _number(raw, name)


def read_generation_config(folder: Traversable, source: str) -> dict[str, Any]:
    """``source`` is the flag ``--generation-config``."""
    chosen = generation_folder(folder, source)
    return {} if chosen is None else read_json(chosen / "generation_config.json") or {}


def read_json(path: Traversable) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} must hold a JSON object")
    return content
