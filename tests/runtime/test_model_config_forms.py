"""Configurations as people have them, each from a public report of another engine that read it wrongly."""

from __future__ import annotations

from typing import Any

import pytest
from sheaf_runtime.models.config import ModelConfig, Sharpening
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.overrides import overridden
from sheaf_runtime.models.parse import parse_model_config

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def parse(architecture: str, **fields: Any) -> ModelConfig:
    return parse_model_config({"architectures": [architecture], **SIZES, **fields}, {})


def windows(config: ModelConfig) -> list[int | None]:
    return [layer.window for layer in config.layers]


def test_a_window_that_is_null_is_none() -> None:
    """axolotl-ai-cloud/axolotl#1047, ModelTC/LightLLM#273: without the key 4096 holds."""
    assert windows(parse("MistralForCausalLM", sliding_window=None)) == [None] * 6
    assert windows(parse("MistralForCausalLM")) == [4096] * 6


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"use_sliding_window": False, "max_window_layers": 2}, [None] * 6),
        ({"use_sliding_window": True, "max_window_layers": 6}, [None] * 6),
        ({"use_sliding_window": True, "max_window_layers": 4}, [None] * 4 + [32] * 2),
        ({"use_sliding_window": False, "layer_types": ["sliding_attention"] * 6}, [None] * 6),
    ],
)
def test_qwens_switch_and_first_windowed_layer(fields: dict[str, Any], expected: list[int | None]) -> None:
    """vllm-project/vllm#17772, huggingface/transformers#40126."""
    assert windows(parse("Qwen2ForCausalLM", sliding_window=32, **fields)) == expected


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 8.0},  # huggingface/transformers#32167
        {"rope_type": "linear", "factor": 8.0},  # vllm-project/vllm#9481
        {"type": "linear", "rope_type": "linear", "factor": 8},
    ],
)
def test_either_name_of_the_rope_type(scaling: dict[str, Any]) -> None:
    rope = parse("LlamaForCausalLM", rope_scaling=scaling, rope_theta=1e5).layers[0].rope
    assert rope is not None
    assert (rope.kind, rope.factor, rope.theta) == ("linear", 8.0, 1e5)


def test_a_factor_without_a_type_is_refused() -> None:
    """runpod-workers/worker-vllm#257."""
    with pytest.raises(UnsupportedModelError, match=r"by the factor 2\.0, and no rope_type says how"):
        parse("LlamaForCausalLM", rope_scaling={"factor": 2.0})
    assert parse("LlamaForCausalLM", rope_scaling={}) == parse("LlamaForCausalLM", rope_scaling=None)


@pytest.mark.parametrize(
    ("overrides", "kind", "theta", "factor"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "linear", 5e5, 4.0),
        ({"rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 7.0}}, "linear", 7.0, 4.0),
        ({"rope_theta": 1e6}, "linear", 1e6, 2.0),
        ({"rope_scaling": None}, "default", 5e5, 1.0),
        ({"rope_parameters": {"rope_theta": 9.0}}, "default", 9.0, 1.0),
    ],
)
def test_overrides_in_older_words_beat_the_newer_ones_of_the_file(
    overrides: dict[str, Any], kind: str, theta: float, factor: float
) -> None:
    """sgl-project/sglang#22739: as Qwen's model cards say to have YaRN, on a file by transformers 5."""
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    raw = {"architectures": ["Qwen3ForCausalLM"], **SIZES, "rope_parameters": parameters}
    rope = parse_model_config(overridden(raw, overrides), {}).layers[0].rope
    assert rope is not None
    assert (rope.kind, rope.theta, rope.factor) == (kind, theta, factor)


def test_overrides_in_older_words_cannot_tell_types_of_layers_apart() -> None:
    raw = {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}
    with pytest.raises(UnsupportedModelError, match=r"--hf-overrides: rope_theta: .*override rope_p"):
        overridden(raw, {"rope_theta": 2.0})


def test_sizes_that_are_null_follow_from_others() -> None:
    """llm-d/llm-d-benchmark#426, modular/modular#6665: in published files, and transformers reads them."""
    attention = parse("MixtralForCausalLM", head_dim=None, num_key_value_heads=None).attention
    assert (attention.head_dim, attention.num_kv_heads) == (16, 4)


def test_yarn_that_was_added_to_a_config_of_the_first_length() -> None:
    """vllm-project/vllm#4930, huggingface/open-r1#645: as Qwen's model cards say."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    linear = {"type": "linear", "factor": 4.0}
    for scaling, length, expected in ((yarn, 1024, 4096), (yarn, 4096, 4096), (linear, 1024, 1024)):
        config = parse("Qwen2ForCausalLM", rope_scaling=scaling, max_position_embeddings=length)
        assert config.max_position_embeddings == expected


SHARP = Sharpening(weight=0.1, step=8192)


@pytest.mark.parametrize(
    ("fields", "chunks", "sharpened"),
    [
        ({"no_rope_layers": []}, [8192, 8192, 8192, None, 8192, 8192], [None] * 3 + [SHARP, None, None]),
        ({"attention_chunk_size": None}, [None] * 6, [None] * 3 + [SHARP, None, None]),
        ({"layer_types": ["full_attention"] * 6}, [None] * 6, [None] * 3 + [SHARP, None, None]),
        ({"no_rope_layers": [1] * 6, "attention_chunk_size": 64}, [64] * 6, [None] * 6),
        (
            {"no_rope_layers": [0, 1] * 3, "floor_scale": 512, "attn_scale": 0.2},
            [None, 8192] * 3,
            [Sharpening(weight=0.2, step=512), None] * 3,
        ),
        ({"attn_temperature_tuning": False}, [8192, 8192, 8192, None, 8192, 8192], [None] * 6),
    ],
)
def test_llama_4s_chunks_and_sharpened_queries(
    fields: dict[str, Any], chunks: list[int | None], sharpened: list[Sharpening | None]
) -> None:
    """huggingface/transformers#37351; an empty ``no_rope_layers`` is how Scout is published."""
    config = parse("Llama4ForCausalLM", **fields)
    assert config.max_position_embeddings == 4096
    assert [layer.chunk for layer in config.layers] == chunks
    assert [layer.sharpening for layer in config.layers] == sharpened


def test_layers_that_llama_4_does_not_have() -> None:
    with pytest.raises(UnsupportedModelError, match="unsupported layer type 'sliding_attention'"):
        parse("Llama4ForCausalLM", layer_types=["sliding_attention"] * 6, sliding_window=8)
    with pytest.raises(UnsupportedModelError, match="attention_chunk_size must be a positive integer"):
        parse("Llama4ForCausalLM", attention_chunk_size=0)
    with pytest.raises(UnsupportedModelError, match="unsupported layer type 'chunked_attention'"):
        parse("Qwen2ForCausalLM", layer_types=["chunked_attention"] * 6, attention_chunk_size=8)


def test_the_layers_of_llama_4_that_have_experts() -> None:
    for fields, sparse in (
        ({}, [True] * 6),
        ({"interleave_moe_layer_step": 2}, [False, True] * 3),
        ({"moe_layers": [0, 5]}, [True, False, False, False, False, True]),
    ):
        assert [layer.sparse for layer in parse("Llama4ForCausalLM", **fields).layers] == sparse
    with pytest.raises(UnsupportedModelError, match="moe_layers must be a list"):
        parse("Llama4ForCausalLM", moe_layers=3)


def test_gemma_3s_old_and_new_rope() -> None:
    """runpod-workers/worker-vllm#257: one rope for windowed layers, one for full ones, in two spellings."""
    old = parse(
        "Gemma3ForCausalLM",
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=3,
    )
    new = parse(
        "Gemma3ForCausalLM",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )
    assert old == new
    assert [layer.rope.factor for layer in old.layers if layer.rope] == [1.0, 1.0, 8.0] * 2


def test_phi_3s_first_name_of_longrope() -> None:
    """Its files say "su"; the length before stretching is beside the scaling, not in it."""
    factors = [1.0] * 8
    config = parse(
        "Phi3ForCausalLM",
        original_max_position_embeddings=1024,
        rope_scaling={"type": "su", "short_factor": factors, "long_factor": factors},
    )
    assert config.rope_switch == 1024


def test_a_multimodal_rope_is_refused_by_name() -> None:
    """vllm-project/vllm#8388."""
    with pytest.raises(UnsupportedModelError, match="unsupported rope type 'mrope'"):
        parse("Qwen2ForCausalLM", rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]})


def test_keys_of_other_families_mean_nothing() -> None:
    """Fine-tuning tools leave them behind; transformers' class of this family does not read them."""
    plain = parse("LlamaForCausalLM")
    assert parse("LlamaForCausalLM", logit_scale=0.5, clip_qkv=1.0, use_sliding_window=True) == plain


@pytest.mark.parametrize(("architecture", "tied"), [("Gemma2ForCausalLM", True), ("LlamaForCausalLM", False)])
def test_a_family_ties_by_default_or_not(architecture: str, tied: bool) -> None:
    """vllm-project/vllm#5621, sgl-project/sglang#1508: files of tied families lack the key."""
    assert parse(architecture).tie_word_embeddings is tied
