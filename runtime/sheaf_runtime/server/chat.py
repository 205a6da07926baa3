"""From the body of a chat to its generation under way; ``/v1/responses`` comes here too."""

from __future__ import annotations

from msgspec.structs import replace
from starlette.requests import Request

from sheaf_runtime.server.deadline import timeout_of
from sheaf_runtime.server.generation import Generation
from sheaf_runtime.server.held import held_output
from sheaf_runtime.server.prompts import encode, finish_prompt, render_chat
from sheaf_runtime.server.reading import Reading
from sheaf_runtime.server.sampling import sampling_params
from sheaf_runtime.server.schemas import ChatCompletionRequest
from sheaf_runtime.server.service import Service


async def start_chat(
    service: Service,
    body: ChatCompletionRequest,
    request: Request,
    arrival: float,
    request_id: str,
    *,
    param: str = "messages",
) -> tuple[Generation, Reading]:
    """Returns when the engine has accepted it. ``param`` is the field that the prompt comes from. Raises
    ``ApiError``."""
    text = await render_chat(service, body, param=param)
    keep = body.truncate_prompt_tokens
    # The template writes the special tokens itself.
    ids = await encode(service, text, add_special_tokens=body.add_special_tokens, param=param, keep=keep)
    max_tokens = body.max_completion_tokens or body.max_tokens
    ids = finish_prompt(service, ids, param, keep=keep, max_tokens=max_tokens)
    reading = Reading(service, body, text)
    sampling = sampling_params(service, body, len(ids), max_tokens=max_tokens, default=None, param=param)
    held = held_output(body, reading, service.folder.tokenizer)
    sampling, reading.is_held = replace(sampling, grammar=held), held is not None
    generation = Generation(
        service,
        request_id,
        [(ids, sampling)],
        body,
        arrival,
        timeout=timeout_of(request, body.timeout),
        visible=reading.visible,
        counts_tokens=reading.tells_thoughts,
    )
    generation.report_to(request.scope)
    await generation.start(request.receive)
    return generation, reading
