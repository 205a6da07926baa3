"""Drift: whether a live object still holds what is wanted of it, whatever a server or webhook added. Pure.

Others may add: fields, defaults, and items of lists that Kubernetes merges by a key. Lists without such a
key, arguments among them, are compared as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sheaf_operator.api import quantity
from sheaf_operator.cluster.observed import Json, owned_by

Path = tuple[str, ...]

# What tells an item of these lists from the others; nothing: all that it says.
_KEYS: dict[str, Path] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort",),
    "imagePullSecrets": ("name",),
    "supportedModelFormats": ("name", "version"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "tolerations": (),
    "matchExpressions": (),
}


def covers(live: Any, wanted: Any) -> bool:
    """Whether `live` already holds everything that `wanted` says."""
    return next(differences(live, wanted), None) is None


def differences(live: Any, wanted: Any, path: Path = ()) -> Iterator[str]:
    """Where `live` does not hold what `wanted` says, as dotted paths."""
    if isinstance(wanted, dict):
        if isinstance(live, dict):
            for key, value in wanted.items():
                yield from differences(live.get(key), value, (*path, str(key)))
        elif wanted or live is not None:
            yield ".".join(path)
    elif isinstance(wanted, list):
        yield from _in_list(live, wanted, path)
    elif not _same(live, wanted, path):
        yield ".".join(path)


def _in_list(live: Any, wanted: list[Any], path: Path) -> Iterator[str]:
    if not isinstance(live, list):
        if wanted or live is not None:
            yield ".".join(path)
        return
    keys = _KEYS.get(path[-1]) if path else None
    if keys is None:
        if len(live) != len(wanted):
            yield ".".join(path)
            return
        for a, b in zip(live, wanted, strict=True):
            yield from differences(a, b, path)
        return
    for item in wanted:
        candidates = [found for found in live if _alike(found, item, keys)]
        nearest = min(([*differences(found, item, path)] for found in candidates), key=len, default=None)
        yield from [".".join(path)] if nearest is None else nearest


def _alike(a: Any, b: Any, keys: Path) -> bool:
    if keys and isinstance(a, dict) and isinstance(b, dict):
        return all(a.get(key) == b.get(key) for key in keys)
    return bool(a == b)


def _same(live: Any, wanted: Any, path: Path) -> bool:
    if bool(live == wanted):
        return True
    if live is None:
        return bool(wanted == "")
    return _is_quantity(path) and quantity.same(live, wanted)


def _is_quantity(path: Path) -> bool:
    return "resources" in path or path[-1:] == ("sizeLimit",)


def of_object(live: Json, wanted: Json) -> list[str]:
    """`differences` of whole objects; owner references are compared by uid as others may add theirs."""
    metadata = {k: v for k, v in wanted["metadata"].items() if k != "ownerReferences"}
    uid = wanted["metadata"]["ownerReferences"][0]["uid"]
    found = [] if owned_by(live, uid) else ["metadata.ownerReferences"]
    return found + list(differences(live, {**wanted, "metadata": metadata}))
