"""Answers of a model whose drafts come from one who knows what it will say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from foreseen import Foreseen
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import SpeculativeConfig
from sheaf_runtime.engine.cost_model import CostModel
from sheaf_runtime.engine.llm import Completion

NGRAM = SpeculativeConfig(method="ngram", num_speculative_tokens=5, prompt_lookup_max=3, prompt_lookup_min=1)


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[LLM]:
    options = {"block_size": 16, "max_num_seqs": 8, "max_num_batched_tokens": 64} | options
    options.setdefault("kv_cache_memory", 1 << 22)
    with LLM(str(folder), dtype="float32", max_model_len=256, **options) as llm:
        yield llm


def foreseen(llm: LLM, answers: list[list[int]], wrong: float) -> None:
    speculation = llm._core.scheduler.speculation
    assert speculation is not None
    draw = Random(4)
    speculation.make_proposer = lambda: Foreseen(answers, wrong, draw, 200)


def with_drafts(
    llm: LLM,
    prompts: list[list[int]],
    expected: list[Completion],
    params: list[SamplingParams],
    wrong: float,
    **options: Any,
) -> list[Completion]:
    """Seconds are not looked at, so that drafts are computed whatever they cost."""
    foreseen(llm, [p + c.token_ids for p, c in zip(prompts, expected, strict=True)], wrong)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CostModel, "observe", lambda *_: None)
        return llm.generate(prompts, params, **options)


def told(completions: list[Completion]) -> list[Any]:
    return [(c.token_ids, c.text, c.finish_reason, c.stop_reason, c.logprobs) for c in completions]
