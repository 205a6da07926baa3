"""The messages of a chat, as requests bring them and as chat templates want them."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sheaf_runtime.server.fields import Content
from sheaf_runtime.server.tools import LONGEST_NAME


class CalledFunction(BaseModel):
    """``arguments`` is JSON text, as in answers; some clients send the object itself."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """Templates expect the arguments as an object."""
        arguments = self.function.arguments or {}
        if isinstance(arguments, str):
            arguments = _object_or_text(arguments)
        function = {"name": self.function.name, "arguments": arguments}
        call = {"type": self.type, "function": function}
        return call if self.id is None else {"id": self.id, **call}


def _object_or_text(arguments: str) -> dict[str, Any] | str:
    """What is no object, because a model got it wrong or was cut off in it, stays text."""
    if not arguments.strip():
        return {}
    with contextlib.suppress(ValueError, RecursionError):
        read = json.loads(arguments)
        if isinstance(read, dict):
            return read
    return arguments


# Those of the API. A template may know more, such as Granite's "document" and Llama 3's "ipython".
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class Message(BaseModel):
    """``content`` and whatever else the template of the model reads (``name``, ``tool_call_id``)."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: Content = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # its older name

    @model_validator(mode="after")
    def _supported(self) -> Message:
        if (self.model_extra or {}).get("function_call"):
            raise ValueError("function_call is not supported; use tool_calls")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant's messages have tool_calls")
        if self.content is None and self.role != "assistant":
            raise ValueError("content must be a string or a list of text parts")
        return self

    def for_template(self) -> dict[str, Any]:
        extra = {key: value for key, value in (self.model_extra or {}).items() if value is not None}
        message = {"role": self.role, "content": self.content or "", **extra}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if thoughts := self.reasoning or self.reasoning_content:
            message["reasoning"] = message["reasoning_content"] = thoughts
        return message
