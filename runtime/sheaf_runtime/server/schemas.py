"""The bodies of requests, strict about types: nothing that changes the answer is silently ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

MAX_STOPS = 4
MAX_CHOICES = 128
MAX_PROMPTS = 1024
Prompt = str | list[int]

# Parameters that exist elsewhere but not here yet, and the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "web_search_options": (),
    "verbosity": (),
    # vLLM's
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "include_reasoning": (True,),
    "structured_outputs": (),
    "documents": ([],),
    "chat_template": (),
    "bad_words": ([],),
    # completions' alone
    "echo": (False,),
    "add_special_tokens": (False,),
}
# Bookkeeping of OpenAI's own service; nothing about the answer depends on it.
HARMLESS = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)


class ParameterError(ValueError):
    """Says which field is wrong where pydantic only knows that the whole body is."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis, at the server's choice


def _stop_list(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("must be a non-empty string or a list of them")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"takes at most {MAX_STOPS} strings")
    return stops


Stop = Annotated[
    list[str],
    PlainValidator(_stop_list),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS}]}
    ),
]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Generate(Body):
    """What completions and chat completions share."""

    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = []
    stop_token_ids: list[TokenId] | None = Field(None, max_length=128)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        return refuse_unsupported(data, cls.model_fields.keys())

    @model_validator(mode="after")
    def _consistent(self) -> Generate:
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options", "only allowed with stream=true")
        return self


class CompletionRequest(Generate):
    prompt: Annotated[
        list[Prompt],
        PlainValidator(lambda value: prompt_list(value)),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}},
                    {"type": "array", "items": {"type": "integer"}},
                    {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
                ]
            }
        ),
    ]
    echo: bool = False
    add_special_tokens: bool = True


def _content(value: Any) -> str | None:
    """Text parts are joined by line breaks: most templates expect one string."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of text parts")
    for part in value:
        known = isinstance(part, dict) and part.keys() == {"type", "text"}
        if not (known and part["type"] == "text" and isinstance(part["text"], str)):
            raise ValueError('only text parts are supported: {"type": "text", "text": "..."}')
    return "\n".join(part["text"] for part in value)


Content = Annotated[
    str | None,
    PlainValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
]


class Message(BaseModel):
    """``content`` and whatever else the template of the model reads (``name``, ``reasoning_content``)."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None

    @model_validator(mode="after")
    def _supported(self) -> Message:
        extra = self.model_extra or {}
        if extra.get("tool_calls") or extra.get("function_call"):
            raise ValueError("tool calls are not supported yet")
        if self.content is None:
            raise ValueError("content must be a string or a list of text parts")
        return self

    def for_template(self) -> dict[str, Any]:
        extra = {key: value for key, value in (self.model_extra or {}).items() if value is not None}
        return {"role": self.role, "content": self.content, **extra}


class ChatInput(Body):
    """What becomes the prompt of a chat."""

    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class ChatCompletionRequest(Generate, ChatInput):
    max_completion_tokens: int | None = Field(None, ge=1)


class TokenizeRequest(Body):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[TokenId]


def refuse_unsupported(data: Any, known: Any) -> Any:
    """Drops nulls and harmless parameters, and names the first one that would otherwise be ignored."""
    if not isinstance(data, dict):
        return data
    kept = {}
    for name, value in data.items():
        if value is None or name in HARMLESS:
            continue
        if name in known or name not in UNSUPPORTED:
            kept[name] = value  # pydantic says which are unknown
        elif not any(_same(value, neutral) for neutral in UNSUPPORTED[name]):
            raise ParameterError(name, "not supported yet; leave it out")
    return kept


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def prompt_list(value: Any) -> list[Prompt]:
    """The four forms of ``prompt`` as a list of prompts; quick to refuse long lists of the wrong type."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")
    if not value:
        raise ValueError("must not be empty")
    if all(type(item) is int for item in value):
        return [_token_ids(value)]
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"takes at most {MAX_PROMPTS} prompts")
    if all(isinstance(item, str) for item in value):
        return list(value)
    if all(isinstance(item, list) and item and all(type(id_) is int for id_ in item) for item in value):
        return [_token_ids(item) for item in value]
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")


def _token_ids(ids: list[int]) -> list[int]:
    if min(ids) < 0 or max(ids) >= 2**31:
        raise ValueError("token ids must lie within the vocabulary")
    return ids
