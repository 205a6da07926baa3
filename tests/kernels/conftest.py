"""Kernels run on the CPU here, in Triton's interpreter."""

import os
import platform
import shutil
import sys

import pytest

# Triton decides at import whether kernels are interpreted.
assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", (
    "triton was imported before tests/kernels/conftest.py could set TRITON_INTERPRET=1"
)
os.environ["TRITON_INTERPRET"] = "1"

from sheaf_kernels.cpu import build  # noqa: E402
from sheaf_kernels.cpu.library import Library, load  # noqa: E402
from triton.runtime import interpreter  # noqa: E402


def _call_device_function(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    """As Triton has it, but for patching ``triton.language`` anew at every call, which is half of all time.

    The kernel that is running has patched it; what a device function patches beyond that is never taken back.
    """
    if self.fn not in _patched:
        _patched.add(self.fn)
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


_patched: set[object] = set()
interpreter.InterpretedFunction.__call__ = _call_device_function


@pytest.fixture
def cpu_kernels() -> Library:
    """The CPU's kernels, on the machine's own level."""
    if not build.levels_of(platform.machine(), build.machine_features()):
        pytest.skip("no kernels are written for this CPU")
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("no C compiler")
    return load()  # what does not compile fails here


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
