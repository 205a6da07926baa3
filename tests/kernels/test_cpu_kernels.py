"""The CPU's kernels against their references, and against themselves in other company: a row's bits depend on
nothing but the row."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu_parity import (
    DTYPES,
    Cache,
    check_activate,
    check_attention,
    check_clamped_swiglu,
    check_company,
    check_exponentials,
    check_head_norm,
    check_likeliest,
    check_linear,
    check_program,
    check_rms_norm,
    check_rope_kv_write,
    check_rows_of_a_table,
)
from sheaf_kernels.cpu import build
from sheaf_kernels.cpu.elementwise import KINDS, activate, rms_norm
from sheaf_kernels.cpu.library import Library
from sheaf_kernels.cpu.linear import linear, pack
from sheaf_kernels.cpu.paged_attention import (
    make_plan,
)
from sheaf_kernels.cpu.program import CannotRecordError, Memory, Program

pytestmark = pytest.mark.usefixtures("cpu_kernels")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(49, 64), (3072, 576), (17, 30), (16, 2), (640, 1536)])
def test_linear(dtype: torch.dtype, n: int, k: int) -> None:
    check_linear(dtype, n, k)


def test_no_rows_are_no_trouble() -> None:
    assert linear(torch.empty(0, 32), pack(torch.ones(20, 32))).shape == (0, 20)
    assert activate(torch.empty(0, 32), "silu", gated=True).shape == (0, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [576, 40, 7])
def test_rms_norm(dtype: torch.dtype, channels: int) -> None:
    check_rms_norm(dtype, channels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 64), (1, 48), (5, 7)])
@pytest.mark.parametrize("wide", [False, True])
def test_head_norm(dtype: torch.dtype, heads: int, head_dim: int, wide: bool) -> None:
    check_head_norm(dtype, heads, head_dim, wide)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [1536, 24, 5])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_activate(dtype: torch.dtype, inner: int, gated: bool, kind: Any) -> None:
    check_activate(dtype, inner, gated, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [64, 21])
def test_clamped_swiglu(dtype: torch.dtype, inner: int) -> None:
    check_clamped_swiglu(dtype, inner)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [576, 40, 7])
@pytest.mark.parametrize("factor", [1.0, 24.0, 1 / 3])
def test_rows_of_a_table(dtype: torch.dtype, channels: int, factor: float) -> None:
    check_rows_of_a_table(dtype, channels, factor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 16, 50, 49152])
def test_the_likeliest_is_the_first_of_the_largest(dtype: torch.dtype, vocab: int) -> None:
    check_likeliest(dtype, vocab)


def test_exponentials_at_their_ends() -> None:
    check_exponentials()


SIZES = [(1, 1), (17, 1), (64, 1), (513, 1), (700, 700), (40, 9), (1100, 60)]
SHAPES = [
    pytest.param({"Q": 9, "K": 3, "D": 64}, id="demo"),
    pytest.param({"Q": 4, "K": 4, "D": 48, "B": 32}, id="no-groups"),
    pytest.param({"Q": 16, "K": 1, "D": 128, "B": 64}, id="one-head"),
    pytest.param({"Q": 2, "K": 1, "D": 256}, id="wide"),
    pytest.param({"Q": 4, "K": 2, "D": 80}, id="vllm#31968"),
    pytest.param({"Q": 4, "K": 1, "D": 112}, id="odd-head"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_paged_attention(dtype: torch.dtype, shape: dict[str, int]) -> None:
    check_attention(dtype, SIZES, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"window": 20}, {"window": 600}, {"softcap": 3.0}, {"sinks": True}])
def test_odd_attention(dtype: torch.dtype, options: dict[str, float]) -> None:
    check_attention(dtype, SIZES, {"Q": 9, "K": 3, "D": 64}, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_scores_that_lie_far_apart(dtype: torch.dtype) -> None:
    """What e^x cannot hold, between two blocks and between two chunks."""
    check_attention(dtype, SIZES, {"Q": 9, "K": 3, "D": 64}, spread=60.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_has_the_same_bits_alone_and_in_company(dtype: torch.dtype) -> None:
    check_company(dtype, SIZES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_number_of_threads(
    dtype: torch.dtype, cpu_kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rustformers/llm#67"""
    sizes = [(2600, 1), (700, 700), (40, 9)]
    x, weight = torch.randn(40, 640).to(dtype), torch.randn(300, 640).to(dtype)
    made = []
    for threads in (1, cpu_kernels.threads, 7):
        monkeypatch.setattr(cpu_kernels, "threads", threads)
        made.append((Cache(sizes, dtype, Q=9, K=3, D=64).attend(), linear(x, pack(weight))))
    for attended, multiplied in made[1:]:
        assert torch.equal(attended, made[0][0])
        assert torch.equal(multiplied, made[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_program_does_what_its_calls_do(dtype: torch.dtype) -> None:
    check_program(dtype)


def test_what_is_no_kernel_cannot_be_recorded() -> None:
    x, weight = torch.ones(1, 32), pack(torch.ones(32, 32))
    with pytest.raises(CannotRecordError, match="add"), Program(Memory()).record():
        linear(x, weight) + 1
    assert linear(x, weight)[0, 0] == 32  # and nothing is recorded any more


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_are_written_where_they_are_read(dtype: torch.dtype) -> None:
    check_rope_kv_write(dtype)


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"x must be torch.float32 \[T, 32\]"):
        linear(torch.ones(2, 31), pack(torch.ones(20, 32)))
    with pytest.raises(TypeError, match="float32 and bfloat16"):
        pack(torch.ones(4, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match="K must be even"):
        pack(torch.ones(4, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="residual must be like x"):
        rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5, torch.ones(3, 4))
    with pytest.raises(ValueError, match="no more than its context"):
        make_plan(np.ones((1, 1)), np.array([0, 2]), np.array([1]), group=1, kv_heads=1, head_dim=16)


@pytest.mark.parametrize(
    "level", [one for one in build.LEVELS if one.machine == platform.machine()], ids=lambda one: one.name
)
def test_every_level_is_valid_c(level: build.Level) -> None:
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)))
    warnings = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    sources = map(str, build.SOURCES.glob("*.c"))
    done = subprocess.run([compiler, *build.FLAGS, *level.flags, *warnings, *sources], capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_levels_follow_the_features() -> None:
    def names(*features: str) -> list[str]:
        return [level.name for level in build.levels_of("x86_64", frozenset(features))]

    assert names() == []
    assert names("avx2", "fma") == ["avx2"]
    assert names("avx2", *build._AVX512) == ["avx512", "avx2"]
    assert names("avx2", *build._AVX512, "avx512_vnni") == ["avx512_vnni", "avx512", "avx2"]
    assert names("avx2", "fma", "avx_vnni") == ["avx_vnni", "avx2"]
    assert [level.name for level in build.levels_of("aarch64", frozenset())] == ["neon"]


def test_without_a_compiler_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.UnavailableError, match="no C compiler"):
        build.build(build.LEVELS[0], tmp_path)


def test_what_an_image_brings_is_for_every_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is built by root and run by somebody else; a cache folder is its owner's alone."""
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr("sys.argv", ["build", "--own"])
    build.main()
    (library,) = (tmp_path / "prebuilt").iterdir()
    assert (tmp_path / "prebuilt").stat().st_mode & 0o777 == library.stat().st_mode & 0o777 == 0o755
    level = build.levels_of(platform.machine(), build.machine_features())[0]
    assert build.built_library(level) == library
    cached = build.build(level, tmp_path / "cache")
    assert cached.parent.stat().st_mode & 0o777 == 0o700
