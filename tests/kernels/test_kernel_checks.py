# ruff: noqa: E501 (tables of arguments)
"""Wrappers refuse wrong arguments and say which and why."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sheaf_kernels.checks import Checker
from sheaf_kernels.paged_attention import allocate_plan, paged_attention
from sheaf_kernels.parity import AttentionCase, AttentionInputs, attention_inputs
from sheaf_kernels.rms_norm import rms_norm
from sheaf_kernels.rope_kv_write import rope_kv_write
from sheaf_kernels.swiglu import swiglu

CASE = AttentionCase((1, 1), (20, 3))


def run_attention(x: AttentionInputs, **plan_args: Any) -> None:
    options: dict[str, Any] = {"max_seqs": 2, "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    plan = allocate_plan(**{"kind": "short", "dtype": torch.float32, "device": "cpu", **options, **plan_args})
    paged_attention(*x.args(), torch.empty_like(x.q_TQD), plan)


# One wrong argument a line.
# fmt: off
WRONG_ATTENTION: list[tuple[str, Callable[[AttentionInputs], torch.Tensor], type[Exception], str]] = [
    ("q_TQD", lambda x: x.q_TQD.double(), TypeError, "q must be float16 or bfloat16 or float32, got float64"),
    ("q_TQD", lambda x: x.q_TQD[0], ValueError, r"q must have shape \[T, Q, D\], got \(4, 64\)"),
    ("q_TQD", lambda x: x.q_TQD.transpose(1, 2), ValueError, "the last dimension of q must be contiguous"),
    ("k_cache_PKBD", lambda x: x.k_cache_PKBD.half(), TypeError, "k_cache must be float32, got float16"),
    ("k_cache_PKBD", lambda x: x.k_cache_PKBD[..., :32].contiguous(), ValueError, "k_cache must have shape .* with D=64 from q"),
    ("v_cache_PKBD", lambda x: x.v_cache_PKBD[1:], ValueError, "v_cache must have shape .* with P=.* from k_cache"),
    ("v_cache_PKBD", lambda x: x.v_cache_PKBD.to("meta"), ValueError, "v_cache is on meta, the other arguments on cpu"),
    ("k_cache_PKBD", lambda x: x.k_cache_PKBD[:, :, :, :].transpose(1, 2).contiguous().transpose(1, 2), ValueError, "k_cache must be contiguous"),
    ("block_table_SL", lambda x: x.block_table_SL.long(), TypeError, "block_table must be int32, got int64"),
    ("query_start", lambda x: x.query_start[:-1], ValueError, r"query_start must have shape \[3\], got \(2,\)"),
    ("context_len_S", lambda x: x.context_len_S[:1], ValueError, "context_len must have shape .* with S=2 from block_table"),
]
# fmt: on


@pytest.mark.parametrize(
    ("field", "spoil", "error", "message"), WRONG_ATTENTION, ids=lambda v: v if isinstance(v, str) else ""
)
def test_attention_refuses(
    field: str,
    spoil: Callable[[AttentionInputs], torch.Tensor],
    error: type[Exception],
    message: str,
) -> None:
    x = attention_inputs(CASE, torch.float32, "cpu")
    with pytest.raises(error, match=message):
        run_attention(dataclasses.replace(x, **{field: spoil(x)}))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (dataclasses.replace(CASE, num_q_heads=3), "3 query heads do not divide among 2 KV heads"),
        (dataclasses.replace(CASE, num_q_heads=34), "at most 16 query heads may share a KV head, got 17"),
        (dataclasses.replace(CASE, head_dim=84), "head size 84 is no multiple of 8 up to 256"),
        (dataclasses.replace(CASE, head_dim=264), "head size 264 is no multiple of 8 up to 256"),
        (dataclasses.replace(CASE, page_size=8), "page size 8 is not 16, 32 or 64 tokens"),
    ],
)
def test_attention_refuses_models_it_cannot_run(case: AttentionCase, message: str) -> None:
    with pytest.raises(ValueError, match=f"paged_attention: {message}"):
        run_attention(attention_inputs(case, torch.float32, "cpu"))


@pytest.mark.parametrize(
    ("plan_args", "message"),
    [
        ({"num_q_heads": 8}, "the plan is for 8 query heads, got 4"),
        ({"num_kv_heads": 1}, r"the plan's lse must have shape \[N, K, M\] with K=2 from k_cache"),
        ({"head_dim": 32}, r"the plan's partial must have shape \[N, K, M, D\] with D=64 from q"),
        ({"max_seqs": 1}, "the plan is for 1 sequences, got 2"),
        (
            {"kind": "long", "dtype": torch.float16},
            "the plan is for tiles of 128 rows, q is float32",
        ),
    ],
)
def test_attention_refuses_a_plan_of_another_model(plan_args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_attention(attention_inputs(CASE, torch.float32, "cpu"), **plan_args)


def test_a_plan_refuses_too_many_sequences() -> None:
    x = attention_inputs(CASE, torch.float32, "cpu")
    plan = allocate_plan(
        "long", max_seqs=1, num_q_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.float32, device="cpu"
    )
    with pytest.raises(ValueError, match="the plan is for 1 sequences, context_len has 2"):
        plan.update(x.query_start, x.context_len_S)


def test_rms_norm_refuses() -> None:
    with pytest.raises(
        ValueError, match=r"rms_norm: weight must have shape \[C\] with C=8 from x, got \(4,\)"
    ):
        rms_norm(torch.ones(2, 8), torch.ones(4), 1e-5)
    with pytest.raises(TypeError, match="rms_norm: residual must be float32, got bfloat16"):
        rms_norm(torch.ones(2, 8), torch.ones(8), 1e-5, torch.ones(2, 8, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"rms_norm: x must be a torch\.Tensor, got list"):
        rms_norm([[1.0]], torch.ones(8), 1e-5)  # type: ignore[arg-type]


def test_swiglu_refuses_an_odd_width() -> None:
    with pytest.raises(ValueError, match="gate_up must have an even last dimension, got 5"):
        swiglu(torch.ones(2, 5))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (2, torch.ones(3, 1, 64), r"v must have shape \[T, K, D\] with K=2 from k"),
        (3, torch.ones(3, 64), r"cos must have shape \[T, 32\], got"),
        (5, torch.zeros(2, dtype=torch.int64), r"slot_mapping must have shape \[T\] with T=3 from q"),
        (0, torch.ones(3, 64, 4).transpose(1, 2), "the last dimension of q must be contiguous"),
        (0, torch.ones(3, 8, 64)[:, ::2], "the heads of q must be packed"),
        (6, torch.ones(4, 2, 16, 128), "k_cache must have shape .* with D=64 from q"),
    ],
)
def test_rope_kv_write_refuses(argument: int, value: torch.Tensor, message: str) -> None:
    kv, table, slots = torch.ones(3, 2, 64), torch.ones(3, 32), torch.zeros(3, dtype=torch.int64)
    cache = torch.zeros(4, 2, 16, 64)
    args = [torch.ones(3, 4, 64), kv, kv.clone(), table, table, slots, cache, cache.clone()]
    args[argument] = value
    with pytest.raises(ValueError, match=rf"rope_kv_write: {message}"):
        rope_kv_write(*args)


def test_nothing_to_do_is_not_an_error() -> None:
    empty = attention_inputs(AttentionCase((), ()), torch.float32, "cpu")
    run_attention(empty)
    assert rms_norm(torch.ones(0, 8), torch.ones(8), 1e-5)[0].shape == (0, 8)
    assert swiglu(torch.ones(0, 8)).shape == (0, 4)


def test_the_cpu_is_refused_outside_the_interpreter() -> None:
    code = (
        "import torch; from sheaf_kernels.swiglu import swiglu\n"
        "try: swiglu(torch.ones(1, 2))\n"
        "except ValueError as e: print(e)"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "swiglu: gate_up is on cpu, but Triton kernels need CUDA" in done.stdout


def test_checker_remembers_sizes() -> None:
    check = Checker("op")
    check.tensor("x", torch.ones(2, 3), "A B", [torch.float32])
    assert (check["A"], check["B"]) == (2, 3)
