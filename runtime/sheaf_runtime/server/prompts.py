"""From request bodies to token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from tokenizers import Encoding

from sheaf_runtime.protocol.limits import refuse_ids, refuse_length
from sheaf_runtime.server.body import LARGE
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.messages import ROLES
from sheaf_runtime.server.sampling import refuse
from sheaf_runtime.server.schemas import ChatCompletionRequest, ChatInput
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.tools import for_template
from sheaf_runtime.text import ChatTemplate, ChatTemplateError, left_out
from sheaf_runtime.text.chat_template import Message

T = TypeVar("T")
# Encoding this much takes about as long as handing it to a thread and back.
INLINE_CHARACTERS = 512
# So many are tokenized although their tokens cannot fit the context, to count or to cut them.
MOST_CUT = 2**20


async def encode(
    service: Service, text: str, *, add_special_tokens: bool, param: str, keep: int | None = None
) -> list[int]:
    """Token ids of a text, of which all have to fit the context, or only some are kept (``keep``).

    Raises ``ApiError`` 400 at once for a text that is too long for that."""
    tokenizer = service.folder.tokenizer
    _check_size(service, len(text), param, cut=keep is not None)
    return await _ids(
        service, len(text), lambda: tokenizer.encoding(text, add_special_tokens=add_special_tokens)
    )


async def encode_pair(service: Service, first: str, second: str, *, param: str) -> list[int]:
    """Of two texts as one, which may be cut later. Raises ``ApiError`` 400 as ``encode`` does."""
    size = len(first) + len(second)
    _check_size(service, size, param, cut=True)
    tokenizer = service.folder.tokenizer
    return await _ids(service, size, lambda: tokenizer.encoding_of_pair(first, second))


def _check_size(service: Service, characters: int, param: str, *, cut: bool) -> None:
    """Before a text is tokenized. Raises ``ApiError`` 400 for one that cannot fit the context, and where it
    may be ``cut`` for one that is much longer than that."""
    limit = service.max_model_len
    if limit is not None and not cut:
        least = characters // service.folder.tokenizer.longest_token
        refuse(refuse_length(limit, least, 1, param=param, at_least=True))
    elif characters > (most := _most_cut(service)):
        raise ApiError(
            400, f"{param}: {characters} characters are too many to be cut; send at most {most}", param=param
        )


def _most_cut(service: Service) -> int:
    return max(MOST_CUT, (service.max_model_len or 0) * service.folder.tokenizer.longest_token)


async def _ids(service: Service, size: int, work: Callable[[], Encoding]) -> list[int]:
    """Large texts are encoded at low priority. Their ids are written down here: whoever does it has the
    interpreter's lock, and must not wait for the processor then."""
    if size <= LARGE:
        return list((await off_loop(service, size, work)).ids)
    encoding = await asyncio.get_running_loop().run_in_executor(service.tokenizing_large, work)
    return list(encoding.ids)


async def render_chat(service: Service, body: ChatInput, *, param: str = "messages") -> str:
    """The prompt of a chat as text. Raises ``ApiError`` 400."""
    template = service.folder.chat_template
    if body.chat_template is not None:
        if not service.server_config.trust_request_chat_template:
            raise ApiError(
                400,
                "chat_template: a template is a program; those of requests run where the server was started "
                "with --trust-request-chat-template",
                param="chat_template",
            )
        try:
            template = ChatTemplate(body.chat_template, service.folder.tokenizer.special_tokens)
        except ChatTemplateError as error:
            raise ApiError(400, f"chat_template: {error}", param="chat_template") from error
    if template is None:
        raise ApiError(
            400,
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
            param="messages",
        )
    for index, message in enumerate(body.messages):
        if message.role not in ROLES and not template.names(message.role):
            # What another endpoint was given need not be one message each.
            where = f"{param}.{index}.role" if param == "messages" else param
            raise ApiError(
                400,
                f"{where}: the chat template knows no {message.role!r}; use one of {', '.join(ROLES)}",
                param=where,
            )
    plain = [message.for_template() for message in body.messages]
    continues = body.continue_final_message
    generation = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    tools = for_template(body.tools)
    variables = service.server_config.default_chat_template_kwargs | (body.chat_template_kwargs or {})
    if isinstance(body, ChatCompletionRequest):
        if body.choice_of_tools == "none" and service.server_config.exclude_tools_when_tool_choice_none:
            tools = None
        if body.reasoning_effort is not None:
            # Two families of templates: some read the effort, some whether to think at all.
            thinks = body.reasoning_effort != "none"
            variables = {"enable_thinking": thinks, **variables, "reasoning_effort": body.reasoning_effort}
        if body.verbosity is not None:
            if body.verbosity != "medium" and "verbosity" not in template.source:
                name = "verbosity" if param == "messages" else "text.verbosity"
                raise ApiError(
                    400, f"{name}: this model's chat template knows none; leave it out", param=name
                )
            variables = {**variables, "verbosity": body.verbosity}
    chosen = template

    def written(messages: Sequence[Message]) -> str:
        return chosen.render(
            messages,
            add_generation_prompt=generation,
            continue_final_message=continues,
            tools=tools,
            documents=body.documents,
            variables=variables,
        )

    size = sum(len(message["content"]) for message in plain)
    if size > _most_cut(service) and (limit := service.max_model_len):
        least = size // service.folder.tokenizer.longest_token
        refuse(refuse_length(limit, least, 1, param=param, at_least=True))

    def render() -> tuple[str, int | None]:
        text = written(plain)
        return text, left_out(plain, text, written)

    try:
        text, silent = await off_loop(service, size, render)
    except ChatTemplateError as error:
        raise ApiError(400, str(error), param=param) from error
    if silent is not None:
        name = f"{param}.{silent}"
        raise ApiError(
            400,
            f"{name}: the chat template has no place for this message (role {plain[silent]['role']}); "
            "put its content into another message",
            param=name,
        )
    return text


async def off_loop(service: Service, size: int, work: Callable[[], T]) -> T:
    """In a thread, unless it is so little that the thread would cost more."""
    if size <= INLINE_CHARACTERS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(service.tokenizing, work)


def finish_prompt(
    service: Service, ids: list[int], param: str, *, keep: int | None = None, max_tokens: int | None = None
) -> list[int]:
    """The prompt's last ``keep`` tokens (-1: as many as the context holds beside the output asked for).

    Raises ``ApiError`` 400 for no tokens, or ids that the model does not have."""
    info = service.client.info
    assert info is not None
    if keep is not None:
        keep = max(1, info.max_model_len - max(1, max_tokens or 1)) if keep < 0 else keep
        ids = ids[max(0, len(ids) - keep) :]
    if not ids:
        raise ApiError(400, f"{param}: the prompt has no tokens; give at least one", param=param)
    refuse(refuse_ids(param, (min(ids), max(ids)), info.vocab_size))
    return ids
