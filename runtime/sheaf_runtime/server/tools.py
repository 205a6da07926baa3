"""What a chat request says about tools: the functions, and which of them the model may or must call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from sheaf_runtime.server.unsupported import ParameterError

MOST_TOOLS = 1024
LONGEST_NAME = 256
_CHOICE = 'must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}'


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


ToolMode = Literal["none", "auto", "required"]


def _choice(value: Any) -> ToolMode | NamedTool:
    if value in ("none", "auto", "required"):
        mode: ToolMode = value
        return mode
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(_CHOICE)
    return NamedTool(name)


ToolChoice = Annotated[
    ToolMode | NamedTool,
    PlainValidator(_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
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


def check_choice(tools: list[Tool] | None, choice: ToolMode | NamedTool | None) -> None:
    """Raises ``ParameterError`` for a choice that the tools do not offer."""
    if choice in (None, "none"):
        return
    if not tools:
        raise ParameterError("tool_choice", "only allowed with tools")
    if isinstance(choice, NamedTool) and choice.name not in schemas(tools):
        raise ParameterError("tool_choice", f"there is no function {choice.name!r} in tools")
