"""Linear layers in int8 against their reference, on the machine's own level and in portable C: integers are
exact, and a row's bits depend on nothing but the row."""

from __future__ import annotations

import platform

import pytest
import torch
from cpu_parity import DTYPES, check_exact_int8, check_int8, check_odd_rows_int8, numbers
from hypothesis import given
from hypothesis import strategies as st
from sheaf_kernels.cpu import build, int8
from sheaf_kernels.cpu.int8 import (
    GROUP,
    linear_int8,
    pack_int8,
    quantize_rows_reference,
)
from sheaf_kernels.cpu.library import Library
from sheaf_kernels.cpu.program import Memory, Program
from sheaf_runtime.models.schemes import rounded_to_int8
from torch import Tensor

pytestmark = pytest.mark.usefixtures("cpu_kernels")


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """What a machine without any of the extensions would run, which is what NEON has of int8."""
    level = build.Level("portable", platform.machine(), (), ())
    return Library(build.build(level, tmp_path_factory.mktemp("portable")), level.name)


def integers(*shape: int, lowest: int = -127, seed: int = 0) -> Tensor:
    return torch.randint(lowest, 128, shape, generator=torch.Generator().manual_seed(seed))


def whole(rows: int, columns: int, seed: int) -> Tensor:
    """x whose groups all have scale 1."""
    x = integers(rows, columns, seed=seed).float()
    x[:, ::GROUP] = 127
    return x


def ones(weight: Tensor) -> Tensor:
    return torch.ones(len(weight), -(-weight.shape[1] // GROUP))


def exact(x: Tensor, weight: Tensor) -> Tensor:
    return (x.long() @ weight.long().T).float()


@given(
    rows=st.integers(1, 40), outputs=st.integers(1, 70), inputs=st.integers(1, 300), seed=st.integers(0, 99)
)
def test_integers_are_exact(rows: int, outputs: int, inputs: int, seed: int) -> None:
    check_exact_int8(rows, outputs, inputs, seed)


@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("x", [-127.0, 127.0])
def test_nothing_saturates(weight: int, x: float) -> None:
    """oneDNN#717, ggml#1393: sums of two products in 16 bits, and -128 with its sign turned."""
    made = linear_int8(
        torch.full((3, 512), x), pack_int8(torch.full((40, 512), weight).to(torch.int8), torch.ones(40, 8))
    )
    assert torch.equal(made, torch.full((3, 40), 512 * x * weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(49, 64), (3072, 576), (17, 30), (1, 1), (640, 1536), (24, 130)])
def test_floats(dtype: torch.dtype, n: int, k: int) -> None:
    check_int8(dtype, n, k)


def test_portable_c_gives_the_same(portable: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = whole(13, 150, seed=1), integers(21, 150, lowest=-128, seed=2).to(torch.int8)
    own = linear_int8(x, pack_int8(weight, ones(weight)))
    monkeypatch.setattr(int8, "load", lambda: portable)
    assert portable.lanes == 4
    made = linear_int8(x, pack_int8(weight, ones(weight)))
    assert torch.equal(made, own)
    assert torch.equal(made, exact(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_number_of_threads(
    dtype: torch.dtype, cpu_kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, packed = numbers(250, 640).to(dtype), pack_int8(*rounded_to_int8(numbers(300, 640)))
    made = []
    for threads in (1, cpu_kernels.threads, 7):
        monkeypatch.setattr(cpu_kernels, "threads", threads)
        made.append(linear_int8(x, packed))
    assert torch.equal(made[1], made[0])
    assert torch.equal(made[2], made[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_odd(dtype: torch.dtype) -> None:
    check_odd_rows_int8(dtype)


def test_an_outlier_costs_its_own_group_only() -> None:
    """Why x has a scale for each group: one for a whole row would leave the others nothing."""
    x, weight = numbers(4, 640), numbers(50, 640)
    x[:, 3] = 3000
    made = linear_int8(x, pack_int8(*rounded_to_int8(weight)))
    wanted = x @ weight.T
    far = (made - wanted).norm() / (wanted - wanted.mean()).norm()
    assert far < 0.01


def test_weights_that_are_odd() -> None:
    """A channel of zeros stays one; one that is not finite gives no numbers, and the others theirs."""
    weight = numbers(5, 64)
    weight[1] = 0
    weight[2, 3] = torch.inf
    weight[3, 4] = torch.nan
    steps, scale = rounded_to_int8(weight)
    made = linear_int8(torch.ones(2, 64), pack_int8(steps, scale))
    assert (made[:, 1] == 0).all()
    assert made[:, 2:4].isnan().all()
    torch.testing.assert_close(made[:, ::4], weight[::4].sum(1).expand(2, 2), rtol=0, atol=0.2)


@given(st.integers(1, 200), st.integers(0, 99))
def test_rounding_is_off_by_half_a_step_at_most(inputs: int, seed: int) -> None:
    x = numbers(3, inputs, seed=seed) * 10.0 ** (seed % 9 - 4)
    steps, scale = quantize_rows_reference(x)
    back = (steps * scale[..., None]).flatten(1)[:, :inputs]
    assert ((back - x).abs() <= scale.amax() * 0.5001).all()
    steps, scale = rounded_to_int8(x)
    scale = scale.repeat_interleave(GROUP, 1)[:, :inputs]
    assert ((steps * scale - x).abs() <= scale * 0.5001).all()


def test_no_rows_are_no_trouble() -> None:
    """sglang#15346"""
    packed = pack_int8(torch.ones(20, 32, dtype=torch.int8), torch.ones(20, 1))
    assert linear_int8(torch.empty(0, 32), packed).shape == (0, 20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_program_does_what_its_calls_do(dtype: torch.dtype) -> None:
    up, down = (pack_int8(*rounded_to_int8(numbers(n, k) / k**0.5)) for n, k in ((192, 64), (64, 192)))

    def layers(x: Tensor) -> Tensor:
        for _ in range(4):
            x = linear_int8(linear_int8(x, up), down)
        return x

    for rows in (1, 7):
        x, program = torch.zeros(rows, 64, dtype=dtype), Program(Memory())
        with program.record():
            out = layers(x)
        for seed in range(2):
            x.copy_(numbers(rows, 64, seed=seed))
            program.run()
            assert torch.equal(out, layers(x))


def test_wrong_arguments_are_refused_by_name() -> None:
    weight, scale = torch.ones(20, 32, dtype=torch.int8), torch.ones(20, 1)
    packed = pack_int8(weight, scale)
    with pytest.raises(ValueError, match=r"x must be \[T, 32\]"):
        linear_int8(torch.ones(2, 31), packed)
    with pytest.raises(TypeError, match="float32 and bfloat16"):
        linear_int8(torch.ones(2, 32, dtype=torch.float16), packed)
    with pytest.raises(ValueError, match=r"bias must be torch.float32 \[20\]"):
        linear_int8(torch.ones(2, 32), packed, torch.ones(19))
    with pytest.raises(TypeError, match="int8 and float32"):
        pack_int8(weight.float(), scale)
    with pytest.raises(ValueError, match=r"scale must be \[20, 1\]"):
        pack_int8(weight, scale[:19])
