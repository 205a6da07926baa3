"""Calls that a request demands: the constraint that makes the model write them."""

from __future__ import annotations

import json
from typing import Any

from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.server.schemas import ChatCompletionRequest
from sheaf_runtime.server.tools import NamedTool, schemas

Format = dict[str, Any]  # of xgrammar's structural tags
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def demanded_calls(body: ChatCompletionRequest) -> Grammar | None:
    """The arguments alone where a function is named; ``[{"name": ..., "parameters": ...}, ...]`` where any is
    required, each schema a document of its own, so that its references hold."""
    choice, tools = body.choice_of_tools, schemas(body.tools or [])
    if isinstance(choice, NamedTool):
        return Grammar(kind="json_schema", text=json.dumps(tools[choice.name] or _NOTHING), param="tools")
    if choice != "required":
        return None
    calls = {
        "type": "tags_with_separator",
        "tags": [_call(name, schema or _NOTHING) for name, schema in tools.items()],
        "separator": ", ",
        "at_least_one": True,
        "stop_after_first": not body.parallel_tool_calls,
    }
    ends = [{"type": "const_string", "value": bracket} for bracket in "[]"]
    format_ = {"type": "sequence", "elements": [ends[0], calls, ends[1]]}
    return Grammar(
        kind="structural_tag", text=json.dumps({"type": "structural_tag", "format": format_}), param="tools"
    )


def _call(name: str, schema: Format) -> Format:
    return {
        "type": "tag",
        "begin": f'{{"name": {json.dumps(name)}, "parameters": ',
        "content": {"type": "json_schema", "json_schema": schema},
        "end": "}",
    }
