"""A proposer that knows what will come and is wrong as often as it is told to be, and its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import SpeculativeConfig
from sheaf_runtime.engine.cost_model import CostModel
from sheaf_runtime.engine.llm import Completion

NGRAM = SpeculativeConfig(method="ngram", num_speculative_tokens=5, prompt_lookup_max=3, prompt_lookup_min=1)


class Foreseen:
    """``answers`` are whole token sequences, prompts included. A proposed token is wrong with the
    probability ``wrong``; behind an answer's end tokens are guessed."""

    def __init__(
        self, answers: Sequence[list[int]], wrong: float, draw: Random, vocab_size: int = 97
    ) -> None:
        self._answers, self._wrong, self._draw, self._vocab = answers, wrong, draw, vocab_size

    def follow(self, token_ids: list[int]) -> bool:
        return True

    def propose(self, token_ids: list[int], most: int) -> list[int]:
        size = len(token_ids)
        rest = next((a[size:] for a in self._answers if a[:size] == token_ids), [])
        rest = (rest + [1] * most)[:most]
        return [self._mistaken(token) if self._draw.random() < self._wrong else token for token in rest]

    def _mistaken(self, token: int) -> int:
        return (token + self._draw.randrange(1, self._vocab)) % self._vocab


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
