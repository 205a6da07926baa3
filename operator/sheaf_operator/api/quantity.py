"""Kubernetes quantities ("500m", "16Gi"): exact values and the canonical spelling."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def value(quantity: str) -> Decimal:
    """The number a quantity stands for. Raises ValueError for anything else."""
    return Decimal(parse_quantity(quantity))  # type: ignore[no-untyped-call]


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same quantity in different spelling ("1000m" and 1)."""
    try:
        return value(str(a)) == value(str(b))
    except ValueError:
        return False


def whole(quantity: str) -> int:
    """Rounded up to a whole number."""
    return math.ceil(value(quantity))


def compute_threads(cpu: str) -> int:
    """Threads that a CPU request pays for: whole cores below it, at least one."""
    return max(1, int(value(cpu)))


def human_bytes(count: int) -> str:
    """For messages: 270532608 → "258 MiB"."""
    power = 0
    scaled = float(count)
    while scaled >= 1024 and power < len(_BINARY) - 1:
        scaled, power = scaled / 1024, power + 1
    digits = 0 if scaled >= 100 or power == 0 else 1
    return f"{scaled:.{digits}f} {_BINARY[power]}B"


def human_replicas(count: int) -> str:
    return f"{count} replica" if count == 1 else f"{count} replicas"
