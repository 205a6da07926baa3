"""What a chat request says about tools: the functions, and which of them the model may or must call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from sheaf_runtime.server.unsupported import ParameterError

MOST_TOOLS = 1024
LONGEST_NAME = 256
_CHOICE = (
    'must be "none", "auto", "required", {"type": "function", "function": {"name": "..."}} or '
    '{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [...]}}'
)
_ALLOWED = (
    'of type allowed_tools needs "allowed_tools": {"mode": "auto" or "required", "tools": '
    '[{"type": "function", "function": {"name": "..."}}]}'
)


class Function(BaseModel):
    """``parameters`` is a JSON schema of an object; without it the function takes none. Further keys are for
    the chat template."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["function"]
    function: Function


class NamedTool(NamedTuple):
    """The one function that must be called."""

    name: str


class AllowedTools(NamedTuple):
    """The functions that may be called, of those that the model is told about."""

    mode: Literal["auto", "required"]
    names: frozenset[str]


ToolMode = Literal["none", "auto", "required"]


def _choice(value: Any) -> ToolMode | NamedTool | AllowedTools:
    if value in ("none", "auto", "required"):
        mode: ToolMode = value
        return mode
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _allowed(value.get("allowed_tools"))
    name = _name(value)
    if name is None:
        raise ValueError(_CHOICE)
    return NamedTool(name)


def _allowed(value: Any) -> AllowedTools:
    mode, tools = (value.get("mode"), value.get("tools")) if isinstance(value, dict) else (None, None)
    names = [_name(tool) for tool in tools] if isinstance(tools, list) else []
    known = [name for name in names if name is not None]
    if mode not in ("auto", "required") or not names or len(known) < len(names):
        raise ValueError(_ALLOWED)
    return AllowedTools(mode, frozenset(known))


def _name(value: Any) -> str | None:
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name else None


_NAMED = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1}},
            "required": ["name"],
        },
    },
    "required": ["type", "function"],
}
_SOME = {
    "type": "object",
    "properties": {
        "mode": {"enum": ["auto", "required"]},
        "tools": {"type": "array", "items": _NAMED, "minItems": 1},
    },
    "required": ["mode", "tools"],
}
ToolChoice = Annotated[
    ToolMode | NamedTool | AllowedTools,
    PlainValidator(_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                _NAMED,
                {
                    "type": "object",
                    "properties": {"type": {"const": "allowed_tools"}, "allowed_tools": _SOME},
                    "required": ["type", "allowed_tools"],
                },
            ]
        }
    ),
]
Tools = Annotated[list[Tool], Field(min_length=1, max_length=MOST_TOOLS)]


def for_template(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    """As they were sent."""
    return [tool.model_dump(exclude_unset=True) for tool in tools] if tools else None


def schemas(tools: list[Tool]) -> Mapping[str, dict[str, Any] | None]:
    """The parameters of each function by its name."""
    return {tool.function.name: tool.function.parameters for tool in tools}


def check_choice(tools: list[Tool] | None, choice: ToolMode | NamedTool | AllowedTools | None) -> None:
    """Raises ``ParameterError`` for a choice that the tools do not offer."""
    if choice in (None, "none"):
        return
    if not tools:
        raise ParameterError("tool_choice", "only allowed with tools")
    names = choice.names if isinstance(choice, AllowedTools) else ()
    for name in (choice.name,) if isinstance(choice, NamedTool) else sorted(names):
        if name not in schemas(tools):
            raise ParameterError("tool_choice", f"there is no function {name!r} in tools")
