"""Drift: whether a live object still holds what is wanted of it, whatever a server or webhook added. Pure."""

from __future__ import annotations

from typing import Any

from sheaf_operator.api import quantity
from sheaf_operator.cluster.observed import Json, owned_by


def covers(live: Any, wanted: Any, path: tuple[str, ...] = ()) -> bool:
    """Whether `live` already holds everything that `wanted` says, whatever a server or webhook added."""
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None
        return all(covers(live.get(key), value, (*path, key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return not wanted and live is None
        return all(covers(a, b, path) for a, b in zip(live, wanted, strict=True))
    if bool(live == wanted):
        return True
    if live is None:
        return bool(wanted == "")
    return _is_quantity(path) and quantity.same(live, wanted)


def _is_quantity(path: tuple[str, ...]) -> bool:
    return "resources" in path or path[-1:] == ("sizeLimit",)


def holds(live: Json, wanted: Json) -> bool:
    """`covers` for whole objects; owner references are compared by uid as others may add theirs."""
    metadata = {k: v for k, v in wanted["metadata"].items() if k != "ownerReferences"}
    uid = wanted["metadata"]["ownerReferences"][0]["uid"]
    return owned_by(live, uid) and covers(live, {**wanted, "metadata": metadata})
