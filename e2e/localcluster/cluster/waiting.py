"""Waiting for what cannot be watched; for Kubernetes objects there is ``Api.wait_for``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float, describe: str, every: float = 0.05) -> T:
    """Call ``predicate`` until it is truthy and return what it returned.

    Raises TimeoutError that names what was awaited and what the predicate said last.
    """
    deadline = time.monotonic() + timeout
    while not (found := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:.0f} s: {describe} (last: {found!r})")
        time.sleep(every)
    return found
