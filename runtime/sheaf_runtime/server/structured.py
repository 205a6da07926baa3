"""The fields that say what an output has to look like: OpenAI's ``response_format``, vLLM's
``structured_outputs``. Only their form is judged here; the engine judges schemas and grammars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import orjson
from pydantic import PlainValidator, WithJsonSchema

from sheaf_runtime.protocol.grammar import Grammar, GrammarKind

MAX_TEXT = 256 * 1024  # characters of a grammar or schema
MAX_CHOICES = 4096
FORMATS = ("text", "json_object", "json_schema", "structural_tag")


def _response_format(value: Any) -> Grammar | None:
    if not isinstance(value, dict):
        raise ValueError('must be an object: {"type": "json_object"}')
    kind = value.get("type")
    if kind not in FORMATS:
        raise ValueError(f"type must be one of {', '.join(FORMATS)}")
    if kind == "structural_tag":
        return _grammar("structural_tag", _json(value), "response_format")
    extra = value.keys() - {"type", *(("json_schema",) if kind == "json_schema" else ())}
    if extra:
        raise ValueError(f"{sorted(extra)[0]!r} is not a field of the type {kind}")
    if kind == "text":
        return None
    if kind == "json_object":
        return _grammar("json_object", "", "response_format")
    named = value.get("json_schema")
    if not isinstance(named, dict) or "schema" not in named:
        raise ValueError('json_schema must be an object: {"name": ..., "schema": {...}}')
    extra = named.keys() - {"name", "description", "schema", "strict"}
    if extra:
        raise ValueError(f"json_schema.{sorted(extra)[0]} is not known")
    return _grammar("json_schema", _schema(named["schema"]), "response_format")


def _structured_outputs(value: Any) -> Grammar | None:
    """vLLM's fields, of which exactly one says what is wanted."""
    if not isinstance(value, dict):
        raise ValueError('must be an object: {"json": {...}}')
    given = {name: item for name, item in value.items() if item is not None and item is not False}
    for name in given.keys() - _WANTED.keys():
        raise ValueError(f"{name} is not supported; leave it out")
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(_WANTED)}")
    ((name, item),) = given.items()
    kind, text = _WANTED[name]
    try:
        return _grammar(kind, text(item), "structured_outputs")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _grammar(kind: GrammarKind, text: str, param: str) -> Grammar:
    if len(text) > MAX_TEXT:
        raise ValueError(f"takes at most {MAX_TEXT} characters, got {len(text)}")
    return Grammar(kind=kind, text=text, param=param)


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None


def _schema(value: Any) -> str:
    """A schema, or its text."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the schema is no JSON: {error}") from None
    if not isinstance(value, dict | bool):
        raise ValueError("the schema must be an object")
    return _json(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string that is not empty")
    return value


def _choices(value: Any) -> str:
    if not isinstance(value, list) or not value or not all(isinstance(c, str) and c for c in value):
        raise ValueError("must be a list of strings that are not empty")
    if len(value) > MAX_CHOICES:
        raise ValueError(f"takes at most {MAX_CHOICES} choices, got {len(value)}")
    return _json(value)


def _tag(value: Any) -> str:
    """A structural tag, or its text."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the structural tag is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return _json(value)


def _nothing(value: Any) -> str:
    if value is not True:
        raise ValueError("must be true or left out")
    return ""


_WANTED: Mapping[str, tuple[GrammarKind, Callable[[Any], str]]] = {
    "json": ("json_schema", _schema),
    "json_object": ("json_object", _nothing),
    "regex": ("regex", _text),
    "choice": ("choice", _choices),
    "grammar": ("grammar", _text),
    "structural_tag": ("structural_tag", _tag),
}
_OBJECT = {"type": "object", "additionalProperties": True}
ResponseFormat = Annotated[
    Grammar | None,
    PlainValidator(_response_format),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"type": {"enum": list(FORMATS)}, "json_schema": _OBJECT, "format": _OBJECT},
            "required": ["type"],
        }
    ),
]
StructuredOutputs = Annotated[
    Grammar | None,
    PlainValidator(_structured_outputs),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "json": {"anyOf": [_OBJECT, {"type": "string"}]},
                "json_object": {"type": "boolean"},
                "regex": {"type": "string", "minLength": 1},
                "choice": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                "grammar": {"type": "string", "minLength": 1},
                "structural_tag": {"anyOf": [_OBJECT, {"type": "string"}]},
            },
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }
    ),
]
