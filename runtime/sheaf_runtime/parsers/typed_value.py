"""An argument that was written as plain text, in the type that the tool's schema gives it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

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


def properties_of(schema: object) -> dict[str, Any]:
    """The schema of each argument; references to the whole are followed, as far as types are told by them."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {name: _followed(value, schema, 8) for name, value in properties.items()}


def _followed(schema: Any, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or not depth:
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target = root
        for part in reference.split("/")[1:]:
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            target = target.get(part) if isinstance(target, dict) else None
        return schema if target is None else _followed(target, root, depth - 1)
    parts = {key: schema[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list)}
    opened = {key: [_followed(item, root, depth - 1) for item in items] for key, items in parts.items()}
    return {**schema, **opened} if opened else schema


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
        values = [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
        found = {_KINDS[type(value)] for value in values if type(value) in _KINDS}
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
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that is too large for one
        return json.dumps(text, ensure_ascii=False)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _refuse(constant: str) -> None:
    raise ValueError(constant)
