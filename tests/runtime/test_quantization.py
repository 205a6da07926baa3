"""``--quantization int8`` on whole models: how near it stays, what it saves, and where it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import PlanDriver
from sheaf_kernels.cpu.int8 import linear_int8_reference
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.models.decoder import Decoder
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.layers import TORCH_OPS
from sheaf_runtime.models.schemes import INT8_ON_LOAD
from sheaf_runtime.worker import loading
from tiny_families import write_tiny
from torch import Tensor

SHAPE = {"head_dim": 16, "num_hidden_layers": 3, "hidden_size": 96, "intermediate_size": 200}
# Biases, norms of heads, soft caps and a head that is tied or not; experts, whose router stays as it is.
FAMILIES = ["llama", "llama-bias", "qwen2", "gemma2", "mixtral"]
PROMPT = [7 + 5 * i % 211 for i in range(60)]


def logits(folder: Path, **options: Any) -> Tensor:
    """Of the last tokens of prompts of several lengths, in chunks."""
    driver = PlanDriver(str(folder), block_size=16, **options)
    requests = [driver.add(PROMPT[:length]) for length in (1, 2, 7, 33, 60)]
    driver.generate(requests, 1, chunk=17)
    return torch.stack([request.logits[0] for request in requests])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_those_of_floats(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 % of how far random models' logits spread, and within rounding of plain torch's on the same
    integers."""
    folder = write_tiny(tmp_path, family, **SHAPE)
    exact = logits(folder, attention_backend="cpu")
    made = logits(folder, attention_backend="cpu", quantization="int8")
    bound = 0.3 if family == "mixtral" else 0.1  # a token may choose another expert
    assert 0 < (made - exact).std() < bound * exact.std()

    def pack(weight: Tensor, scale: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
        return lambda x, bias: linear_int8_reference(x, weight, scale, bias)

    ops = replace(TORCH_OPS, pack_int8=pack, scheme=INT8_ON_LOAD, head_scheme=INT8_ON_LOAD)
    monkeypatch.setattr(loading, "make_ops", lambda *_: ops)
    torchs = logits(folder, attention_backend="torch")
    assert (made - torchs).std() < 0.01 * exact.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_says_what_the_model_does(dtype: Any, tmp_path: Path) -> None:
    """Greedy, in a batch whose steps are recorded and prompts are not, and alone."""
    folder = write_tiny(tmp_path, "llama", tokenizer=True, **SHAPE)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompts = [PROMPT[:n] for n in (1, 9, 60, 33)]
    with LLM(str(folder), device="cpu", dtype=dtype, quantization="int8", num_gpu_blocks_override=64) as llm:
        together = [answer.token_ids for answer in llm.generate(prompts, params)]
        assert [llm.generate([prompt], params)[0].token_ids for prompt in prompts] == together
    driver = PlanDriver(str(folder), block_size=16, attention_backend="cpu", dtype=dtype, quantization="int8")
    requests = [driver.add(prompt) for prompt in prompts]
    driver.generate(requests, 12)
    assert [request.output for request in requests] == [list(tokens) for tokens in together]


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_that_are_counted_are_those_that_stay(tied: bool, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "llama", tie_word_embeddings=tied, **SHAPE)
    plain = PlanDriver(str(folder), block_size=16, attention_backend="cpu").model
    small = PlanDriver(str(folder), block_size=16, attention_backend="cpu", quantization="int8").model
    assert isinstance(small.decoder, Decoder)
    matrices = [
        (128, 96), (96, 64), (400, 96), (96, 200)
    ] * 3 + ([] if tied else [(320, 96)])  # fmt: skip
    saved = sum(rows * columns * 3 - rows * 4 * -(-columns // 64) for rows, columns in matrices)
    assert plain.weights_bytes - small.weights_bytes == saved
    layer = small.decoder.layers[0]
    assert layer.attention.qkv.parameters == {}
    assert small.decoder.output is not None
    assert small.decoder.output.weight is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"attention_backend": "torch"},
            "needs the CPU kernels, and the model would run on torch ones",
        ),
        ({"dtype": "float16"}, "needs the CPU kernels"),
        ({"model_impl": "transformers"}, "for models of our own table"),
    ],
)
def test_where_it_is_refused(options: Any, words: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "llama", **SHAPE)
    with pytest.raises(ValueError, match=f"--quantization int8.*{words}"):
        PlanDriver(str(folder), block_size=16, quantization="int8", **options)


def test_what_the_checkpoint_is_may_be_said(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "llama", **SHAPE)
    with pytest.raises(UnsupportedModelError, match="--quantization awq: the checkpoint is not quantized"):
        PlanDriver(str(folder), block_size=16, quantization="awq")
