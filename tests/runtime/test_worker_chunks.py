"""Attention within chunks: requests cut where a chunk begins, and KV groups that keep one chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plan_driver import PlanDriver
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.worker.chunks import cut, most_pieces
from sheaf_runtime.worker.loading import load_model
from tiny_families import write_tiny
from transformers import AutoModelForCausalLM

# Tokens of a step and those before them.
requests = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=6)


@given(requests, st.sampled_from([1, 2, 4]), st.integers(1, 6))
def test_pieces_see_what_a_token_sees_within_its_chunk(
    sizes: list[tuple[int, int]], block_size: int, pages: int
) -> None:
    """By the definition: token by token, the pages and slots from the last multiple of ``chunk`` on."""
    chunk = pages * block_size
    query_start = np.cumsum([0, *(queries for queries, _ in sizes)])
    context_len = np.array([queries + before for queries, before in sizes])
    width = -(-int(context_len.max()) // block_size)
    table = np.arange(len(sizes) * width, dtype=np.int32).reshape(len(sizes), width)
    expected = [
        [table[r, p // block_size] * block_size + p % block_size for p in range(at - at % chunk, at + 1)]
        for r, (queries, before) in enumerate(sizes)
        for at in range(before, before + queries)
    ]
    starts, contexts, tables = cut(query_start, context_len, table, chunk=chunk, block_size=block_size)
    queries = np.diff(starts)
    assert (queries > 0).all()
    assert len(queries) <= most_pieces(len(sizes), int(query_start[-1]), chunk)
    seen = [
        [tables[s, p // block_size] * block_size + p % block_size for p in range(at + 1)]
        for s in range(len(queries))
        for at in range(contexts[s] - queries[s], contexts[s])
    ]
    assert seen == expected


def test_a_piece_of_one_token_behind_a_longer_one(tmp_path: Path) -> None:
    """A prompt of 17 tokens is attended for as 16 and 1, beside a decode and pieces of many tokens."""
    folder = write_tiny(tmp_path, "llama4")
    driver = PlanDriver(str(folder), num_blocks=60, block_size=4, page_seed=2, poison=True)
    short, long, longer = (driver.add([5 + i % 300 for i in range(n)]) for n in (1, 17, 50))
    driver.step([(short, 1)])
    driver.step([(long, 17), (short, 1), (longer, 50)])
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    for request in (short, long, longer):
        with torch.inference_mode():
            logits = model(torch.tensor([request.tokens[:-1]])).logits[0]
        expected = logits[len(request.prompt) - 1 :]
        torch.testing.assert_close(torch.stack(request.logits), expected, rtol=0, atol=2e-4)


def test_chunks_begin_with_a_page(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "llama4", attention_chunk_size=24)
    config = EngineConfig(model=str(folder), device="cpu")
    model = load_model(config)
    assert [group.chunk for group in model.kv_layout(8).groups] == [None, 24, 24]
    with pytest.raises(UnsupportedModelError, match=r"\(24\) is no multiple of --block-size \(16\)"):
        model.kv_layout(16)
    inside = load_model(EngineConfig(model=str(folder), device="cpu", max_model_len=24)).kv_layout(16)
    assert [(group.kind, group.layers) for group in inside.groups] == [("full", (0, 1, 2, 3, 4))]


@pytest.mark.parametrize("depth", [0, 1])
def test_pages_of_earlier_chunks_are_freed(tmp_path: Path, depth: int) -> None:
    folder = write_tiny(tmp_path, "llama4", tokenizer=True)
    chunk, size, budget = 16, 4, 12
    most = -(-(chunk - 1 + (depth + 1) * budget) // size)
    # Exactly as many as one request of 130 tokens holds at most: one full group, two of chunks.
    pages = -(-130 // size) + 2 * most
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    options: dict[str, Any] = {"block_size": size, "pipeline_depth": depth, "max_num_batched_tokens": budget}
    with LLM(str(folder), num_gpu_blocks_override=300, max_num_seqs=4, **options) as llm:
        (roomy,) = llm.generate([list(range(10, 80))], params)
    with LLM(
        str(folder), num_gpu_blocks_override=pages + 1, max_model_len=130, max_num_seqs=4, **options
    ) as llm:
        completions = llm.generate([list(range(10, 80))] * 3, params)
        assert llm.stats().blocks_live == 0
    assert [c.token_ids for c in completions] == [roomy.token_ids] * 3
