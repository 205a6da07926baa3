"""Every family against transformers on the same files: random weights, every odd feature switched on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import PlanDriver
from sheaf_runtime import LLM, SamplingParams
from tiny_families import FAMILIES, write_tiny
from transformers import AutoModelForCausalLM

TOLERANCE = 2e-4
MAX_TOKENS = 32


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_tiny(tmp_path_factory.mktemp(family), family, tokenizer=True)
        return made[family]

    return folder


def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def expected_logits(model: Any, prompt: list[int], output: list[int]) -> torch.Tensor:
    """transformers' logits of each token of ``output`` after those before it: [output, vocabulary]."""
    if getattr(model.config, "rope_parameters", {}).get("rope_type") == "longrope":
        # Keys keep the frequencies of the length at which they were computed: one token after the other.
        step = model(torch.tensor([prompt]), use_cache=True)
        rows = [step.logits[:, -1]]
        for token in output[:-1]:
            step = model(torch.tensor([[token]]), cache=step.cache, use_cache=True)
            rows.append(step.logits[:, -1])
        return torch.cat(rows)
    logits: torch.Tensor = model(torch.tensor([prompt + output])).logits[0]
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_chunked_prefill_and_decode(family: str, folder_of: Callable[[str], Path]) -> None:
    """Pages in any order, NaN in every slot that nobody owns."""
    folder = folder_of(family)
    driver = PlanDriver(str(folder), num_blocks=400, block_size=4, page_seed=1, poison=True)
    requests = [driver.add(prompt(length, seed=length)) for length in (1, 7, 29, 40)]
    driver.generate(requests, max_tokens=6, chunk=13)
    model = reference(folder)
    for request in requests:
        expected = expected_logits(model, request.prompt, request.output)
        torch.testing.assert_close(torch.stack(request.logits), expected, rtol=0, atol=TOLERANCE)


LENGTHS = (1, 5, 60, 16, 17, 33, 44, 2, 9, 30, 52, 21)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_a_batch_at_both_depths(family: str, folder_of: Callable[[str], Path]) -> None:
    """Twelve requests, prompts in chunks beside decodes; then a prompt whose beginning is in the cache."""
    folder = folder_of(family)
    prompts = [prompt(length, seed=length) for length in LENGTHS]
    again = prompts[2][:42] + prompt(9, seed=99)  # parts from it within a page
    model = reference(folder)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    for depth in (0, 1):
        with LLM(
            str(folder),
            pipeline_depth=depth,
            block_size=4,
            num_gpu_blocks_override=1500,
            max_num_seqs=12,
            max_num_batched_tokens=24,
        ) as llm:
            completions = llm.generate(prompts, params)
            (hit,) = llm.generate([again], params)
        assert hit.cached_tokens == 42
        for completion in [*completions, hit]:
            expected = expected_logits(model, completion.prompt_token_ids, completion.token_ids)
            assert completion.token_ids == expected.argmax(-1).tolist()
