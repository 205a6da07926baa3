"""``/v1/completions``, ``/v1/chat/completions`` and ``/v1/responses``."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request, Response

from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.server.answer import CompletionAnswer
from sheaf_runtime.server.chat import start_chat
from sheaf_runtime.server.chat_answer import ChatAnswer
from sheaf_runtime.server.deadline import timeout_of
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.fields import MAX_PROMPTS
from sheaf_runtime.server.generation import Generation
from sheaf_runtime.server.ids import new_id
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.prompts import encode as encode_prompt
from sheaf_runtime.server.prompts import finish_prompt
from sheaf_runtime.server.responses.answer import ResponseAnswer
from sheaf_runtime.server.responses.request import ResponsesRequest
from sheaf_runtime.server.sampling import sampling_params
from sheaf_runtime.server.schemas import ChatCompletionRequest, CompletionRequest
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.stream import respond

COMPLETION_MAX_TOKENS = 16  # OpenAI's default; a chat may use all that is left of the context


def completion_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["generation"], route_class=JsonRoute)

    @router.post("/completions", response_model=None)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue each prompt."""
        arrival = time.time()
        model = service.check_model(body.model)
        service.admit()
        if len(body.prompt) * body.n > MAX_PROMPTS:
            raise ApiError(400, f"n: prompts times n may be at most {MAX_PROMPTS}", param="n")
        prompts: list[tuple[list[int], SamplingParams]] = []
        for prompt in body.prompt:
            keep = body.truncate_prompt_tokens
            if isinstance(prompt, str):
                ids = await encode_prompt(
                    service, prompt, add_special_tokens=body.add_special_tokens, param="prompt", keep=keep
                )
            else:
                ids = prompt
                await asyncio.sleep(0)  # there may be so many that it took a while to read them
            ids = finish_prompt(service, ids, "prompt", keep=keep, max_tokens=body.max_tokens)
            sampling = sampling_params(
                service,
                body,
                len(ids),
                max_tokens=body.max_tokens,
                default=COMPLETION_MAX_TOKENS,
                param="prompt",
            )
            prompts.append((ids, sampling))
        generation = Generation(
            service, new_id("cmpl-"), prompts, body, arrival, timeout=timeout_of(request, body.timeout)
        )
        generation.report_to(request.scope)
        await generation.start(request.receive)
        answer = CompletionAnswer(generation, service.folder.tokenizer, arrival, model, body)
        return await respond(generation, answer, stream=body.stream)

    @router.post("/chat/completions", response_model=None)
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer the last message of a conversation."""
        arrival = time.time()
        model = service.check_model(body.model)
        service.admit()
        generation, reading = await start_chat(service, body, request, arrival, new_id("chatcmpl-"))
        answer = ChatAnswer(generation, service.folder.tokenizer, arrival, model, body, reading)
        return await respond(generation, answer, stream=body.stream)

    @router.post("/responses", response_model=None)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation of items; nothing of it is stored."""
        arrival = time.time()
        model = service.check_model(body.model)
        service.admit()
        generation, reading = await start_chat(
            service, body.chat(), request, arrival, new_id("resp_"), param="input"
        )
        answer = ResponseAnswer(generation, service.folder.tokenizer, arrival, model, body, reading)
        return await respond(generation, answer, stream=body.stream)

    return router
