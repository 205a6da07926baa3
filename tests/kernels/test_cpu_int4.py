"""Linear layers in four bits against their reference, and against int8 that says the same."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from cpu_parity import DTYPES, check_int4, four_bits, numbers
from hypothesis import given
from hypothesis import strategies as st
from sheaf_kernels.cpu import build, int4, int8
from sheaf_kernels.cpu.int4 import linear_int4, pack_int4
from sheaf_kernels.cpu.int8 import GROUP, linear_int8, pack_int8
from sheaf_kernels.cpu.library import Library

pytestmark = pytest.mark.usefixtures("cpu_kernels")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(49, 64), (3072, 576), (17, 30), (1, 1), (640, 1536), (24, 130)])
def test_floats(dtype: torch.dtype, n: int, k: int) -> None:
    check_int4(dtype, n, k)


@given(
    rows=st.integers(1, 40), outputs=st.integers(1, 70), inputs=st.integers(1, 300), seed=st.integers(0, 99)
)
def test_int8_says_the_same_to_the_bit(rows: int, outputs: int, inputs: int, seed: int) -> None:
    """Sums of integers are exact in both, and floats are added in one order."""
    weight, zero, scale = four_bits(outputs, inputs, seed)
    x = numbers(rows, inputs, seed=seed)
    steps = weight.short() - zero.short().repeat_interleave(GROUP, dim=1)[:, :inputs]
    as_int8 = linear_int8(x, pack_int8(steps.to(torch.int8), scale))
    assert torch.equal(linear_int4(x, pack_int4(weight, zero, scale)), as_int8)


def test_portable_c_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level = build.Level("portable", platform.machine(), (), ())
    portable = Library(build.build(level, tmp_path), level.name)
    given, x = four_bits(21, 150), numbers(13, 150)
    own = linear_int4(x, pack_int4(*given))
    for module in (int4, int8):
        monkeypatch.setattr(module, "load", lambda: portable)
    torch.testing.assert_close(linear_int4(x, pack_int4(*given)), own)


def test_what_does_not_fit_is_refused() -> None:
    weight, zero, scale = four_bits(8, 130)
    with pytest.raises(TypeError, match="pack_int4: uint8, uint8 and float32 are taken, got"):
        pack_int4(weight.int(), zero, scale)
    with pytest.raises(ValueError, match="pack_int4: zero must be"):
        pack_int4(weight, zero[:, :-1], scale)
    with pytest.raises(ValueError, match="pack_int4: scale must be"):
        pack_int4(weight, zero, scale[:-1])
    with pytest.raises(ValueError, match="linear_int4: x must be"):
        linear_int4(numbers(3, 129), pack_int4(weight, zero, scale))
