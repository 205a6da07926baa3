"""A JSON flag by its keys, as in vLLM: ``--flag.key 1 --flag.outer.inner two --flag.list+ a,b``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import orjson

_FLAG = re.compile(r"(--[A-Za-z][A-Za-z0-9_-]*)(?:\.([^=]*?)(\+?))?(?:=(.*))?", re.DOTALL)
MOST_KEYS = 16  # one inside the other


class DottedError(ValueError):
    """Says which argument is wrong and how."""


def whole(argv: Sequence[str], flags: Collection[str]) -> list[str]:
    """The arguments with one JSON object for each of ``flags``. A key changes what was given before it, an
    object replaces that. A value of a key that is no JSON is a text. Raises ``DottedError``."""
    kept: list[str] = []
    objects: dict[str, dict[str, Any]] = {}
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        if item == "--":
            rest.insert(0, item)
            break
        match = _FLAG.fullmatch(item)
        flag = match[1].replace("_", "-") if match else ""
        if match is None or flag not in flags:
            kept.append(item)
            continue
        value = match[4]
        if value is None:
            if not rest or rest[0].startswith("--"):
                raise DottedError(f"argument {item}: expected one argument")
            value = rest.pop(0)
        if match[2] is not None:
            name = item.partition("=")[0]
            _put(objects.setdefault(flag, {}), name, match[2].split("."), value, bool(match[3]))
        elif isinstance(given := _read(value), dict):
            objects[flag] = given
        else:
            kept.append(f"{flag}={value}")  # refused where values are judged
    made = [f"{flag}={json.dumps(given, ensure_ascii=False)}" for flag, given in objects.items()]
    return [*kept, *made, *rest]


def _put(into: dict[str, Any], item: str, keys: list[str], value: str, many: bool) -> None:
    if not all(keys) or len(keys) > MOST_KEYS:
        raise DottedError(f"{item}: write keys with a dot between two of them, at most {MOST_KEYS}")
    for key in keys[:-1]:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            raise DottedError(f"{item}: {key} has a value already, and keys go into an object")
    last = keys[-1]
    before = into.get(last)
    if isinstance(before, dict) or (many and not isinstance(before, list | None)):
        raise DottedError(f"{item}: {last} has a value already, of another kind")
    into[last] = [*(before or []), *_elements(value)] if many else _read(value)


def _elements(text: str) -> list[Any]:
    """One, or several with commas between them."""
    try:
        return [orjson.loads(text)]
    except ValueError:
        return [_read(part) for part in text.split(",")]


def _read(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return text
