"""Whether a label selector, as objects carry it, selects a set of labels. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """An empty selector selects everything, none at all nothing (policy/v1)."""
    if selector is None:
        return False
    exact: Mapping[str, str] = selector.get("matchLabels") or {}
    rules: list[dict[str, Any]] = selector.get("matchExpressions") or []
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        _holds(rule, labels) for rule in rules
    )


def _holds(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(rule["key"]), rule.get("values") or []
    match rule["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:  # DoesNotExist
            return value is None
