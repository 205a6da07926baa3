"""RMSNorm, SwiGLU, RoPE with KV write and the shared conversions. Tolerances are ``parity.TOLERANCE``."""

import pytest
import torch
import triton
import triton.language as tl
from sheaf_kernels.head_norm import head_norm
from sheaf_kernels.numerics import next_power_of_2, round_to
from sheaf_kernels.parity import RopeCase, check_head_norm, check_rms_norm, check_rope_kv_write, check_swiglu
from sheaf_kernels.rms_norm import rms_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels", [1, 64, 130, 576])
def test_rms_norm(channels: int, residual: bool, dtype: torch.dtype) -> None:
    check_rms_norm(3, channels, residual, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm_with_a_wide_weight(residual: bool, dtype: torch.dtype) -> None:
    check_rms_norm(3, 130, residual, dtype, "cpu", wide=True)


def test_rms_norm_without_residual_returns_its_input() -> None:
    x = torch.randn(2, 8)
    assert rms_norm(x, torch.ones(8), 1e-5)[1] is x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 130), (2, 64), (9, 24), (16, 128)])
def test_head_norm(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    check_head_norm(3, heads, head_dim, dtype, "cpu")


def test_head_norm_with_a_wide_weight() -> None:
    check_head_norm(3, 5, 64, torch.bfloat16, "cpu", wide=True)


def test_head_norm_refuses() -> None:
    with pytest.raises(ValueError, match="head_norm: the heads of x must be packed"):
        head_norm(torch.ones(2, 4, 8)[:, ::2], torch.ones(8), 1e-5)
    head_norm(torch.ones(0, 4, 8), torch.ones(8), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 100, 1025])
def test_swiglu(channels: int, dtype: torch.dtype) -> None:
    check_swiglu(3, channels, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        RopeCase(),
        RopeCase(tokens=1, num_q_heads=1, num_kv_heads=1, head_dim=128, page_size=64),
        RopeCase(tokens=7, num_q_heads=9, num_kv_heads=9, head_dim=96, page_size=32),
        RopeCase(tokens=3, num_q_heads=16, num_kv_heads=1, head_dim=64),
    ],
    ids=str,
)
def test_rope_kv_write(case: RopeCase, dtype: torch.dtype) -> None:
    check_rope_kv_write(case, dtype, "cpu")


@triton.jit
def _round_kernel(x_ptr, y_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(y_ptr + i, round_to(tl.load(x_ptr + i), y_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_round_to_is_torchs_rounding(dtype: torch.dtype) -> None:
    special = [
        0.0,
        -0.0,
        1.9999999,
        -1.9999999,
        1.00390625,
        1.01171875,
        float("inf"),
        -float("inf"),
        float("nan"),
    ]
    x = torch.cat(
        [torch.tensor(special), torch.randn(1024 - len(special), generator=torch.Generator().manual_seed(0))]
    )
    y = torch.empty(1024, dtype=dtype)
    _round_kernel[(1,)](x, y, N=1024)
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_next_power_of_2() -> None:
    assert [next_power_of_2(n) for n in (0, 1, 2, 3, 4, 5, 1025)] == [1, 1, 2, 4, 4, 8, 2048]
