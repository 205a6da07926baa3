"""An argument that was written as plain text, in the type that the tool's schema gives it."""

from __future__ import annotations

import json
from typing import Any

_PYTHON = {"True": "true", "False": "false", "None": "null"}
_KINDS: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def is_text(schema: object) -> bool:
    """Whether the argument can only be a string, so that it can be handed out as it comes."""
    return types(schema) <= {"string"}


def types(schema: object) -> set[str]:
    """The types that a schema names; none: it says nothing."""
    if not isinstance(schema, dict):
        return set()
    own = schema.get("type", ())
    found = {own} if isinstance(own, str) else {name for name in own if isinstance(name, str)}
    if not found:
        found = {_KINDS[type(value)] for value in _list(schema.get("enum")) if type(value) in _KINDS}
    for part in (*_list(schema.get("anyOf")), *_list(schema.get("oneOf")), *_list(schema.get("allOf"))):
        found |= types(part)
    return found | ({"object", "string"} if "$ref" in schema else set())


def as_json(text: str, schema: object) -> str:
    """What is no value of another type stays a string."""
    known = types(schema)
    try:
        value = json.loads(_PYTHON.get(text.strip(), text), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    kind = _KINDS[type(value)]
    if "string" in known and kind not in known and not (kind == "integer" and "number" in known):
        value = text
    return json.dumps(value, ensure_ascii=False)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _refuse(constant: str) -> None:
    raise ValueError(constant)
