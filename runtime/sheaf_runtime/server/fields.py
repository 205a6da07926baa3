"""The types of request fields: strict, bounded by the one table of limits, and written into the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from sheaf_runtime.protocol.limits import BOUNDS

MAX_STOPS = 64
MAX_PROMPTS = 1024
MAX_IDS = 1024  # of a list that is kept for as long as the request lives
MAX_WORDS, MAX_WORD = 256, 256
Prompt = str | list[int]
_PROMPT = "must be a string, a list of strings, a list of token ids or a list of such lists"


@dataclass(frozen=True)
class Number:
    """Annotation: a number within the bounds of ``name``, as which it is refused."""

    name: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        return BOUNDS[self.name].schema

    def _check(self, value: Any) -> Any:
        if problem := BOUNDS[self.name].problem(value):
            raise ValueError(problem)
        return value


def _stop_list(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("must be a non-empty string or a list of them")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"takes at most {MAX_STOPS} strings")
    return stops


def _words(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise ValueError("must be a list of words")
    if len(value) > MAX_WORDS or max(map(len, value), default=0) > MAX_WORD:
        raise ValueError(f"takes at most {MAX_WORDS} words of at most {MAX_WORD} characters")
    return value


def _few_ids(value: Any) -> list[int]:
    if isinstance(value, list) and len(value) > MAX_IDS:
        raise ValueError(f"takes at most {MAX_IDS} token ids")
    return _ids(value)


def _ids(ids: Any) -> list[int]:
    if not isinstance(ids, list):
        raise ValueError("must be a list of token ids")
    if not ids:
        return ids
    kinds = set(map(type, ids))
    bound = BOUNDS["token id"]
    if kinds != {int} or min(ids) < bound.low or max(ids) > bound.high:  # quick, as there may be a million
        index, problem = next((i, p) for i, id_ in enumerate(ids) if (p := bound.problem(id_)))
        raise ValueError(f"item {index} {problem}")
    return ids


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise ValueError('must be an object of token ids and numbers: {"50256": -100}')
    if len(value) > MAX_IDS:
        raise ValueError(f"takes at most {MAX_IDS} token ids")
    biases = {}
    for key, bias in value.items():
        text = str(key)
        if not (text.isascii() and text.isdecimal() and len(text) <= 10):
            raise ValueError(f"the key {text[:40]!r} must be a token id")
        if problem := BOUNDS["logit_bias"].problem(bias):
            raise ValueError(f"the value of {text} {problem}")
        biases[int(text)] = float(bias)
    return biases


def _prompts(value: Any) -> list[Prompt]:
    """The four forms of ``prompt`` as a list of prompts; quick to refuse long lists of the wrong type."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(_PROMPT)
    if not value:
        raise ValueError("must not be empty")
    if set(map(type, value)) == {int}:
        return [_prompt_ids(value)]
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"takes at most {MAX_PROMPTS} prompts")
    if all(isinstance(item, str) for item in value):
        return list(value)
    if all(isinstance(item, list) and item and all(type(id_) is int for id_ in item) for item in value):
        return [_prompt_ids(item) for item in value]
    raise ValueError(_PROMPT)


def _prompt_ids(ids: list[int]) -> list[int]:
    _ids([min(ids), max(ids)])
    return ids


# Where a part of each type has its words. The latter three are what answers are made of, and are sent back.
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def _content(value: Any) -> str | None:
    """Text parts are joined by line breaks: most templates expect one string. What else a part says
    (``cache_control``) is for other servers."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of text parts")
    return "\n".join(_words_of_part(part) for part in value)


def _words_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get(TEXT_PARTS.get(str(part.get("type")), "")) if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise ValueError('only text parts are supported: {"type": "text", "text": "..."}')
    return text


def _texts(most: int) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": most}


_ID = BOUNDS["token id"].schema
_ID_LIST = {"type": "array", "items": _ID, "minItems": 1}
Stop = Annotated[
    list[str],
    PlainValidator(_stop_list),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _texts(MAX_STOPS)]}),
]
Words = Annotated[list[str], PlainValidator(_words), WithJsonSchema(_texts(MAX_WORDS))]
TokenIds = Annotated[
    list[int],
    PlainValidator(_few_ids),
    WithJsonSchema({"type": "array", "items": _ID, "maxItems": MAX_IDS}),
]
AnyTokenIds = Annotated[
    list[int],
    PlainValidator(_ids),
    WithJsonSchema({"type": "array", "items": _ID}),
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_bias),
    WithJsonSchema({"type": "object", "additionalProperties": BOUNDS["logit_bias"].schema}),
]
Prompts = Annotated[
    list[Prompt],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
                _ID_LIST,
                {"type": "array", "items": _ID_LIST, "minItems": 1, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]
Content = Annotated[
    str | None,
    PlainValidator(_content),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "anyOf": [
                            {"type": "string"},
                            *(
                                {
                                    "type": "object",
                                    "properties": {"type": {"const": kind}, words: {"type": "string"}},
                                    "required": ["type", words],
                                }
                                for kind, words in TEXT_PARTS.items()
                            ),
                        ]
                    },
                },
            ]
        }
    ),
]
