"""The bodies of requests, strict about types: nothing that changes the answer is silently ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.server.fields import (
    AnyTokenIds,
    LogitBias,
    Number,
    Prompts,
    Stop,
    TokenIds,
    Words,
)
from sheaf_runtime.server.messages import Message
from sheaf_runtime.server.structured import ResponseFormat, StructuredOutputs
from sheaf_runtime.server.tools import (
    AllowedTools,
    NamedTool,
    Tool,
    ToolChoice,
    ToolMode,
    Tools,
    check_choice,
)
from sheaf_runtime.server.unsupported import ParameterError, refuse_unsupported

Truncation = Annotated[int | None, Number("truncate_prompt_tokens")]
# What the answer's id ends with. Nothing in the engine goes by it, so two may be equal.
RequestId = Annotated[str | None, Field(pattern=r"^[!-~]{1,128}$")]
Verbosity = Literal["low", "medium", "high"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


MOST_FIELDS = 256  # of one object: what is not known is looked at one by one


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MOST_FIELDS:
            raise ValueError(f"takes at most {MOST_FIELDS} fields, got {len(data)}")
        return refuse_unsupported(data, cls.model_fields.keys())


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis, at the server's choice


class Generate(Body):
    """What completions and chat completions share. Where a field says nothing, the default of the model's
    ``generation_config.json`` holds, if it has one."""

    model: str | None = None
    n: Annotated[int, Number("n")] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Number("max_tokens")] = None
    min_tokens: Annotated[int, Number("min_tokens")] = 0
    temperature: Annotated[float | None, Number("temperature")] = None
    top_p: Annotated[float | None, Number("top_p")] = None
    top_k: Annotated[int | None, Number("top_k")] = None
    min_p: Annotated[float | None, Number("min_p")] = None
    frequency_penalty: Annotated[float, Number("frequency_penalty")] = 0.0
    presence_penalty: Annotated[float, Number("presence_penalty")] = 0.0
    repetition_penalty: Annotated[float | None, Number("repetition_penalty")] = None
    logit_bias: LogitBias = {}
    allowed_token_ids: TokenIds | None = None
    bad_words: Words = []
    seed: Annotated[int | None, Number("seed")] = None
    stop: Stop = []
    stop_token_ids: TokenIds = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    prompt_logprobs: Annotated[int | None, Number("prompt_logprobs")] = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: Truncation = None
    request_id: RequestId = None
    priority: Annotated[int, Number("priority")] = 0
    timeout: Annotated[float | None, Number("timeout")] = None
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)
    response_format: ResponseFormat = None
    structured_outputs: StructuredOutputs = None

    @model_validator(mode="after")
    def _consistent(self) -> Generate:
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options", "only allowed with stream=true")
        if self.stream and self.prompt_logprobs is not None:
            raise ParameterError("prompt_logprobs", "not available with stream=true")
        if self.response_format is not None and self.structured_outputs is not None:
            raise ParameterError("structured_outputs", "not beside response_format; give one of them")
        return self

    @property
    def constraint(self) -> Grammar | None:
        """What the request asks of its output."""
        return self.response_format or self.structured_outputs

    @property
    def num_logprobs(self) -> int | None:
        """How many likely tokens are reported beside each output token; None: no log-probabilities."""
        raise NotImplementedError


class CompletionRequest(Generate):
    prompt: Prompts
    echo: bool = False
    logprobs: Annotated[int | None, Number("logprobs")] = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _scores(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ParameterError("max_tokens", "must be at least 1, or 0 with echo=true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class ChatInput(Body):
    """What becomes the prompt of a chat."""

    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_special_tokens: bool = False
    tools: Tools | None = None


class ChatCompletionRequest(Generate, ChatInput):
    max_completion_tokens: Annotated[int | None, Number("max_completion_tokens")] = None
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Number("top_logprobs")] = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: ReasoningEffort | None = None
    verbosity: Verbosity | None = None
    include_reasoning: bool = True

    @model_validator(mode="after")
    def _asked(self) -> ChatCompletionRequest:
        check_choice(self.tools, self.tool_choice)
        if self.top_logprobs and not self.logprobs:
            raise ParameterError("top_logprobs", "only allowed with logprobs=true")
        if self.max_completion_tokens is not None:
            self.max_tokens = None  # beaten by it, whatever it says
        if self.max_tokens == 0:
            raise ParameterError("max_tokens", "must be at least 1")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def choice_of_tools(self) -> ToolMode | NamedTool:
        """What holds where the request says nothing: auto if there are tools."""
        choice = self.tool_choice
        if isinstance(choice, AllowedTools):
            return choice.mode
        return choice or ("auto" if self.tools else "none")

    @property
    def callable_tools(self) -> list[Tool]:
        """Those that may be called. The model is told about all of them: what it remembers of them stays."""
        tools, choice = self.tools or [], self.tool_choice
        if not isinstance(choice, AllowedTools):
            return tools
        return [tool for tool in tools if tool.function.name in choice.names]


class TokenizeRequest(ChatInput):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)  # type: ignore[assignment]
    add_special_tokens: bool | None = None  # type: ignore[assignment]
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: AnyTokenIds
