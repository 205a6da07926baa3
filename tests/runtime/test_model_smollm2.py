"""The real model: greedy output equals transformers', alone and in a batch, at both pipeline depths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sheaf_runtime import LLM, SamplingParams

pytestmark = pytest.mark.model

MAX_TOKENS = 64
GAP = 1e-4  # where the reference's two best logits are closer than this, either may win
PARAMS = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
QUESTIONS = [
    "Hi",
    "What is the capital of France?",
    "Write a haiku about paper.",
    "Count from 1995 to 2010.",
    "def fibonacci(n):",
    "Explain in one paragraph why the sky is blue, and why it is red in the evening.",
    "Translate to German: The pages of the book are bound together.",
    "List three fruits, three vegetables and three kinds of cheese.",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Who wrote Faust?",
]


def prompts(llm: LLM) -> list[list[int]]:
    """Twenty prompts of different lengths, from one token to some hundred."""
    listed = []
    for i, question in enumerate(QUESTIONS):
        listed.append(
            llm.tokenizer.encode(question)[: 1 + 5 * i] if i % 2 else llm.tokenizer.encode(question)
        )
        chat = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        background = "Some background first. " * (i * i // 2)
        listed.append(llm.tokenizer.encode(background + chat))
    assert len(listed) == 20
    assert len({len(p) for p in listed}) >= 15
    return listed


@pytest.fixture(scope="module", params=[0, 1], ids=["depth-0", "depth-1"])
def llm(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[LLM]:
    depth = request.param
    with LLM(
        str(smollm2),
        dtype="float32",
        max_model_len=1024,
        kv_cache_memory=1 << 30,
        pipeline_depth=depth,
        enable_prefix_caching=bool(depth),
        max_num_batched_tokens=96,  # long prompts take several chunks, beside decodes
    ) as llm:
        yield llm


Reference = Callable[[list[int]], torch.Tensor]


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Reference:
    """Logits of a text's last MAX_TOKENS + 1 positions by transformers; equal texts are computed once."""
    from transformers import AutoModelForCausalLM

    (file,) = smollm2.glob("*.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, gguf_file=file.name, dtype=torch.float32)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def logits(tokens: list[int]) -> torch.Tensor:
        key = tuple(tokens)
        if key not in known:
            known[key] = model(torch.tensor([tokens]), logits_to_keep=MAX_TOKENS + 1).logits[0]
        return known[key]

    return logits


def assert_greedy(reference: Reference, prompt: list[int], output: list[int]) -> None:
    """Every token is the reference's choice after the tokens before it.

    One forward over the whole text asks the same as token-by-token generation: as long as all
    choices agree, the texts do.
    """
    assert len(output) == MAX_TOKENS
    logits = reference(prompt + output)[-MAX_TOKENS - 1 : -1]
    best = logits.max(dim=-1).values
    lost = best - logits.gather(1, torch.tensor(output)[:, None]).squeeze(1)
    assert lost.max() < GAP, (
        f"token {int(lost.argmax())} of {output} is {lost.max():.2e} below the reference's best"
    )


def test_all_at_once(llm: LLM, reference: Reference) -> None:
    listed = prompts(llm)
    for prompt, completion in zip(listed, llm.generate(listed, PARAMS), strict=True):
        assert_greedy(reference, prompt, completion.token_ids)


def test_alone(llm: LLM, reference: Reference, request: pytest.FixtureRequest) -> None:
    """Half of the prompts at each depth, to save time."""
    depth = int("depth-1" in request.node.name)
    for prompt in prompts(llm)[depth::2]:
        (completion,) = llm.generate([prompt], PARAMS)
        assert_greedy(reference, prompt, completion.token_ids)


def test_a_tiny_pool_that_forces_preemption(smollm2: Path, reference: Reference) -> None:
    with LLM(
        str(smollm2),
        dtype="float32",
        max_model_len=256,
        num_gpu_blocks_override=20,
        max_num_batched_tokens=96,
    ) as llm:
        listed = [p for p in prompts(llm) if len(p) < 60][:5]
        for prompt, completion in zip(listed, llm.generate(listed, PARAMS), strict=True):
            assert_greedy(reference, prompt, completion.token_ids)
        assert llm.stats().preemptions > 0


def test_it_answers(llm: LLM) -> None:
    chat = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    (completion,) = llm.generate(chat, SamplingParams(temperature=0.0, max_tokens=32))
    assert "Paris" in completion.text
    assert completion.finish_reason == "stop"
    assert completion.stop_reason is None  # its own end, as vLLM says it


def test_numbers_are_split_into_digits(llm: LLM) -> None:
    """The conversion keeps the original's pre-tokenizer, which transformers' GGUF import loses."""
    assert llm.tokenizer.encode("In  1984, 365.25 days\n\n2024") == [
        *(788, 256, 33, 41, 40, 36, 28, 216, 35, 38, 37, 30, 34, 37, 2009, 1116, 34, 32, 34, 36)
    ]
