from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sheaf_runtime.models.architectures import ARCHITECTURES
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.parse import load_model_config, parse_model_config, read_config
from sheaf_runtime.models.rope import RopeConfig, channel_order, rope_frequencies

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_of(raw: dict[str, Any]) -> RopeConfig:
    rope = parse_model_config(raw, {}).layers[0].rope
    assert rope is not None
    return rope


def test_defaults_follow_hugging_face() -> None:
    config = parse_model_config(LLAMA, {})
    assert config.attention.head_dim == 16
    assert config.norm_eps == 1e-6
    assert rope_of(LLAMA) == RopeConfig(rotary_dim=16, original_max_position=2048)
    assert not config.tie_word_embeddings
    assert config.checkpoint_dtype == "float32"
    assert parse_model_config({**LLAMA, "num_key_value_heads": None}, {}).attention.num_kv_heads == 4


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_old_and_new_spelling_of_dtype(key: str) -> None:
    assert parse_model_config({**LLAMA, key: "bfloat16"}, {}).checkpoint_dtype == "bfloat16"


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": None, "type": "llama3"}},
    ],
)
def test_old_and_new_spelling_of_rope(written: dict[str, Any]) -> None:
    rope = rope_of({**LLAMA, **written})
    assert (rope.kind, rope.theta, rope.factor) == ("llama3", 5e5, 8.0)
    assert (rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position) == (1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, (2,)),
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [7, 0]}, (7, 0)),
        ({"eos_token_id": None}, (2,)),
    ],
)
def test_end_ids_come_from_the_generation_config_first(
    generation: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert parse_model_config(LLAMA, generation).eos_token_ids == expected


def test_whose_generation_config_tells_the_end_is_a_flag(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    (other := tmp_path / "other").mkdir()
    (other / "generation_config.json").write_text('{"eos_token_id": 9}')
    for source, expected in (("auto", (7,)), ("vllm", (2,)), (str(other), (9,))):
        assert load_model_config(tmp_path, LLAMA, source).eos_token_ids == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            r"unsupported architecture \(MambaForCausalLM\).*LlamaForCausalLM",
        ),
        ({"architectures": None}, "none named"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'; implemented are gelu"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\).*num_key_value_heads \(3\)"),
        ({"hidden_size": 66}, "hidden_size"),
        ({"head_dim": 5}, "head_dim"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a positive integer, got '2'"),
        (
            {"rope_scaling": {"type": "xpos", "factor": 2.0}},
            "rope type 'xpos'.*default, linear, dynamic, llama3, yarn, longrope",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope type linear needs factor"),
        ({"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type longrope needs short_factor, long_factor"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}},
            "short_factor has 1 entries for 8 channel pairs",
        ),
        ({"rope_parameters": ["linear"]}, "rope_parameters must be an object"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number above 0, got '1e-5'"),
        ({"eos_token_id": 100}, "eos_token_id 100 is outside the vocabulary: ids are 0 to 99"),
        ({"eos_token_id": [2, -1]}, "eos_token_id -1 is outside the vocabulary"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 needs low_freq_factor, high_freq"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token id or a list of them, got 'x'"),
        ({"eos_token_id": [2, True]}, "eos_token_id must be"),
        ({"partial_rotary_factor": 0.5}, "Llama 2 and 3 models do not have a partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized .bitsandbytes."),
        ({"quantization_config": {"quant_method": "awq"}}, "bits is None, and only AWQ of 4 bits is"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_model_config({**LLAMA, **change}, {})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"cannot read .*config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match="JSON object"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "default"},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 16},
        {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.7, "truncate": False, "beta_slow": 2},
        {
            "rope_type": "longrope",
            "short_factor": [1.0 + i / 50 for i in range(64)],
            "long_factor": [1.0 + i for i in range(64)],
            "original_max_position_embeddings": 512,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
@pytest.mark.filterwarnings("ignore")
def test_rope_frequencies_equal_transformers(scaling: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = {**LLAMA, "head_dim": 128, "rope_parameters": {**scaling, "rope_theta": 5e5}}
    theirs: Any = LlamaRotaryEmbedding(
        LlamaConfig(
            head_dim=128, hidden_size=64, num_attention_heads=4, rope_parameters=dict(raw["rope_parameters"])
        )
    )
    ours = rope_of(raw)
    torch.testing.assert_close(rope_frequencies(ours), theirs.inv_freq, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(theirs.attention_scaling)


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "interleaved", "order"),
    [
        (8, 8, False, None),
        (8, 8, True, [0, 2, 4, 6, 1, 3, 5, 7]),
        (8, 4, False, [0, 1, 4, 5, 2, 3, 6, 7]),
        (8, 4, True, [0, 2, 4, 5, 1, 3, 6, 7]),
    ],
)
def test_channels_that_turn_together_are_half_a_head_apart(
    head_dim: int, rotary_dim: int, interleaved: bool, order: list[int] | None
) -> None:
    assert channel_order(head_dim, rotary_dim, interleaved) == order


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    """What a row says for keys that ``config.json`` may lack is what transformers' own class says."""
    import transformers

    config_class = getattr(transformers, name).config_class
    config = config_class()
    for key, value in ARCHITECTURES[name].defaults.items():
        if key == "rope_theta":
            theta = config_class.default_theta
            assert value == (theta["global"] if isinstance(theta, dict) else theta)
        elif key == "rope_local_base_freq":
            assert value == config_class.default_theta["local"]
        elif key == "partial_rotary_factor":
            assert value == config.rope_parameters.get(key, 1.0)
        elif key == "rope_scaling":
            assert value.items() <= config.rope_parameters.items()
        elif key in ("sliding_window", "no_rope_layers", "mlp_only_layers", "moe_layers"):
            # Their classes overwrite these; the written default is what a file without the key means.
            assert value in (None, config_class.sliding_window if key == "sliding_window" else None)
        else:
            assert value == getattr(config, key), key
