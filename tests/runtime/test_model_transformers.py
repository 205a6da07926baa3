"""Decoders without a native description: transformers' code on our pages, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plan_driver import PlanDriver
from safetensors.torch import load_file, save_file
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.models.architectures import ARCHITECTURES
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.worker.loading import load_model
from tiny_families import COMMON, FAMILIES, write_tiny
from tiny_models import tiny_tokenizer

GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256}
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
# Learned positions, other rotations, parallel layers, one key head, odd norms, shared experts, windows,
# queries that are sharpened with their position.
SERVED: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": GPT2,
    "OPTForCausalLM": {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "GPTNeoXForCausalLM": {},
    "GPTJForCausalLM": {**GPT2, "rotary_dim": 8},
    "GPTBigCodeForCausalLM": GPT2,
    "CohereForCausalLM": {"use_qk_norm": True},
    "GemmaForCausalLM": {"head_dim": 16},
    "Olmo3ForCausalLM": {"sliding_window": 9, "num_hidden_layers": 5},
    "Exaone4ForCausalLM": {"sliding_window": 9, "sliding_window_pattern": 2},
    "Ministral3ForCausalLM": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.6,
        },
    },
    "Qwen2MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "MambaForCausalLM": ({}, "MambaForCausalLM does not use transformers' attention interface"),
    "BloomForCausalLM": (
        {"n_head": 4, "n_layer": 2},
        "BloomForCausalLM does not use transformers' attention",
    ),
    "DeepseekV3ForCausalLM": (LATENT, "deepseek_v3: keys and values differ in size .latent attention."),
    "DiffLlamaForCausalLM": ({}, "diffllama: a layer attends more than once"),
    "DogeForCausalLM": ({}, "its tokens see each other otherwise than by causal attention"),
    "T5ForConditionalGeneration": (
        {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        "t5 is an encoder-decoder",
    ),
}


def write(folder: Path, architecture: str, fields: dict[str, Any]) -> Path:
    model_class: Any = getattr(transformers, architecture)
    common = {} if architecture.startswith("T5") else COMMON
    model = model_class(model_class.config_class(**{**common, **fields}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    model.save_pretrained(folder)
    tiny_tokenizer(320).save_pretrained(folder)
    return folder


@torch.inference_mode()
def expected_logits(folder: Path, prompt: list[int], output: list[int]) -> torch.Tensor:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    logits: torch.Tensor = model(torch.tensor([prompt + output])).logits[0]
    return logits[len(prompt) - 1 : -1]


def prompt(length: int) -> list[int]:
    return torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("architecture", SERVED)
def test_logits_of_chunked_prefill_and_decode(architecture: str, tmp_path: Path) -> None:
    assert architecture not in ARCHITECTURES
    folder = write(tmp_path, architecture, SERVED[architecture])
    driver = PlanDriver(str(folder), num_blocks=200, block_size=4, page_seed=1, poison=True)
    requests = [driver.add(prompt(length)) for length in (1, 7, 40)]
    driver.generate(requests, max_tokens=5, chunk=13)
    for request in requests:
        expected = expected_logits(folder, request.prompt, request.output)
        torch.testing.assert_close(torch.stack(request.logits), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", ["gemma2", "gpt-oss", "granite"])
def test_native_families_run_that_way_too(family: str, tmp_path: Path) -> None:
    """Soft caps, windows, sinks and scalings arrive through the interface; tokens equal our own decoder's."""
    folder = write_tiny(tmp_path, family, tokenizer=True)
    assert FAMILIES[family][0] in ARCHITECTURES
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompts = [prompt(length) for length in (3, 40, 18)]
    tokens = {}
    for impl in ("native", "transformers"):
        with LLM(
            str(folder),
            model_impl=impl,
            block_size=4,
            num_gpu_blocks_override=300,
            max_num_seqs=12,
            max_num_batched_tokens=24,
        ) as llm:
            tokens[impl] = [c.token_ids for c in llm.generate(prompts, params)]
            (hit,) = llm.generate([prompts[1]], params)
            assert hit.cached_tokens
            assert hit.token_ids == tokens[impl][1]
    assert tokens["native"] == tokens["transformers"]


@pytest.mark.parametrize("depth", [0, 1])
def test_greedy_tokens_of_a_batch(depth: int, tmp_path: Path) -> None:
    folder = write(tmp_path, "GPTNeoXForCausalLM", {})
    params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    prompts = [prompt(length) for length in range(1, 49, 4)]
    with LLM(
        str(folder),
        pipeline_depth=depth,
        block_size=4,
        num_gpu_blocks_override=400,
        max_num_seqs=12,
        max_num_batched_tokens=24,
    ) as llm:
        completions = llm.generate(prompts, params)
    for completion in completions:
        expected = expected_logits(folder, completion.prompt_token_ids, completion.token_ids)
        assert completion.token_ids == expected.argmax(-1).tolist()


def test_a_decoder_that_is_not_told_from_its_head_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "llama4", tokenizer=True)
    with pytest.raises(UnsupportedModelError, match="does not say which part of it is the decoder"):
        load_model(EngineConfig(model=str(folder), device="cpu", model_impl="transformers"))


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_run_on_pages_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    fields, message = REFUSED[architecture]
    folder = write(tmp_path, architecture, fields)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        load_model(EngineConfig(model=str(folder), device="cpu"))
    assert "\n" not in str(caught.value)


def test_native_means_native(tmp_path: Path) -> None:
    folder = write(tmp_path, "GPT2LMHeadModel", GPT2)
    with pytest.raises(
        UnsupportedModelError, match=r"unsupported architecture \(GPT2LMHeadModel\).*--model-impl"
    ):
        load_model(EngineConfig(model=str(folder), device="cpu", model_impl="native"))


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "GPT2LMHeadModel", GPT2)
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.ln_1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks the tensors transformer\.h\.1\.ln_1\.weight"):
        load_model(EngineConfig(model=str(folder), device="cpu"))


def test_code_of_the_folder_is_never_run(tmp_path: Path) -> None:
    config = {
        "model_type": "mine",
        "architectures": ["MineForCausalLM"],
        "auto_map": {"AutoConfig": "mine.Mine"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsupportedModelError, match="transformers cannot load the model"):
        load_model(EngineConfig(model=str(tmp_path), device="cpu"))
