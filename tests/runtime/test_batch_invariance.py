"""Answers that do not depend on the company they keep: on the CPU kernels logits have the same bits alone, in
any batch, in any chunking, on pages that an earlier request left, and after preemption."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import Active, PlanDriver
from sheaf_runtime.models.decoder import Decoder
from sheaf_runtime.protocol.sampling import SamplingParams
from tiny_families import write_tiny
from torch import Tensor

PROMPT = [7 + 5 * i % 211 for i in range(75)]
OUTPUT = 6
# Norms of heads, windows, chunks, soft caps, sinks, experts, parallel layers, layers without rotation.
FAMILIES = [
    "llama",
    "qwen3",
    "gemma2",
    "gpt-oss",
    "llama4",
    "olmo2",
    "mixtral",
    "qwen3-moe",
    "cohere2",
    "granite",
    "smollm3",
]
SHAPE = {"head_dim": 16, "num_hidden_layers": 2}


def bits(requests: list[Active]) -> list[Tensor]:
    return [torch.stack(request.logits[:OUTPUT]) for request in requests]


def alone(folder: str, **options: Any) -> Tensor:
    driver = PlanDriver(folder, block_size=16, attention_backend="cpu", **options)
    request = driver.add(PROMPT)
    driver.generate([request], OUTPUT)
    return bits([request])[0]


@pytest.mark.parametrize(
    ("family", "dtype", "quantization"),
    [
        *((family, dtype, "none") for family in FAMILIES for dtype in ("float32", "bfloat16")),
        *((family, "float32", "int8") for family in ("llama", "gemma2", "llama4", "mixtral")),
        ("llama", "bfloat16", "int8"),
    ],
)
def test_logits_have_the_same_bits_in_any_company(
    family: str, dtype: str, quantization: str, tmp_path: Path
) -> None:
    layers = {"no_rope_layers": [1, 0]} if family == "llama4" else {}
    folder = str(write_tiny(tmp_path, family, **SHAPE, **layers))
    options: Any = {"dtype": dtype, "quantization": quantization}
    expected = alone(folder, **options)
    draw = random.Random(family + dtype)
    driver = PlanDriver(
        folder, block_size=16, num_blocks=160, page_seed=3, poison=True, attention_backend="cpu", **options
    )
    mine = [driver.add(PROMPT) for _ in range(3)]
    others = [driver.add([draw.randrange(3, 200) for _ in range(draw.randrange(1, 60))]) for _ in range(9)]
    again: Active | None = None
    for _ in range(200):
        if all(len(request.logits) >= OUTPUT for request in mine):
            break
        if len(mine[0].logits) == 3 and again is None:  # preempted: what it has said is its prompt's end now
            again = mine[0]
            driver.end(again)
            mine[0] = driver.add(again.tokens)
            mine[0].logits = again.logits
        some = [r for r in mine if len(r.logits) < OUTPUT] + draw.sample(others, draw.randrange(len(others)))
        some = [r for r in some if len(r.tokens) < 120 and draw.random() < 0.8]
        draw.shuffle(some)
        if some:
            driver.step([(r, min(draw.choice([1, 2, 17, 40]), len(r.tokens) - r.computed)) for r in some])
    assert again is not None
    for made in bits(mine):
        assert torch.equal(made, expected)


def test_it_is_refused_where_it_does_not_hold(tmp_path: Path) -> None:
    folder = str(write_tiny(tmp_path, "llama", **SHAPE))
    for options, why in (
        ({"attention_backend": "torch"}, "would run on torch kernels"),
        ({"model_impl": "transformers"}, "through transformers"),
    ):
        with pytest.raises(ValueError, match=f"--batch-invariant.*{why}"):
            PlanDriver(folder, block_size=16, batch_invariant=True, **options)
    PlanDriver(folder, block_size=16, batch_invariant=True)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_the_last_layer_computes_only_the_rows_that_are_sampled_from(backend: str, tmp_path: Path) -> None:
    folder = str(write_tiny(tmp_path, "llama", **SHAPE))
    driver = PlanDriver(folder, block_size=16, attention_backend=backend)
    assert isinstance(driver.model.decoder, Decoder)
    rows: list[int] = []
    mlp = driver.model.decoder.layers[-1].mlp

    def counted(x_TC: Tensor) -> Tensor:
        rows.append(len(x_TC))
        return mlp(x_TC)

    driver.model.decoder.layers[-1].mlp = counted  # type: ignore[assignment]
    long, other = driver.add(list(range(3, 203))), driver.add(list(range(5, 95)))
    scored = driver.add(list(range(7, 97)), SamplingParams(temperature=0.0, seed=0, prompt_logprobs=0))
    driver.step([(long, 100)])
    driver.step([(long, 100), (other, 90)])
    driver.step([(scored, 90)])
    assert rows == [0, 2, 90]
