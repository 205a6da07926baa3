"""The whole engine on Triton kernels, in the interpreter: tokens as on plain torch and in transformers.

Nothing is forked for the GPU: these are the engine, worker and model that serve, with ``--attention-backend
triton``, on models of a few thousand random float32 weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import PlanDriver
from sheaf_kernels import aot, paged_attention
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.worker import triton_backend
from sheaf_runtime.worker.backend import resolve_backend
from sheaf_runtime.worker.loading import load_model
from sheaf_runtime.worker.local import LocalExecutor
from sheaf_runtime.worker.triton_backend import TritonAttention
from tiny_families import write_tiny
from tiny_models import write_tiny_llama
from transformers import AutoModelForCausalLM
from triton.runtime.interpreter import InterpretedFunction

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPTS = [[3], [5, 6, 7, 8, 9], list(range(10, 47)), [4, 4, 4] * 6]
# (query heads, key/value heads, head size): a group of two, an odd group, one head for all.
SHAPES = [(4, 2, 16), (6, 2, 32), (5, 1, 64)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, int], str]:
    return {
        (q, k, d): str(
            write_tiny_llama(
                tmp_path_factory.mktemp("tiny"),
                hidden_size=8 * q,
                num_attention_heads=q,
                num_key_value_heads=k,
                head_dim=d,
                num_hidden_layers=2,
            )
        )
        for q, k, d in SHAPES
    }


def reference(folder: str, prompt: list[int], count: int) -> list[int]:
    """transformers' greedy tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


BACKENDS = ["triton", "cpu"]


def generate(
    folder: str, prompts: list[list[int]], params: Any, **options: Any
) -> tuple[list[list[int]], Any]:
    settings: dict[str, Any] = {"device": "cpu", "block_size": 16, "num_gpu_blocks_override": 40}
    settings |= {"max_num_seqs": 4, "max_num_batched_tokens": 24, **options}
    with LLM(folder, **settings) as llm:
        completions = llm.generate(prompts, params)
        return [c.token_ids for c in completions], llm.stats()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_greedy_tokens_are_those_of_torch_and_transformers(
    folders: dict[tuple[int, int, int], str], shape: tuple[int, int, int], depth: int, backend: str
) -> None:
    """Prompts longer than the budget are prefilled in chunks beside the decodes of the shorter ones."""
    kernels, _ = generate(folders[shape], PROMPTS, GREEDY, attention_backend=backend, pipeline_depth=depth)
    plain, _ = generate(folders[shape], PROMPTS, GREEDY, attention_backend="torch", pipeline_depth=depth)
    assert kernels == plain
    assert kernels == [reference(folders[shape], p, 6) for p in PROMPTS]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["gemma2", "gpt-oss", "olmo2", "llama4", "mixtral"])
def test_families_run_on_kernels(family: str, tmp_path: Path, backend: str) -> None:
    """Windows and chunks by KV groups, soft caps, sinks, norms with a wide weight: logits as plain torch has
    them."""
    layers = {"no_rope_layers": [1, 0]} if family == "llama4" else {}
    folder = str(write_tiny(tmp_path, family, head_dim=16, num_hidden_layers=2, **layers))

    def run(**options: Any) -> torch.Tensor:
        driver = PlanDriver(folder, block_size=16, num_blocks=30, **options)
        long, short = driver.add(PROMPTS[2]), driver.add(PROMPTS[1])
        driver.step([(short, 5), (long, 20)])
        driver.step([(short, 1), (long, 17)])
        driver.step([(short, 1), (long, 1)])
        return torch.stack([logits for request in (short, long) for logits in request.logits])

    got = run(attention_backend=backend, page_seed=1, poison=True)
    torch.testing.assert_close(got, run(attention_backend="torch"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [0, 1])
def test_preemption_changes_no_token(
    folders: dict[tuple[int, int, int], str], depth: int, backend: str
) -> None:
    params = [SamplingParams(temperature=t, seed=7, max_tokens=22, ignore_eos=True) for t in (0.0, 0.0, 1.0)]
    prompts = [[i, i + 1] * 7 for i in (5, 9, 13)]
    folder = folders[4, 2, 16]
    expected, calm = generate(folder, prompts, params, attention_backend="torch")
    options = {"attention_backend": backend, "num_gpu_blocks_override": 1 + 6, "max_model_len": 40}
    got, pressed = generate(folder, prompts, params, **options, pipeline_depth=depth)
    assert (calm.preemptions, pressed.preemptions > 0) == (0, True)
    assert got == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampled_tokens_are_those_of_torch(folders: dict[tuple[int, int, int], str], backend: str) -> None:
    params = [
        SamplingParams(temperature=0.8, seed=1, max_tokens=4, ignore_eos=True),
        SamplingParams(temperature=1.2, top_k=5, seed=2, max_tokens=4, ignore_eos=True),
        SamplingParams(temperature=1.0, top_p=0.7, seed=3, max_tokens=4, ignore_eos=True),
        SamplingParams(temperature=1.5, top_k=20, top_p=0.5, seed=4, min_tokens=4, max_tokens=4),
        SamplingParams(temperature=1.0, top_p=0.7, seed=3, max_tokens=4, presence_penalty=1, min_p=0.01),
        SamplingParams(temperature=0.0, max_tokens=4, repetition_penalty=2, logit_bias={9: 4.0}),
    ]
    kernels, plain = (
        generate(folders[4, 2, 16], [*PROMPTS, *PROMPTS[:2]], params, attention_backend=one)[0]
        for one in (backend, "torch")
    )
    assert kernels == plain


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("page_seed", [1, 2])
def test_permuted_pages_and_nan_in_slots_nobody_owns(
    folders: dict[tuple[int, int, int], str], page_seed: int, backend: str
) -> None:
    """Logits, not only tokens: chunks beside decodes, whatever lies in the rest of the pool."""

    def run(**options: Any) -> list[torch.Tensor]:
        driver = PlanDriver(folders[6, 2, 32], block_size=16, num_blocks=20, **options)
        long, short, late = driver.add(PROMPTS[2]), driver.add(PROMPTS[1]), driver.add(PROMPTS[3])
        driver.step([(short, 5), (long, 11)])
        driver.step([(short, 1), (long, 16), (late, 7)])
        driver.step([(short, 1), (long, 10), (late, 11)])
        driver.end(short)
        driver.step([(long, 1), (late, 1)])
        return [logits for request in (short, long, late) for logits in request.logits]

    got = run(attention_backend=backend, page_seed=page_seed, poison=True)
    want = run(attention_backend="torch")
    assert len(got) == 7
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_torch(folders: dict[tuple[int, int, int], str], dtype: str) -> None:
    def run(backend: str) -> torch.Tensor:
        driver = PlanDriver(
            folders[4, 2, 16], block_size=32, num_blocks=8, attention_backend=backend, dtype=dtype
        )
        request = driver.add(PROMPTS[2])
        driver.step([(request, len(PROMPTS[2]))])
        return request.logits[0].float()

    got, want = run("triton"), run("torch")
    # Two layers of roundings at different places; logits are about 5 in size.
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.2 if dtype == "bfloat16" else 0.03)


def test_every_kernel_is_launched(
    folders: dict[tuple[int, int, int], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is compiled ahead of time is what serves; all norms of a layer add the residual, but the first."""
    launched: list[str] = []
    original = InterpretedFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        launched.append(self.fn.__name__ + (" with residual" if kwargs.get("HAS_RESIDUAL") else ""))
        original(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", run)
    # Contexts of a few tokens would not be split, and nothing merged.
    tiny = replace(paged_attention.SHAPES["short"], min_chunk=1)
    monkeypatch.setitem(paged_attention.SHAPES, "short", tiny)
    driver = PlanDriver(folders[4, 2, 16], block_size=16, num_blocks=8, attention_backend="triton")
    wish = SamplingParams(temperature=1.0, seed=0, max_tokens=9, presence_penalty=1.0)
    long, short = driver.add(PROMPTS[1]), driver.add(PROMPTS[0], wish)
    driver.step([(long, 5), (short, len(PROMPTS[0]))])
    dense = list(launched)
    sparse = PlanDriver(
        str(write_tiny(tmp_path, "qwen3-moe", head_dim=16)),
        block_size=16,
        num_blocks=8,
        attention_backend="triton",
    )
    sparse.step([(sparse.add(PROMPTS[1]), 5)])
    assert {name.removesuffix(" with residual") for name in launched} == {v.name for v in aot.all_variants()}
    layers = driver.model.config.num_layers
    assert dense.count("rms_norm_kernel") == 1
    assert dense.count("rms_norm_kernel with residual") == 2 * layers
    assert dense.count("swiglu_kernel") == dense.count("rope_kv_write_kernel") == layers


def test_the_backend_asked_for_runs(folders: dict[tuple[int, int, int], str]) -> None:
    config = EngineConfig(
        model=folders[4, 2, 16], device="cpu", num_gpu_blocks_override=20, attention_backend="triton"
    )
    executor = LocalExecutor(config)
    try:
        assert isinstance(executor._running()._attention, TritonAttention)
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("device", "asked", "options", "want"),
    [
        ("cpu", "auto", {}, "cpu"),
        ("cpu", "torch", {}, "torch"),
        ("cpu", "auto", {"block_size": 8}, "torch"),
        ("cuda", "auto", {}, "triton"),
        ("cuda", "torch", {}, "torch"),
        ("cuda", "auto", {"block_size": 8}, "torch"),
    ],
)
def test_auto_is_the_kernels_of_the_device(
    folders: dict[tuple[int, int, int], str], device: str, asked: Any, options: dict[str, int], want: str
) -> None:
    model = load_model(EngineConfig(model=folders[4, 2, 16], device="cpu")).config
    size = options.get("block_size", 16)
    assert resolve_backend(asked, torch.device(device), model, size, torch.float32) == want


@pytest.mark.parametrize(
    ("overrides", "block_size", "message"),
    [
        (
            {},
            8,
            "--attention-backend triton: --block-size is 8, kernels exist for 16, 32 and 64",
        ),
        ({"head_dim": 20}, 16, "the model's head size is 20, kernels exist for multiples of 8 up to 256"),
        (
            {"hidden_size": 34, "num_attention_heads": 17, "num_key_value_heads": 1, "head_dim": 16},
            16,
            "17 query heads share a key/value head, kernels take up to 16",
        ),
    ],
)
def test_what_triton_cannot_run_is_refused(
    tmp_path: Path, overrides: dict[str, int], block_size: int, message: str
) -> None:
    folder = write_tiny_llama(tmp_path, num_hidden_layers=1, **{"head_dim": 16, **overrides})
    config = EngineConfig(model=str(folder), device="cpu", attention_backend="triton", block_size=block_size)
    with pytest.raises(ValueError, match=message):
        load_model(config)


def test_cpu_without_the_interpreter_is_refused(
    folders: dict[tuple[int, int, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="triton: kernels need CUDA, the device is cpu; use torch or auto"):
        load_model(EngineConfig(model=folders[4, 2, 16], device="cpu", attention_backend="triton"))


def test_a_failure_of_one_request_is_its_own(
    folders: dict[tuple[int, int, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on plain torch (tests/runtime/test_worker_faults.py)."""
    options: dict[str, Any] = {"num_gpu_blocks_override": 60, "attention_backend": "triton"}
    prompts, greedy = PROMPTS[:2], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    bad = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logit_bias={5: 77.0})
    original = triton_backend.choose_with_triton

    def failing(logits_SV: torch.Tensor, wanted: Any, *rest: Any) -> torch.Tensor:
        if any((wanted.bias_RV[row] == 77).any() for row in wanted.rows_S[wanted.biased_S]):
            raise ValueError("a planted fault")
        made: torch.Tensor = original(logits_SV, wanted, *rest)
        return made

    with LLM(folders[SHAPES[0]], **options) as llm:
        calm = llm.generate(prompts, greedy)
        monkeypatch.setattr(triton_backend, "choose_with_triton", failing)
        first, *others = llm.generate([[9, 9], *prompts], [bad, greedy, greedy])
    assert (first.finish_reason, first.token_ids) == ("error", [])
    assert "a planted fault" in str(first.error)
    assert [c.token_ids for c in others] == [c.token_ids for c in calm]
