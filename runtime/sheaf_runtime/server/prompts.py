"""From request bodies to token ids and sampling parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.schemas import Generate, Message
from sheaf_runtime.server.service import Service
from sheaf_runtime.text import ChatTemplateError, left_out

T = TypeVar("T")
# Encoding this much takes about as long as handing it to a thread and back.
INLINE_CHARACTERS = 512


async def encode(service: Service, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
    """Token ids of a text. Raises ``ApiError`` 400 at once for one that cannot fit the context."""
    tokenizer = service.folder.tokenizer
    limit = service.max_model_len
    if limit is not None and len(text) > limit * tokenizer.longest_token:
        raise ApiError(
            400,
            f"This model's maximum context length is {limit} tokens. However, your {param} has "
            f"{len(text)} characters, which is more than that in any case. Please reduce its length.",
            param=param,
            code="context_length_exceeded",
        )
    return await _off_loop(
        service, len(text), lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens)
    )


async def render_chat(
    service: Service,
    messages: list[Message],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    variables: dict[str, Any] | None,
) -> str:
    """The prompt of a chat as text. Raises ``ApiError`` 400."""
    template = service.folder.chat_template
    if template is None:
        raise ApiError(
            400,
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
            param="messages",
        )
    plain = [message.for_template() for message in messages]
    generation = not continue_final_message if add_generation_prompt is None else add_generation_prompt

    def render() -> tuple[str, int | None]:
        text = template.render(
            plain,
            add_generation_prompt=generation,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        return text, left_out(plain, text)

    try:
        size = sum(len(message["content"]) for message in plain)
        text, silent = await _off_loop(service, size, render)
    except ChatTemplateError as error:
        raise ApiError(400, str(error), param="messages") from error
    if silent is not None:
        name = f"messages.{silent}"
        raise ApiError(
            400,
            f"{name}: the chat template has no place for this message (role {plain[silent]['role']}); "
            "put its content into another message",
            param=name,
        )
    return text


async def _off_loop(service: Service, size: int, work: Callable[[], T]) -> T:
    """In a thread, unless it is so little that the thread would cost more."""
    if size <= INLINE_CHARACTERS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(service.tokenizing, work)


def check_token_ids(service: Service, ids: list[int], param: str) -> None:
    """Raises ``ApiError`` 400 for no tokens, or ids that the model does not have."""
    if not ids:
        raise ApiError(400, f"{param}: the prompt has no tokens; give at least one", param=param)
    info = service.client.info
    if info is not None and max(ids) >= info.vocab_size:
        raise ApiError(
            400, f"{param}: token id {max(ids)} is outside the vocabulary of {info.vocab_size}", param=param
        )


def sampling_params(
    service: Service,
    body: Generate,
    prompt_tokens: int,
    *,
    max_tokens: int | None,
    default: int | None,
    param: str,
) -> SamplingParams:
    """``max_tokens`` as asked for; without it ``default``, or all that is left of the context.

    Raises ``ApiError`` 400 when prompt and output together exceed the context.
    """
    limit = service.max_model_len
    assert limit is not None
    left = limit - prompt_tokens
    if left < 1 or (max_tokens is not None and max_tokens > left):
        wanted = max_tokens or 1
        noun = "messages" if param == "messages" else "prompt"
        raise ApiError(
            400,
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{prompt_tokens + wanted} tokens ({prompt_tokens} in the {noun}, {wanted} in the completion). "
            f"Please reduce the length of the {noun} or completion.",
            param=param,
            code="context_length_exceeded",
        )
    if max_tokens is None:
        max_tokens = left if default is None else min(default, left)
    if body.min_tokens > max_tokens:
        raise ApiError(
            400, f"min_tokens: {body.min_tokens} is more than max_tokens ({max_tokens})", param="min_tokens"
        )
    defaults = service.folder.defaults
    return SamplingParams(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=max(0, defaults.top_k if body.top_k is None else body.top_k),
        seed=body.seed,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
    )
