"""Each of the CPU's kernels against its reference in torch, and against itself in other company: a row's bits
depend on nothing but the row. Whichever library the kernels' wrappers load is the one that is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sheaf_kernels.cpu.elementwise import activate, clamped_swiglu, head_norm, rms_norm
from sheaf_kernels.cpu.int4 import linear_int4, linear_int4_reference, pack_int4
from sheaf_kernels.cpu.int8 import GROUP, linear_int8, linear_int8_reference, pack_int8
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
from sheaf_kernels.cpu.program import Memory, Program
from sheaf_kernels.rms_norm import rms_norm_reference
from sheaf_runtime.models import layers as torch_layers
from sheaf_runtime.models.schemes import rounded_to_int8
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
INT8_TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
}
_WRAPPERS = ("elementwise", "int4", "int8", "linear", "lookup", "paged_attention", "program")


def use(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, the kernels' wrappers call ``library``."""
    for module in _WRAPPERS:
        monkeypatch.setattr(f"sheaf_kernels.cpu.{module}.load", lambda: library)


def close(made: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(made, wanted, **TOLERANCE[wanted.dtype])


def close_and_rounded_alike(made: Tensor, wanted: Tensor) -> None:
    """A tolerance of bfloat16 hides what is rounded too early, too late or to the wrong side. Where only the
    order of float32's sums differs, hardly any result is rounded otherwise."""
    close(made, wanted)
    if wanted.dtype is torch.bfloat16:
        assert (made == wanted).float().mean() >= 0.98


def check_linear(dtype: torch.dtype, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(n)
    weight = (torch.randn(n, k, generator=generator) / k**0.5).to(dtype)
    bias, x = (torch.randn(*s, generator=generator).to(dtype) for s in ((n,), (300, k + 2)))
    x, packed = x[:, :k], pack(weight)  # rows with a gap between them
    made = linear(x, packed, bias)
    close_and_rounded_alike(made, linear_reference(x, weight, bias))
    close_and_rounded_alike(linear(x, packed), linear_reference(x, weight))
    for start, rows in ((0, 1), (5, 3), (7, 16), (100, 33), (239, 2), (290, 10)):
        assert torch.equal(linear(x[start : start + rows], packed, bias), made[start : start + rows])


def check_rms_norm(dtype: torch.dtype, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    x, residual = (torch.randn(130, channels, generator=generator).to(dtype) for _ in range(2))
    x[3], residual[3], x[4] = 0, 0, 1e-4  # where eps counts
    weight = torch.rand(channels, generator=generator)
    for w in (weight.to(dtype), weight):
        for r in (None, residual):
            y, h = rms_norm(x, w, 1e-5, r)
            wanted_y, wanted_h = rms_norm_reference(x, w, 1e-5, r)
            close_and_rounded_alike(y, wanted_y)
            assert torch.equal(h, wanted_h)
            alone = rms_norm(x[7:8], w, 1e-5, None if r is None else r[7:8])
            assert torch.equal(alone[0], y[7:8])


def check_head_norm(dtype: torch.dtype, heads: int, head_dim: int, wide: bool) -> None:
    qkv = torch.randn(130, heads + 2, head_dim, generator=torch.Generator().manual_seed(heads)).to(dtype)
    weight, before = torch.linspace(0.1, 2, head_dim).to(torch.float32 if wide else dtype), qkv.clone()
    alone = qkv[7:8].clone()
    head_norm(qkv[:, 1:-1], weight, 1e-5)
    wanted, _ = rms_norm_reference(before[:, 1:-1].reshape(-1, head_dim), weight, 1e-5)
    close_and_rounded_alike(qkv[:, 1:-1], wanted.view(130, heads, head_dim))
    assert torch.equal(qkv[:, :: heads + 1], before[:, :: heads + 1])
    head_norm(alone[:, 1:-1], weight, 1e-5)
    assert torch.equal(alone, qkv[7:8])


def check_activate(dtype: torch.dtype, inner: int, gated: bool, kind: Any) -> None:
    generator = torch.Generator().manual_seed(inner)
    x = (5 * torch.randn(60, inner * (2 if gated else 1), generator=generator)).to(dtype)
    made = activate(x, kind, gated=gated)
    wanted = torch_layers.activate(x, kind, gated)
    close(made, wanted)
    # Where 1 + erf or 1 + tanh is nearly 0, few bits of it are left, and other ones with other instructions.
    many = x[:, :inner] > (-2 if kind.startswith("gelu") else -torch.inf)
    close_and_rounded_alike(made[many], wanted[many])
    assert torch.equal(activate(x[9:10], kind, gated=gated), made[9:10])


def check_clamped_swiglu(dtype: torch.dtype, inner: int) -> None:
    x = (6 * torch.randn(60, 2 * inner, generator=torch.Generator().manual_seed(inner))).to(dtype)
    made = clamped_swiglu(x, 1.702, 7.0)
    close_and_rounded_alike(made, torch_layers.clamped_swiglu(x, 1.702, 7.0))
    assert torch.equal(clamped_swiglu(x[9:10], 1.702, 7.0), made[9:10])


def check_exponentials() -> None:
    """silu of huge, tiny, infinite and missing numbers, and e^x within 2 units of the last place between."""
    gate = torch.tensor([-1e30, -200.0, -87.5, -0.0, 1e-30, 87.5, 200.0, 1e30, torch.inf, torch.nan])
    made = activate(torch.cat((gate, torch.ones_like(gate)))[None], "silu", gated=True)[0]
    torch.testing.assert_close(made, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30, equal_nan=True)
    falling = torch.linspace(-86, -1, 4096)
    made = activate(falling[None], "silu", gated=False)[0]
    wanted = torch.nn.functional.silu(falling.double())
    torch.testing.assert_close(made.double(), wanted, rtol=5e-7, atol=0)


def check_rows_of_a_table(dtype: torch.dtype, channels: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(channels)
    table = torch.randn(50, channels, generator=generator).to(dtype)
    index = torch.randint(50, (300,), generator=generator)
    for numbers in (index, index.int(), index[:1], index[:0]):
        assert torch.equal(take_rows(table, numbers, factor), take_rows_reference(table, numbers, factor))


def check_likeliest(dtype: torch.dtype, vocab: int) -> None:
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


class Cache:
    """Requests of (context, queries) in pages of garbage, with the keys and values that they should see.
    ``spread`` is the scores' deviation."""

    def __init__(
        self,
        sizes: list[tuple[int, int]],
        dtype: torch.dtype,
        *,
        Q: int,
        K: int,
        D: int,
        B: int = 16,
        spread: float = 1.0,
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
        self.q = (spread * torch.randn(int(self.query_start[-1]), Q, D, generator=generator)).to(dtype)

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


def check_attention(
    dtype: torch.dtype,
    sizes: list[tuple[int, int]],
    shape: dict[str, int],
    *,
    spread: float = 1.0,
    **options: float,
) -> None:
    """With ``sinks``, every query head has one."""
    cache, given = Cache(sizes, dtype, **shape, spread=spread), dict[str, Any](options)
    if options.get("sinks"):
        given["sinks"] = torch.linspace(-3, 3, shape["Q"]).to(dtype)
    close(cache.attend(**given), cache.wanted(**given))


def check_company(dtype: torch.dtype, sizes: list[tuple[int, int]]) -> None:
    """Requests alone: as one chunk of a prompt, in two, and the last token."""
    together = Cache(sizes, dtype, Q=9, K=3, D=64)
    made = together.attend()
    for r, (context, queries) in enumerate(sizes):
        mine = slice(together.query_start[r], together.query_start[r + 1])
        for first in {0, queries // 2, queries - 1}:
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


def check_rope_kv_write(dtype: torch.dtype) -> None:
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


def check_program(dtype: torch.dtype) -> None:
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


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_int8(dtype: torch.dtype, n: int, k: int) -> None:
    weight, scale = rounded_to_int8(numbers(n, k, seed=n) / k**0.5)
    x, bias = (
        (3 * numbers(300, k + 2, seed=k)).to(dtype)[:, :k],
        numbers(n).to(dtype),
    )  # rows with a gap between them
    packed = pack_int8(weight, scale)
    made = linear_int8(x, packed, bias)
    torch.testing.assert_close(made, linear_int8_reference(x, weight, scale, bias), **INT8_TOLERANCE[dtype])
    torch.testing.assert_close(
        linear_int8(x, packed), linear_int8_reference(x, weight, scale), **INT8_TOLERANCE[dtype]
    )
    for start, rows in ((0, 1), (5, 3), (7, 16), (100, 33), (239, 2), (290, 10)):
        assert torch.equal(linear_int8(x[start : start + rows], packed, bias), made[start : start + rows])


def four_bits(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, zero points and scales; the products are about 1."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // GROUP)
    weight = torch.randint(0, 16, (n, k), generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, 17, (n, groups), generator=generator, dtype=torch.uint8)
    return weight, zero, (0.5 + torch.rand(n, groups, generator=generator)) / (8 * k**0.5)


def check_int4(dtype: torch.dtype, n: int, k: int) -> None:
    given = four_bits(n, k, seed=n)
    x, bias = (3 * numbers(300, k + 2, seed=k)).to(dtype)[:, :k], numbers(n).to(dtype)
    packed = pack_int4(*given)
    made = linear_int4(x, packed, bias)
    torch.testing.assert_close(made, linear_int4_reference(x, *given, bias), **INT8_TOLERANCE[dtype])
    torch.testing.assert_close(
        linear_int4(x, packed), linear_int4_reference(x, *given), **INT8_TOLERANCE[dtype]
    )
    for start, rows in ((0, 1), (5, 3), (7, 16), (100, 33), (239, 2), (290, 10)):
        assert torch.equal(linear_int4(x[start : start + rows], packed, bias), made[start : start + rows])


def check_exact_int8(rows: int, outputs: int, inputs: int, seed: int) -> None:
    """Groups of x that all have scale 1: nothing is rounded, so every bit of the sums is known."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (rows, inputs), generator=generator).float()
    x[:, ::GROUP] = 127
    weight = torch.randint(-128, 128, (outputs, inputs), generator=generator)
    ones = torch.ones(outputs, -(-inputs // GROUP))
    made = linear_int8(x, pack_int8(weight.to(torch.int8), ones))
    assert torch.equal(made, (x.long() @ weight.T).float())


def check_odd_rows_int8(dtype: torch.dtype) -> None:
    """aiter#4288: zeros. ik_llama.cpp#285: sums of large numbers of one sign. comfy-kitchen#60: tiny ones.
    What is infinite or no number stays with its row (as 0 * inf does in a product of floats)."""
    weight, scale = rounded_to_int8(numbers(33, 130))
    packed, bias = pack_int8(weight, scale), torch.ones(33, dtype=dtype)
    x = numbers(9, 130).to(dtype)
    x[1] = 0
    x[2] = 1e-38
    x[3] = 6e4
    x[4] = -1e30
    x[5, 100] = torch.nan
    x[6, 129] = torch.inf
    x[7, :GROUP] = 0
    made = linear_int8(x, packed, bias)
    assert (made[1] == 1).all()
    assert (made[2] == 1).all()
    assert made[5:7].isnan().all()
    finite = [0, 1, 2, 3, 4, 7, 8]
    assert made[finite].isfinite().all()
    torch.testing.assert_close(
        made[finite], linear_int8_reference(x, weight, scale, bias)[finite], **INT8_TOLERANCE[dtype]
    )
