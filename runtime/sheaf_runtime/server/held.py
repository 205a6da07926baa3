"""What holds a chat's output: the format that it asks for and the calls that it demands, behind the thoughts.

Where a function is ``strict`` and the model is free to call, its calls are held and its words are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sheaf_runtime.parsers import REASONING, TOOLS, shapes
from sheaf_runtime.parsers.channels import NEEDED, Channels
from sheaf_runtime.parsers.harmony import MARKS
from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.reading import Reading
from sheaf_runtime.server.schemas import ChatCompletionRequest
from sheaf_runtime.server.tools import AllowedTools, NamedTool, schemas
from sheaf_runtime.text import Tokenizer

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
_JSON = ("json_object", "json_schema")  # blanks before these mean nothing


def held_output(body: ChatCompletionRequest, reading: Reading, tokenizer: Tokenizer) -> Grammar | None:
    """Raises ``ApiError`` 400 where the model's tokenizer lacks what its format needs."""
    asked, offers = body.constraint, _offers(body)
    if asked is None and not offers:
        return None
    if reading.in_channels:
        return _in_channels(asked, offers, body.choice_of_tools == "auto", tokenizer)
    if offers:
        asked = _calls(body, reading, offers, asked)
    if asked is None or reading.reasoning_parser is None:
        return asked
    marks = REASONING[reading.reasoning_parser]
    assert marks is not None
    own = body.constraint
    blanks = own is None or asked is not own or own.kind in _JSON
    thoughts = shapes.thoughts(marks, opened=marks.opened_by(reading.prompt), blanks=blanks)
    return asked if thoughts is None else _behind(thoughts, asked)


def _offers(body: ChatCompletionRequest) -> shapes.Offers:
    """The functions whose calls are held, with their schemas: those that must be called, or all that may be
    where one of them is strict, where not all may be, or where words have a format."""
    choice, tools = body.choice_of_tools, body.callable_tools
    known = {name: schema or _NOTHING for name, schema in schemas(tools).items()}
    if isinstance(choice, NamedTool):
        return {choice.name: known[choice.name]}
    if choice == "required":
        return known
    strict = {tool.function.name for tool in tools if tool.function.strict}
    some = isinstance(body.tool_choice, AllowedTools)
    if choice == "none" or not (strict or some or body.response_format):
        return {}
    return {name: schema if name in strict else {"type": "object"} for name, schema in known.items()}


def _calls(
    body: ChatCompletionRequest, reading: Reading, offers: shapes.Offers, asked: Grammar | None
) -> Grammar | None:
    """The family's own form, alone where a call is demanded, else beside words or the format that is asked
    for."""
    calls = TOOLS[reading.tool_parser].shape
    if calls is None:
        return asked
    one = not body.parallel_tool_calls
    if body.choice_of_tools != "auto":
        return _tag(shapes.demanded(calls, offers, one or isinstance(body.choice_of_tools, NamedTool)))
    form = calls(offers, one)
    if asked is None:
        return _tag(form.among_words())
    wanted = _format(asked)
    both = None if wanted is None else form.instead_of(wanted)
    return asked if both is None else _tag(both, param=asked.param)


def _format(asked: Grammar) -> shapes.Shape | None:
    """None: what is asked for is no JSON, and the engine alone can read it."""
    if asked.kind not in _JSON:
        return None
    return shapes.arguments(json.loads(asked.text) if asked.text else {"type": "object"})


def _in_channels(
    asked: Grammar | None, offers: shapes.Offers, free: bool, tokenizer: Tokenizer
) -> Grammar | None:
    channels = Channels(_ids(tokenizer, asked.param if asked else "tools"))
    ids = tuple(channels.marks.values())
    if asked is not None and (free or not offers):
        if offers and (wanted := _format(asked)) is not None:
            return _tag(channels.calls_or(wanted, offers), ids, param=asked.param)
        return _behind(channels.final(), asked, ids)
    return _tag(channels.calls_or_text(offers) if free else channels.calls(offers), ids)


def _ids(tokenizer: Tokenizer, param: str) -> Mapping[str, int]:
    ids = {mark: id_ for mark in MARKS for id_ in tokenizer.special_ids_of((mark,))}
    for mark in NEEDED:
        if mark not in ids:
            raise ApiError(
                400, f"{param}: this model's tokenizer has no token {mark}, so its channels cannot be held"
            )
    return ids


def _behind(before: shapes.Shape, grammar: Grammar, marks: tuple[int, ...] = ()) -> Grammar:
    return Grammar(
        kind=grammar.kind, text=grammar.text, param=grammar.param, before=_json(before), marks=marks
    )


def _tag(shape: shapes.Shape, marks: tuple[int, ...] = (), *, param: str = "tools") -> Grammar:
    text = _json({"type": "structural_tag", "format": shape})
    return Grammar(kind="structural_tag", text=text, param=param, marks=marks)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
