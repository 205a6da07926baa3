"""Kernels run on the CPU here, in Triton's interpreter."""

import os
import sys

import pytest

# Triton decides at import whether kernels are interpreted.
assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", (
    "triton was imported before tests/kernels/conftest.py could set TRITON_INTERPRET=1"
)
os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            # The interpreter holds scalars as arrays of one element, and numpy warns where it converts them.
            item.add_marker(
                pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
            )
            # exp2(-inf - x) and the like are meant.
            item.add_marker(pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"))
