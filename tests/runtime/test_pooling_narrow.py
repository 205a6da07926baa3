"""Embeddings in fewer bits: the same bits as torch's."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch
from sheaf_runtime.pooling.narrow import narrow

KINDS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
EDGES = [
    *(0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-8, 2**-9, 2**-10, 3 * 2**-11, 2**-17, 2**-16, 65504.0, 65519.0),
    *(65520.0, 1e38, -1e38, 448.0, 463.9, 464.0, 464.1, -480.0, 57344.0, 61439.0, 61440.0, float("inf")),
    *(float("-inf"), float("nan"), 1.0625, 1.1875, 1.125, 1.375, 3.3895e38, 3.4e38),
]


@pytest.mark.parametrize("kind", KINDS)
def test_as_torch_rounds(kind: str) -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(4000) * 10.0 ** rng.integers(-8, 6, 4000)
    middles = (np.arange(4000) - 2000) / 64  # many are equally near to two
    numbers = np.concatenate([EDGES, spread, rng.standard_normal(4000), middles]).astype(np.float32)
    want = torch.from_numpy(numbers).to(KINDS[kind])
    got = narrow(array("f", numbers.tobytes()), kind)
    bits = want.view(torch.uint8 if got.itemsize == 1 else torch.uint16).numpy()
    known = ~np.isnan(numbers)
    np.testing.assert_array_equal(got[known], bits[known])
    again = torch.from_numpy(got.copy()).view(KINDS[kind]).float()
    assert torch.isnan(again[torch.from_numpy(~known)]).all()


def test_nothing_is_narrowed_too() -> None:
    assert all(narrow(array("f"), kind).size == 0 for kind in KINDS)
