"""Windowed layers: groups of layers over one pool, and the pages that a window gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.models.config import LayerConfig
from sheaf_runtime.worker.kv_layout import kv_layout
from tiny_families import write_tiny


@pytest.mark.parametrize(
    ("windows", "groups", "tensors"),
    [
        ([None] * 3, [(0, 1, 2)], 3),
        ([9] * 3, [(0, 1, 2)], 3),
        ([9, None, 9, None], [(1, 3), (0, 2)], 2),
        ([9, 9, 9, 9, 9, None, 9], [(5,), (0,), (1,), (2,), (3,), (4,), (6,)], 1),
        ([9, 9, None] * 2, [(2, 5), (0, 1), (3, 4)], 2),
        (
            [9] * 9 + [None] * 8,
            [tuple(range(9, 17)), tuple(range(9))],
            9,
        ),  # one idle tensor, not a third group
    ],
)
def test_layers_share_tensors(windows: list[int | None], groups: list[tuple[int, ...]], tensors: int) -> None:
    layout = kv_layout(tuple(LayerConfig(window=w) for w in windows), 100)
    assert [group.layers for group in layout.groups] == groups
    assert layout.tensors == tensors
    assert {group.page_bytes for group in layout.groups} == {100 * tensors}


@given(st.lists(st.sampled_from([None, 5, 9]), min_size=1, max_size=40))
def test_no_two_layers_of_a_group_share_a_tensor(windows: list[int | None]) -> None:
    layout = kv_layout(tuple(LayerConfig(window=w) for w in windows), 1)
    assert len(set(zip(layout.group_of, layout.tensor_of, strict=True))) == len(windows)
    assert max(layout.tensor_of) < layout.tensors
    for layer, window in enumerate(windows):
        assert layout.groups[layout.group_of[layer]].window == window


@pytest.mark.parametrize("depth", [0, 1])
def test_pages_outside_the_window_are_freed(tmp_path: Path, depth: int) -> None:
    """Gemma 2's layers take turns; a request's windowed pages stay bounded while its full ones grow."""
    window, size, budget = 9, 4, 16
    folder = write_tiny(tmp_path, "gemma2", tokenizer=True, sliding_window=window, num_hidden_layers=4)
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    options: dict[str, Any] = {
        "block_size": size,
        "max_num_seqs": 4,
        "max_num_batched_tokens": budget,
        "pipeline_depth": depth,
    }
    with LLM(str(folder), num_gpu_blocks_override=200, enable_prefix_caching=False, **options) as llm:
        held: list[tuple[int, int, int]] = []
        step = llm._core.step

        def watched() -> list[object]:
            outputs = step()
            for request in llm._core.scheduler.running:
                if request.held is not None:
                    full, windowed = (sum(page != 0 for page in table) for table in request.held.tables)
                    held.append((request.computed, full, windowed))
            return outputs  # type: ignore[return-value]

        llm._core.step = watched  # type: ignore[assignment, method-assign]
        (completion,) = llm.generate([list(range(10, 80))], params)
        assert llm.stats().blocks_live == 0
    in_flight = (depth + 1) * budget
    most = -(-(window - 1 + in_flight) // size) + 1
    computed, full, windowed = held[-1]
    assert computed > 120
    assert full >= computed // size
    assert max(w for _, _, w in held) <= most
    # While decoding only the window and what is in flight is held, wherever it begins within a page.
    assert windowed <= -(-(window + depth + 1) // size) + 1
    # Exactly as many pages as one such request needs at most, and it runs all the same.
    pages = -(-130 // size) + most
    with LLM(
        str(folder),
        num_gpu_blocks_override=pages + 1,
        max_model_len=130,
        enable_prefix_caching=False,
        **options,
    ) as llm:
        assert llm.generate([list(range(10, 80))], params)[0].token_ids == completion.token_ids
