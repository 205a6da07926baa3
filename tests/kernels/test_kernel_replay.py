"""A step on Triton's kernels as a graph would have it: one step's launches, over the memory that they were
given then, with the contents of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plan_driver import PlanDriver
from tiny_families import write_tiny


@pytest.mark.parametrize("family", ["llama"])
def test_no_value_of_the_step_before_is_left(family: str, tmp_path: Path) -> None:
    folder = str(write_tiny(tmp_path, family, head_dim=16, num_hidden_layers=1))
    driver = PlanDriver(folder, block_size=16, num_blocks=60, attention_backend="triton", page_seed=1)
    runner = driver.runner
    one, two, three = (driver.add([9 + i] * (2 + 15 * i)) for i in range(3))
    driver.step([(request, len(request.prompt)) for request in (one, two, three)])

    first = runner.prepare(driver.plan([(one, 1), (two, 1)]))
    with torch.no_grad():
        runner.forward(first)
        runner.sample(first)()
    one.computed, two.computed = one.computed + 1, two.computed + 1
    two.tokens.append(int(first.logits_SV.argmax(-1)[1]))  # type: ignore[union-attr]

    # Other rows, pages and lengths; the buffer that the host has filled is another too.
    second = runner.prepare(driver.plan([(three, 1), (two, 1)]))
    given, begin = first.prepared.inputs, first.begin
    assert given is not None
    assert begin is not None
    with torch.no_grad():
        runner._batch.begin(second.prepared)
        begin(lambda: None)
        replayed = runner._decoder.forward(
            given.tokens_T, given.positions_T, given.prompt_lens_T, runner._attention, want="logits"
        ).logits_TV
        runner.forward(second)
    assert replayed is not None
    assert second.logits_SV is not None
    assert first.logits_SV is not None
    assert torch.equal(replayed, second.logits_SV)
    assert not torch.equal(replayed, first.logits_SV)
