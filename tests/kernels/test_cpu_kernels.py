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
from sheaf_kernels.cpu import build
from sheaf_kernels.cpu.elementwise import KINDS, activate, clamped_swiglu, head_norm, rms_norm
from sheaf_kernels.cpu.library import Library
from sheaf_kernels.cpu.linear import linear, linear_reference, pack
from sheaf_kernels.cpu.lookup import likeliest, likeliest_reference, take_rows, take_rows_reference
from sheaf_kernels.cpu.paged_attention import (
    key_panels,
    make_plan,
    paged_attention,
    rope_kv_write,
    value_pairs,
)
from sheaf_kernels.cpu.program import CannotRecordError, Memory, Program
from sheaf_kernels.rms_norm import rms_norm_reference
from sheaf_runtime.models import layers as torch_layers
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2}}


pytestmark = pytest.mark.usefixtures("cpu_kernels")


def close(made: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(made, wanted, **TOLERANCE[wanted.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(49, 64), (3072, 576), (17, 30), (16, 2), (640, 1536)])
def test_linear(dtype: torch.dtype, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(n)
    weight = (torch.randn(n, k, generator=generator) / k**0.5).to(dtype)
    bias, x = (torch.randn(*s, generator=generator).to(dtype) for s in ((n,), (300, k + 2)))
    x, packed = x[:, :k], pack(weight)  # rows with a gap between them
    made = linear(x, packed, bias)
    close(made, linear_reference(x, weight, bias))
    close(linear(x, packed), linear_reference(x, weight))
    for start, rows in ((0, 1), (5, 3), (7, 16), (100, 33), (239, 2), (290, 10)):
        assert torch.equal(linear(x[start : start + rows], packed, bias), made[start : start + rows])


def test_no_rows_are_no_trouble() -> None:
    assert linear(torch.empty(0, 32), pack(torch.ones(20, 32))).shape == (0, 20)
    assert activate(torch.empty(0, 32), "silu", gated=True).shape == (0, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [576, 40, 7])
def test_rms_norm(dtype: torch.dtype, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    x, residual = (torch.randn(130, channels, generator=generator).to(dtype) for _ in range(2))
    weight = torch.rand(channels, generator=generator)
    for w in (weight.to(dtype), weight):
        for r in (None, residual):
            y, h = rms_norm(x, w, 1e-5, r)
            wanted_y, wanted_h = rms_norm_reference(x, w, 1e-5, r)
            close(y, wanted_y)
            assert torch.equal(h, wanted_h)
            alone = rms_norm(x[7:8], w, 1e-5, None if r is None else r[7:8])
            assert torch.equal(alone[0], y[7:8])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 64), (1, 48), (5, 7)])
@pytest.mark.parametrize("wide", [False, True])
def test_head_norm(dtype: torch.dtype, heads: int, head_dim: int, wide: bool) -> None:
    qkv = torch.randn(130, heads + 2, head_dim, generator=torch.Generator().manual_seed(heads)).to(dtype)
    weight, before = torch.linspace(0.1, 2, head_dim).to(torch.float32 if wide else dtype), qkv.clone()
    alone = qkv[7:8].clone()
    head_norm(qkv[:, 1:-1], weight, 1e-5)
    wanted, _ = rms_norm_reference(before[:, 1:-1].reshape(-1, head_dim), weight, 1e-5)
    close(qkv[:, 1:-1], wanted.view(130, heads, head_dim))
    assert torch.equal(qkv[:, :: heads + 1], before[:, :: heads + 1])
    head_norm(alone[:, 1:-1], weight, 1e-5)
    assert torch.equal(alone, qkv[7:8])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [1536, 24, 5])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_activate(dtype: torch.dtype, inner: int, gated: bool, kind: Any) -> None:
    generator = torch.Generator().manual_seed(inner)
    x = (5 * torch.randn(60, inner * (2 if gated else 1), generator=generator)).to(dtype)
    made = activate(x, kind, gated=gated)
    close(made, torch_layers.activate(x, kind, gated))
    assert torch.equal(activate(x[9:10], kind, gated=gated), made[9:10])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [64, 21])
def test_clamped_swiglu(dtype: torch.dtype, inner: int) -> None:
    x = (6 * torch.randn(60, 2 * inner, generator=torch.Generator().manual_seed(inner))).to(dtype)
    made = clamped_swiglu(x, 1.702, 7.0)
    close(made, torch_layers.clamped_swiglu(x, 1.702, 7.0))
    assert torch.equal(clamped_swiglu(x[9:10], 1.702, 7.0), made[9:10])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [576, 40, 7])
@pytest.mark.parametrize("factor", [1.0, 24.0, 1 / 3])
def test_rows_of_a_table(dtype: torch.dtype, channels: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(channels)
    table = torch.randn(50, channels, generator=generator).to(dtype)
    index = torch.randint(50, (300,), generator=generator)
    for numbers in (index, index.int(), index[:1], index[:0]):
        assert torch.equal(take_rows(table, numbers, factor), take_rows_reference(table, numbers, factor))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 16, 50, 49152])
def test_the_likeliest_is_the_first_of_the_largest(dtype: torch.dtype, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-40, 3, (33, vocab + 5), generator=generator).to(dtype)[
        :, :vocab
    ]  # many are equal
    assert torch.equal(likeliest(logits), likeliest_reference(logits))
    logits = torch.randn(33, vocab, generator=generator).to(dtype)
    made = likeliest(logits)
    assert torch.equal(made, likeliest_reference(logits))
    assert torch.equal(likeliest(logits[4:5]), made[4:5])
    for place in {0, vocab // 2, vocab - 1}:
        for odd in (torch.nan, torch.inf, -torch.inf, 100.0, -0.0):
            row = logits[:1].clone()
            row[0, place] = odd
            assert torch.equal(likeliest(row), likeliest_reference(row)), (place, odd)
    assert likeliest(torch.full((1, vocab), -torch.inf, dtype=dtype)).tolist() == [-1]
    assert likeliest(torch.full((1, vocab), -0.0, dtype=dtype)).tolist() == [0]


def test_exponentials_at_their_ends() -> None:
    """silu of huge, tiny, infinite and missing numbers."""
    gate = torch.tensor([-1e30, -200.0, -87.5, -0.0, 1e-30, 87.5, 200.0, 1e30, torch.inf, torch.nan])
    made = activate(torch.cat((gate, torch.ones_like(gate)))[None], "silu", gated=True)[0]
    torch.testing.assert_close(made, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30, equal_nan=True)


class Cache:
    """Requests of (context, queries) in pages of garbage, with the keys and values that they should see."""

    def __init__(
        self, sizes: list[tuple[int, int]], dtype: torch.dtype, *, Q: int, K: int, D: int, B: int = 16
    ) -> None:
        generator = torch.Generator().manual_seed(sum(c for c, _ in sizes))
        self.sizes, self.K = sizes, K
        pages = [-(-context // B) for context, _ in sizes]
        order = torch.randperm(sum(pages), generator=generator) + 1
        self.table = np.zeros((len(sizes), max(pages)), np.int32)
        self.keys = torch.full((len(order) + 1, K, B, D), torch.nan, dtype=dtype)
        self.values = self.keys.clone()
        self.tokens = [torch.randn(2, context, K, D, generator=generator).to(dtype) for context, _ in sizes]
        at = 0
        for r, (count, kv) in enumerate(zip(pages, self.tokens, strict=True)):
            mine = order[at : at + count]
            self.table[r, :count] = mine
            for t in range(kv.shape[1]):
                self.keys[mine[t // B], :, t % B] = kv[0, t]
                self.values[mine[t // B], :, t % B] = kv[1, t]
            at += count
        self.panels, self.pairs = key_panels(self.keys), value_pairs(self.values)
        self.query_start = np.cumsum([0, *(queries for _, queries in sizes)])
        self.context_len = np.array([context for context, _ in sizes])
        self.q = torch.randn(int(self.query_start[-1]), Q, D, generator=generator).to(dtype)

    def attend(self, window: int = 0, softcap: float = 0.0, sinks: Tensor | None = None) -> Tensor:
        group, head_dim = self.q.shape[1] // self.K, self.q.shape[2]
        plan = make_plan(
            self.table, self.query_start, self.context_len,
            group=group, kv_heads=self.K, head_dim=head_dim, window=window,
        )  # fmt: skip
        return paged_attention(
            self.q, self.panels, self.pairs, plan, head_dim**-0.5, softcap=softcap, sinks_Q=sinks
        )

    def wanted(self, window: int = 0, softcap: float = 0.0, sinks: Tensor | None = None) -> Tensor:
        out = []
        for r, (context, queries) in enumerate(self.sizes):
            q = self.q[self.query_start[r] : self.query_start[r + 1]].float()
            k, v = (x.float().repeat_interleave(q.shape[1] // self.K, dim=1) for x in self.tokens[r])
            scores = torch.einsum("tqd,sqd->qts", q, k) * q.shape[2] ** -0.5
            if softcap:
                scores = softcap * (scores / softcap).tanh()
            position, key = torch.arange(context - queries, context)[:, None], torch.arange(context)
            hidden = (key > position) | ((key <= position - window) if window else False)
            scores.masked_fill_(hidden, -torch.inf)
            if sinks is not None:
                scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, queries, 1)), dim=-1)
            weights = scores.softmax(-1)[..., :context]
            out.append(torch.einsum("qts,sqd->tqd", weights, v))
        return torch.cat(out).to(self.q.dtype)


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
    cache = Cache(SIZES, dtype, **shape)
    close(cache.attend(), cache.wanted())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"window": 20}, {"window": 600}, {"softcap": 3.0}, {"sinks": True}])
def test_odd_attention(dtype: torch.dtype, options: dict[str, float]) -> None:
    cache = Cache(SIZES, dtype, Q=9, K=3, D=64)
    given = {k: torch.linspace(-3, 3, 9).to(dtype) if k == "sinks" else v for k, v in options.items()}
    close(cache.attend(**given), cache.wanted(**given))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_has_the_same_bits_alone_and_in_company(dtype: torch.dtype) -> None:
    together = Cache(SIZES, dtype, Q=9, K=3, D=64)
    made = together.attend()
    for r, (context, queries) in enumerate(SIZES):
        mine = slice(together.query_start[r], together.query_start[r + 1])
        for first in {0, queries // 2, queries - 1}:  # as one chunk of a prompt, in two, and its last token
            alone = Cache([(1, 1)], dtype, Q=9, K=3, D=64)
            alone.table, alone.panels, alone.pairs = (
                together.table[r : r + 1],
                together.panels,
                together.pairs,
            )
            alone.q = together.q[mine][first:]
            alone.query_start = np.array([0, queries - first])
            alone.context_len = np.array([context])
            assert torch.equal(alone.attend(), made[mine][first:])


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
    generator = torch.Generator().manual_seed(1)
    weights = [(torch.randn(n, k, generator=generator) / k**0.5).to(dtype) for n, k in ((192, 64), (64, 96))]
    up, down = map(pack, weights)
    norm = torch.ones(64, dtype=dtype)

    def layers(x: Tensor) -> Tensor:
        residual = None
        for _ in range(12):  # more calls than a program has room for at first
            y, residual = rms_norm(x, norm, 1e-5, residual)
            x = linear(activate(linear(y, up), "silu", gated=True), down)
        return x

    memory, made = Memory(), []
    for rows in (64, 1, 5, 63):
        given, program = torch.zeros(rows, 64, dtype=dtype), Program(memory)
        with program.record():
            made.append((given, program, layers(given)))
        if rows == 64:
            most = memory.nbytes
    assert memory.nbytes < 1.2 * most  # all together have little more than the largest, which uses it again
    assert most < 12 * 64 * 192 * dtype.itemsize
    for given, program, out in made * 2:
        x = torch.randn(given.shape, generator=generator).to(dtype)
        given.copy_(x)
        program.run()
        assert torch.equal(out, layers(x))


def test_what_is_no_kernel_cannot_be_recorded() -> None:
    x, weight = torch.ones(1, 32), pack(torch.ones(32, 32))
    with pytest.raises(CannotRecordError, match="add"), Program(Memory()).record():
        linear(x, weight) + 1
    assert linear(x, weight)[0, 0] == 32  # and nothing is recorded any more


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_are_written_where_they_are_read(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(40, 8, 32, generator=generator).to(dtype)
    angles = torch.rand(40, 16, generator=generator) * 6
    slots = torch.randperm(96, generator=generator)[:40]
    keys, values = (torch.zeros(6, 2, 16, 32, dtype=dtype) for _ in range(2))
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    low, high = qkv[:, :6].float().chunk(2, dim=-1)
    rotated = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(dtype)
    written_keys, written_values = torch.zeros_like(keys), torch.zeros_like(values)
    for t, slot in enumerate(slots.tolist()):
        written_keys[slot // 16, :, slot % 16] = rotated[t, 4:6]
        written_values[slot // 16, :, slot % 16] = qkv[t, 6:]
    q = rope_kv_write(qkv, angles.cos(), angles.sin(), slots, keys, values)
    close(q, rotated[:, :4])
    close(keys, key_panels(written_keys))
    assert torch.equal(values, value_pairs(written_values))


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
