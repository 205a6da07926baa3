from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sheaf_runtime.models.config import UnsupportedModelError, load_model_config, parse_model_config
from sheaf_runtime.models.layers import rope_frequencies

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


def test_defaults_follow_hugging_face() -> None:
    config = parse_model_config(LLAMA, {})
    assert config.head_dim == 16
    assert config.rms_norm_eps == 1e-6
    assert config.rope.theta == 10000.0
    assert not config.tie_word_embeddings
    assert config.checkpoint_dtype == "float32"
    assert parse_model_config({**LLAMA, "num_key_value_heads": None}, {}).num_kv_heads == 4


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
    rope = parse_model_config({**LLAMA, **written}, {}).rope
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            r"unsupported architecture \(MambaForCausalLM\).*LlamaForCausalLM",
        ),
        ({"architectures": None}, "none named"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\).*num_key_value_heads \(3\)"),
        ({"hidden_size": 66}, "hidden_size"),
        ({"head_dim": 5}, "head_dim"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a positive integer, got '2'"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope type 'dynamic'.*default, linear, llama3",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope type linear needs factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 needs low_freq_factor, high_freq"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token id or a list of them, got 'x'"),
        ({"eos_token_id": [2, True]}, "eos_token_id must be"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized .awq."),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_model_config({**LLAMA, **change}, {})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"cannot read .*config\.json"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match="JSON object"):
        load_model_config(tmp_path)


@pytest.mark.parametrize(
    "scaling", [LLAMA3, {"rope_type": "linear", "factor": 4.0}, {"rope_type": "default"}]
)
def test_rope_frequencies_equal_transformers(scaling: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = {**LLAMA, "head_dim": 128, "rope_parameters": {**scaling, "rope_theta": 5e5}}
    theirs: Any = LlamaRotaryEmbedding(
        LlamaConfig(
            head_dim=128, hidden_size=64, num_attention_heads=4, rope_parameters=raw["rope_parameters"]
        )
    )
    ours = rope_frequencies(parse_model_config(raw, {}).rope, 128)
    torch.testing.assert_close(ours, theirs.inv_freq, rtol=1e-6, atol=0)
