"""Our decoder on pages against transformers' on the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plan_driver import Active, PlanDriver

TOLERANCE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "multi-head": {"num_key_value_heads": 4},
    "gqa-2": {"num_key_value_heads": 2},
    "gqa-3": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72},
    "gqa-8": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "odd-vocabulary": {"vocab_size": 331},
    "wide-heads": {"head_dim": 32},
    "narrow-heads": {"head_dim": 6},
    "rope-llama3": {"rope_parameters": LLAMA3},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "epsilon": {"rms_norm_eps": 0.1},
    "one-layer": {"num_hidden_layers": 1},
}


def reference_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def prompt(length: int, seed: int, vocab: int = 320) -> list[int]:
    return torch.randint(3, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_same_logits(folder: Path, request: Active) -> None:
    expected = reference_logits(folder, request.tokens)
    first = len(request.prompt) - 1
    actual = torch.stack(request.logits)
    torch.testing.assert_close(actual, expected[first : first + len(actual)], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_chunked_prefill_and_decode(variant: str, tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama(**VARIANTS[variant])
    driver = PlanDriver(str(folder), block_size=4, page_seed=1, poison=True)
    requests = [driver.add(prompt(length, seed=length)) for length in (1, 7, 40, 33)]
    driver.generate(requests, max_tokens=8, chunk=13)
    for request in requests:
        assert_same_logits(folder, request)


@pytest.mark.parametrize("block_size", [1, 3, 16, 32])
def test_any_block_size(block_size: int, tiny_llama: Callable[..., Path]) -> None:
    driver = PlanDriver(str(tiny_llama()), block_size=block_size, page_seed=2, poison=True)
    requests = [driver.add(prompt(length, seed=length)) for length in (5, 31)]
    driver.generate(requests, max_tokens=5)
    for request in requests:
        assert_same_logits(tiny_llama(), request)


def test_pages_and_neighbours_change_nothing(tiny_llama: Callable[..., Path]) -> None:
    """Page order, stale memory and what else is in the batch are invisible, down to rounding."""
    folder = str(tiny_llama())
    prompts = [prompt(length, seed=length) for length in (3, 90, 18, 64, 1, 17)]
    together = []
    for page_seed, poison in ((None, False), (5, True), (6, True)):
        driver = PlanDriver(folder, block_size=8, page_seed=page_seed, poison=poison)
        requests = [driver.add(p) for p in prompts]
        driver.generate(requests, max_tokens=20, chunk=11)
        together.append([(r.output, torch.stack(r.logits)) for r in requests])
    for i, p in enumerate(prompts):
        driver = PlanDriver(folder, block_size=8, poison=True)
        alone = driver.add(p)
        driver.generate([alone], max_tokens=20)
        for run in together:
            assert run[i][0] == alone.output
            torch.testing.assert_close(run[i][1], torch.stack(alone.logits), rtol=0, atol=TOLERANCE)


def test_rows_and_pages_are_reused(tiny_llama: Callable[..., Path]) -> None:
    """Requests come and go through two rows and few pages; late ones are as right as early ones."""
    driver = PlanDriver(
        str(tiny_llama()), block_size=4, num_blocks=30, max_num_seqs=2, poison=True, page_seed=3
    )
    running = [driver.add(prompt(30, seed=0)), driver.add(prompt(3, seed=1))]
    for seed in range(2, 8):
        driver.generate(running, max_tokens=6, chunk=9)
        assert_same_logits(tiny_llama(), running[0])
        driver.end(running.pop(0))
        running.append(driver.add(prompt(5 * seed, seed=seed)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.2), ("float16", 0.05)])
def test_half_precision(dtype: str, tolerance: float, tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama()
    driver = PlanDriver(str(folder), block_size=4, page_seed=1, poison=True, dtype=dtype)
    requests = [driver.add(prompt(length, seed=length)) for length in (7, 40)]
    driver.generate(requests, max_tokens=4, chunk=13)
    for request in requests:
        expected = reference_logits(folder, request.tokens)[len(request.prompt) - 1 : -1]
        error = (torch.stack(request.logits).float() - expected).abs().mean() / expected.std()
        assert error < tolerance
