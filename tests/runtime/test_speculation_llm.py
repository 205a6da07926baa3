"""Answers with drafts are those without, to the bit, on the CPU kernels: whatever is asked of the sampler, in
one batch, with the prefix cache and with preemption. Drafts come from one who knows the answers and is often
wrong, so that some are accepted and some are not in nearly every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drafted_llm import NGRAM, opened, told, with_drafts
from model_folders import byte_level, write_folder
from sheaf_runtime import SamplingParams
from sheaf_runtime.engine.cost_model import CostModel
from tiny_families import write_tiny

PROMPTS = [[7 + 5 * i % 61 for i in range(n)] for n in (1, 9, 33, 14, 14, 70)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level()
    folder = write_folder(tmp_path_factory.mktemp("speculation"), tokenizer)
    vocab_size = tokenizer.get_vocab_size() + 37  # padded, as many are
    return write_tiny(folder, "llama", head_dim=16, num_hidden_layers=2, vocab_size=vocab_size)


PARAMETERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0},
    "filtered": {"temperature": 1.3, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "logprobs": {"temperature": 0.9, "logprobs": 3},
    "greedy logprobs": {"temperature": 0.0, "logprobs": 0},
    "bias": {"temperature": 1.0, "logit_bias": {5: 3.0, 9: -100.0}},
    "allowed": {"temperature": 1.0, "allowed_token_ids": tuple(range(20, 60))},
    "penalties": {"temperature": 0.8, "frequency_penalty": 0.7, "presence_penalty": 0.2},
    "repetition": {"temperature": 0.0, "repetition_penalty": 1.3},
    "bad words": {"temperature": 0.7, "bad_words": ((30, 31), (33,), (40, 41, 42))},
    "stop ids": {"temperature": 1.0, "stop_token_ids": tuple(range(40, 52))},
    "min tokens": {"temperature": 1.0, "min_tokens": 11, "stop_token_ids": tuple(range(20, 120))},
    "short": {"temperature": 1.0, "max_tokens": 3},
}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_whatever_is_asked_of_the_sampler(folder, depth, backend):
    prompts = [prompt for prompt in PROMPTS for _ in PARAMETERS]
    params = [
        SamplingParams(**({"max_tokens": 24, "seed": i} | more))
        for i, more in enumerate(list(PARAMETERS.values()) * len(PROMPTS))
    ]
    options = {"attention_backend": backend, "pipeline_depth": depth}
    with opened(folder, **options) as plain:
        expected = plain.generate(prompts, params)
    with opened(folder, speculative_config=NGRAM, **options) as llm:
        for wrong in (0.3, 0.0):
            made = with_drafts(llm, prompts, expected, params, wrong)
            if backend == "cpu":
                assert told(made) == told(expected)
            else:  # its products round by the number of rows
                assert [c.token_ids for c in made] == [c.token_ids for c in expected]
        counters = llm._core.scheduler.counters
        assert counters.draft_tokens > sum(counters.accepted_at) > 300


@pytest.mark.parametrize("depth", [0, 1])
def test_with_preemption_and_prefix_hits(folder, depth):
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=60) for i in range(len(prompts))]
    with opened(folder) as plain:
        expected = plain.generate(prompts, params)
    small: dict[str, Any] = {"kv_cache_memory": None, "num_gpu_blocks_override": 16}
    with opened(folder, speculative_config=NGRAM, pipeline_depth=depth, **small) as llm:
        for _ in range(2):
            assert told(with_drafts(llm, prompts, expected, params, 0.3)) == told(expected)
        counters = llm._core.scheduler.counters
        assert counters.preemptions > 0
        assert counters.prefix_cache_hits > 0
        assert sum(counters.accepted_at) > 100


def test_the_ngram_proposer_by_itself(folder):
    """A random model repeats itself now and then when it is greedy."""
    params = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)
    with opened(folder) as plain:
        expected = plain.generate(PROMPTS, params)
    with opened(folder, speculative_config=NGRAM) as llm, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CostModel, "observe", lambda *_: None)
        assert told(llm.generate(PROMPTS, params)) == told(expected)
        assert sum(llm._core.scheduler.counters.accepted_at) > 10
