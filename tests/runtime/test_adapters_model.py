"""Adapters beside peft: each request of a mixed batch gets what peft makes of its prompt."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import Active, PlanDriver
from sheaf_runtime.worker.cpu_backend import CpuAttention
from tiny_adapters import reference, with_adapter, write_adapter
from tiny_families import write_tiny

SHAPE = {"head_dim": 16, "num_hidden_layers": 2}
PROMPTS = [[7 + 5 * i % 211 for i in range(n)] for n in (23, 5, 40, 17)]
ADAPTERS: list[dict[str, Any]] = [
    {},
    {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {
        "target_modules": r".*\.(k_proj|o_proj|up_proj|gate_proj)",
        "rank_pattern": {"o_proj": 2, r"layers\.0\.self_attn\.k_proj": 7},
        "alpha_pattern": {"up_proj": 3},
    },
]


def driver_of(model: Path, adapters: list[Path], **options: Any) -> PlanDriver:
    options = {"block_size": 16, "enable_lora": True, "max_loras": 3} | options
    driver = PlanDriver(str(model), **options)
    assert driver.model.adapters is not None
    for id_, path in enumerate(adapters, 1):
        driver.model.adapters.load(id_, str(path))
    return driver


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("chunk", [1000, 6])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "cohere2"])
def test_each_request_of_a_mixed_batch_is_peft(family: str, chunk: int, backend: str, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", family, **SHAPE)
    changes = ADAPTERS if family != "phi3" else [{"target_modules": ["qkv_proj", "o_proj", "gate_up_proj"]}]
    adapters = [write_adapter(tmp_path / str(i), model, seed=i, **change) for i, change in enumerate(changes)]
    driver = driver_of(model, adapters, attention_backend=backend)
    owners = [None, *range(1, len(adapters) + 1)]
    requests = [driver.add(prompt, adapter=own) for prompt, own in zip(PROMPTS, owners, strict=False)]
    driver.generate(requests, 6, chunk=chunk)
    for request in requests:
        own = None if request.adapter is None else adapters[request.adapter - 1]
        tokens, logits = reference(with_adapter(model, own), request.prompt, 6)
        assert request.output == tokens
        torch.testing.assert_close(torch.stack(request.logits), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_have_the_same_bits_in_any_company(dtype: str, tmp_path: Path) -> None:
    """Of the model itself and of each adapter: beside any others, in any chunks, after preemption."""
    model = write_tiny(tmp_path / "model", "qwen2", **SHAPE)
    adapters = [write_adapter(tmp_path / str(i), model, seed=i, **c) for i, c in enumerate(ADAPTERS)]
    options: dict[str, Any] = {"attention_backend": "cpu", "dtype": dtype, "batch_invariant": True}
    expected = {}
    for own in (None, 1, 2, 3):
        alone = driver_of(model, adapters, **options)
        request = alone.add(PROMPTS[2], adapter=own)
        alone.generate([request], 6)
        expected[own] = torch.stack(request.logits)
    draw = random.Random(dtype)
    driver = driver_of(model, adapters, num_blocks=160, page_seed=3, poison=True, **options)
    mine = [driver.add(PROMPTS[2], adapter=own) for own in (None, 1, 2, 3)]
    prompts = [[draw.randrange(3, 200) for _ in range(draw.randrange(1, 60))] for _ in range(6)]
    others = [driver.add(prompt, adapter=draw.choice([None, 1, 3])) for prompt in prompts]
    again: Active | None = None
    while any(len(request.logits) < 6 for request in mine):
        if len(mine[1].logits) == 3 and again is None:  # preempted
            again = mine[1]
            driver.end(again)
            mine[1] = driver.add(again.tokens, adapter=1)
            mine[1].logits = again.logits
        some = [r for r in mine if len(r.logits) < 6] + draw.sample(others, draw.randrange(len(others)))
        some = [r for r in some if len(r.tokens) < 120 and draw.random() < 0.8]
        draw.shuffle(some)
        if some:
            driver.step([(r, min(draw.choice([1, 2, 17, 40]), len(r.tokens) - r.computed)) for r in some])
    assert again is not None
    for request in mine:
        assert torch.equal(torch.stack(request.logits), expected[request.adapter])


def test_steps_without_adapters_run_as_if_there_were_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are recorded, and nothing of an adapter is looked at; those with adapters run call by call."""
    model = write_tiny(tmp_path / "model", "llama", **SHAPE)
    driver = driver_of(model, [write_adapter(tmp_path / "a", model)], attention_backend="cpu")
    called: list[int] = []
    run_now = CpuAttention._run_now

    def counted(self: CpuAttention, layers: Any, given: Any) -> Any:
        called.append(len(given.tokens_T))
        return run_now(self, layers, given)

    monkeypatch.setattr(CpuAttention, "_run_now", counted)
    base = driver.add(PROMPTS[1])
    driver.generate([base], 6)
    assert called == []
    adapted = driver.add(PROMPTS[1], adapter=1)
    driver.generate([base, adapted], 8)
    assert called[0] == 1 + len(PROMPTS[1])
