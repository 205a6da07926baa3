"""The body of ``/v1/responses``, and the chat that it asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from sheaf_runtime.server.errors import ApiError, from_validation
from sheaf_runtime.server.fields import LogitBias, Number, Stop
from sheaf_runtime.server.responses.items import is_unfinished, messages_of
from sheaf_runtime.server.schemas import Body, ChatCompletionRequest, ReasoningEffort, RequestId, Verbosity
from sheaf_runtime.server.unsupported import ParameterError

# Each would change the answer or where it is kept.
REFUSED = {
    "background": "answers are made while the client waits; leave it out",
    "conversation": "conversations are not stored here; send the earlier items in input",
    "previous_response_id": "responses are not stored here; send the earlier items in input",
    "prompt": "prompt templates are not stored here; write it into instructions and input",
    "max_tool_calls": "there are no tools that run here; leave it out",
}
# All but the first are about what an answer from here never has.
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


def _items(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise ValueError("must be a string or a list of items")
    if not value:
        raise ValueError("must not be empty")
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                raise ValueError(f'item {index} must be an object: {{"role": "user", "content": "..."}}')
    return value


Items = Annotated[
    str | list[dict[str, Any]],
    PlainValidator(_items),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "object"}, "minItems": 1},
            ]
        }
    ),
]


class Reasoning(Body):
    """``summary`` asks for one where the thoughts themselves are secret; here they are told."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Body):
    """``format`` is that of chats, without its inner object."""

    format: dict[str, Any] = Field({"type": "text"})
    verbosity: Verbosity | None = None


class StreamOptions(Body):
    include_obfuscation: bool = False  # padding against traffic analysis, at the server's choice


class ResponsesRequest(Body):
    input: Items
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Number("max_completion_tokens")] = None
    temperature: Annotated[float | None, Number("temperature")] = None
    top_p: Annotated[float | None, Number("top_p")] = None
    top_k: Annotated[int | None, Number("top_k")] = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    text: TextOptions = Field(default_factory=lambda: TextOptions(format={"type": "text"}))
    tools: list[dict[str, Any]] = Field([])
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning | None = None
    include: list[Include] = Field([])
    top_logprobs: Annotated[int, Number("top_logprobs")] = 0
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: dict[str, str] = Field({})
    store: bool = False
    user: str | None = None
    # vLLM's
    seed: Annotated[int | None, Number("seed")] = None
    stop: Stop = Field([])
    ignore_eos: bool = False
    logit_bias: LogitBias = Field({})
    frequency_penalty: Annotated[float, Number("frequency_penalty")] = 0.0
    presence_penalty: Annotated[float, Number("presence_penalty")] = 0.0
    repetition_penalty: Annotated[float | None, Number("repetition_penalty")] = None
    include_stop_str_in_output: bool = False
    structured_outputs: dict[str, Any] | None = None
    skip_special_tokens: bool = True
    request_id: RequestId = None
    priority: Annotated[int, Number("priority")] = 0
    timeout: Annotated[float | None, Number("timeout")] = None
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, data: Any) -> Any:
        for name in REFUSED.keys() & (data.keys() if isinstance(data, dict) else ()):
            if data[name] not in (None, False):
                raise ParameterError(name, REFUSED[name])
            data = {key: value for key, value in data.items() if key != name}
        return data

    @property
    def with_logprobs(self) -> bool:
        return "message.output_text.logprobs" in self.include

    @property
    def _chooses_nothing(self) -> bool:
        """Answers say "auto" also where there are no tools, and clients send that back."""
        return not self.tools and self.tool_choice in ("auto", "none")

    def chat(self) -> ChatCompletionRequest:
        """Raises ``ApiError`` 400 that names this body's fields."""
        try:
            messages = messages_of(self.input, self.instructions)
            fields = {
                "messages": messages,
                "max_completion_tokens": self.max_output_tokens,
                "tools": [_tool(tool, index) for index, tool in enumerate(self.tools)] or None,
                "tool_choice": None if self._chooses_nothing else _choice(self.tool_choice),
                "reasoning_effort": self.reasoning.effort if self.reasoning else None,
                "verbosity": self.text.verbosity,
                "response_format": _format(self.text.format),
                "continue_final_message": is_unfinished(self.input),
                "logprobs": self.with_logprobs,
                "top_logprobs": self.top_logprobs if self.with_logprobs else None,
                "truncate_prompt_tokens": -1 if self.truncation == "auto" else None,
                "logit_bias": {str(id_): bias for id_, bias in self.logit_bias.items()},
            }
            for name in _SAME:
                fields[name] = getattr(self, name)
            return ChatCompletionRequest.model_validate(fields)
        except ParameterError as error:
            raise ApiError(400, str(error), param=error.param) from error
        except ValidationError as error:
            raise _renamed(from_validation(error.errors())) from error


_SAME = (
    *("model", "temperature", "top_p", "top_k", "parallel_tool_calls", "seed", "stop", "ignore_eos"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "include_stop_str_in_output"),
    *("structured_outputs", "skip_special_tokens", "priority", "timeout", "cache_salt"),
    "chat_template_kwargs",
)


# Of a chat's tool_choice: what is an object of its own there.
_FLAT = (
    ('"function": {"name": "..."}', '"name": "..."'),
    ('"allowed_tools": {"mode"', '"mode"'),
    ("]}", "]"),
)


def _renamed(error: ApiError) -> ApiError:
    """An error about the chat, in this body's names."""
    param = error.param or ""
    first, _, rest = param.partition(".")
    name = {"messages": "input", "response_format": "text.format"}.get(first, first)
    if first == "tools":
        name = f"tools.{rest.replace('function.', '')}"
    message = str(error.detail).replace("response_format", "text.format")
    if name == "tool_choice":
        for chats, own in _FLAT:
            message = message.replace(chats, own)
    return ApiError(400, message.replace(param, name, 1) if param else message, param=name or None)


def _tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    """A chat's tool has its function in an object of its own."""
    kind = tool.get("type")
    if kind != "function":
        raise ParameterError(f"tools.{index}.type", f"{str(kind)[:40]!r} is not supported; only function is")
    return {"type": kind, "function": {key: value for key, value in tool.items() if key != "type"}}


def _choice(choice: str | dict[str, Any]) -> Any:
    """As a chat has it, with the name of a function in an object of its own."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        if isinstance(tools, list):
            tools = [_choice(tool) if isinstance(tool, dict) else tool for tool in tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}
    return choice


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    inner = {key: value for key, value in given.items() if key != "type"}
    return {"type": "json_schema", "json_schema": inner}
