"""Embeddings and scores against transformers' hidden states and logits, however steps are cut and mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sheaf_runtime import LLM
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams
from tiny_families import write_tiny
from tiny_pooling import write_embedder, write_json, write_scorer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

TOLERANCE = 5e-5
LENGTHS = (1, 5, 60, 16, 17, 33, 44, 2, 9, 30, 52, 21)
OPTIONS: dict[str, Any] = {"block_size": 4, "num_gpu_blocks_override": 400, "max_num_seqs": 5}


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [prompt(length, seed=length) for length in LENGTHS]


@torch.inference_mode()
def expected(folder: Path, mode: str, *, normalize: bool = True, size: int | None = None) -> torch.Tensor:
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rows = []
    for ids in PROMPTS:
        states = model(torch.tensor([ids])).last_hidden_state[0]
        rows.append((states[-1] if mode == "last" else states.mean(0))[:size])
    made = torch.stack(rows)
    return F.normalize(made, dim=-1) if normalize else made


def close(got: list[list[float]], want: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(torch.tensor(got), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi4", "qwen3-moe"])
@pytest.mark.parametrize("mode", ["last", "mean"])
def test_embeddings_however_steps_are_cut(tmp_path: Path, family: str, mode: str) -> None:
    """More prompts than seats; twice, so that the second time finds pages, or must not."""
    folder = write_embedder(tmp_path, family, mode="lasttoken" if mode == "last" else "mean_tokens")
    want = expected(folder, mode)
    for depth, budget in ((0, 7), (1, 64), (1, 5)):
        with LLM(str(folder), pipeline_depth=depth, max_num_batched_tokens=budget, **OPTIONS) as llm:
            close(llm.embed(PROMPTS), want)
            computed = llm.stats().prefix_cache_hits
            close(llm.embed(PROMPTS), want)
            hits = llm.stats().prefix_cache_hits - computed
            assert (hits > 0) == (mode == "last"), "a mean needs each position's hidden state"


@pytest.mark.parametrize("mode", ["last", "mean"])
def test_preempted_prompts_start_over(tmp_path: Path, mode: str) -> None:
    """A pool that holds little more than the longest prompt."""
    folder = write_embedder(tmp_path, mode="lasttoken" if mode == "last" else "mean_tokens")
    options = {**OPTIONS, "num_gpu_blocks_override": 18, "max_num_partial_prefills": 3}
    with LLM(str(folder), max_num_batched_tokens=9, **options) as llm:
        close(llm.embed(PROMPTS), expected(folder, mode))


def test_a_folder_without_head_and_without_normalisation(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path, headless=True, normalize=False)
    with LLM(str(folder), **OPTIONS) as llm:
        close(llm.embed(PROMPTS), expected(folder, "last", normalize=False))


@pytest.mark.parametrize("implementation", ["native", "transformers"])
def test_any_decoder_by_flag(tmp_path: Path, implementation: str) -> None:
    folder = write_tiny(tmp_path, "llama", tokenizer=True)
    flags = {"convert": "embed", "model_impl": implementation, **OPTIONS}
    with LLM(str(folder), **flags) as llm:
        close(llm.embed(PROMPTS), expected(folder, "last"))
        with pytest.raises(ValueError, match="generates no text"):
            llm.generate([[5, 6]], SamplingParams(max_tokens=1))


def test_a_generating_model_embeds_nothing(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "llama", tokenizer=True)
    with LLM(str(folder), **OPTIONS) as llm, pytest.raises(ValueError, match="makes no embeddings"):
        llm.embed([[5, 6]])


def test_bfloat16_stays_close_and_alone_is_as_in_a_batch(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path, mode="mean_tokens")
    with LLM(str(folder), dtype="bfloat16", **OPTIONS) as llm:
        together = llm.embed(PROMPTS)
        alone = [llm.embed([ids])[0] for ids in PROMPTS]
    close(together, expected(folder, "mean"), tolerance=0.06)
    close(together, torch.tensor(alone), tolerance=0.02)


def test_dimensions_are_cut_before_the_length_is_made_one(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path)
    with LLM(str(folder), **OPTIONS) as llm:
        close(llm.embed(PROMPTS, PoolingParams(dimensions=7)), expected(folder, "last", size=7))
        raw = llm.embed(PROMPTS, PoolingParams(activate=False))
        close(raw, expected(folder, "last", normalize=False))
        with pytest.raises(ValueError, match="dimensions must be from 1 to 48"):
            llm.embed(PROMPTS, PoolingParams(dimensions=49))


def test_the_whole_context_is_taken_and_no_token_more(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path)
    with LLM(str(folder), max_model_len=60, **OPTIONS) as llm:
        llm.embed([prompt(60, seed=1)])
        with pytest.raises(ValueError, match=r"context length is 60 tokens\. However, the prompt has 61"):
            llm.embed([prompt(61, seed=1)])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
def test_score_heads(tmp_path: Path, family: str) -> None:
    folder = write_scorer(tmp_path, family)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = torch.cat([model(torch.tensor([ids])).logits for ids in PROMPTS])
    with LLM(str(folder), max_num_batched_tokens=11, **OPTIONS) as llm:
        close(llm.embed(PROMPTS), logits.sigmoid())
        close(llm.embed(PROMPTS, PoolingParams(activate=False)), logits)


@pytest.mark.parametrize("form", ["module", "tokens", "one token"])
def test_logits_of_yes_and_no(tmp_path: Path, form: str) -> None:
    """As sentence-transformers tells it, and as vLLM's --hf-overrides do."""
    folder = write_tiny(tmp_path, "qwen3", tokenizer=True)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    no, yes = vocabulary["a"], vocabulary["b"]
    flags: dict[str, Any] = {}
    if form == "module":
        kinds = ["base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore"]
        paths = ["", "1_LogitScore"]
        write_json(
            folder / "modules.json",
            [{"path": p, "type": f"sentence_transformers.{k}"} for p, k in zip(paths, kinds, strict=True)],
        )
        write_json(folder / "1_LogitScore" / "config.json", {"true_token_id": yes, "false_token_id": no})
    else:
        tokens = ["a", "b"] if form == "tokens" else ["b"]
        flags["hf_overrides"] = {
            "architectures": ["Qwen3ForSequenceClassification"],
            "classifier_from_token": tokens,
        }
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in PROMPTS])
    want = logits[:, yes : yes + 1] - (logits[:, no : no + 1] if form != "one token" else 0)
    with LLM(str(folder), max_num_batched_tokens=11, **flags, **OPTIONS) as llm:
        close(llm.embed(PROMPTS), want.sigmoid())


def test_states_that_are_no_numbers_fail_alone(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path)
    with LLM(str(folder), **OPTIONS) as llm:
        llm._executor._running()._decoder.embedding[7] = torch.nan  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="not numbers"):
            llm.embed([[5, 7, 9]])
        assert len(llm.embed([[5, 6, 9]])[0]) == 48
