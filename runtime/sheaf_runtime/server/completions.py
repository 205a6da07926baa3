"""``/v1/completions`` and ``/v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from sheaf_runtime.protocol.messages import FinishReason
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.server import answers
from sheaf_runtime.server.answers import Usage, encode
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.generation import ClientDisconnected, Generation, Piece
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.prompts import check_token_ids, render_chat, sampling_params
from sheaf_runtime.server.prompts import encode as encode_prompt
from sheaf_runtime.server.schemas import (
    MAX_PROMPTS,
    ChatCompletionRequest,
    CompletionRequest,
    Generate,
    StreamOptions,
)
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.stream import EventStream, event, usage

COMPLETION_MAX_TOKENS = 16  # OpenAI's default; a chat may use all that is left of the context


def completion_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["generation"], route_class=JsonRoute)

    @router.post("/completions", response_model=None)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue each prompt."""
        arrival = time.time()
        model = service.check_model(body.model)
        service.admit()
        if len(body.prompt) * (body.n or 1) > MAX_PROMPTS:
            raise ApiError(400, f"n: prompts times n may be at most {MAX_PROMPTS}", param="n")
        prompts: list[tuple[list[int], SamplingParams]] = []
        for prompt in body.prompt:
            if isinstance(prompt, str):
                ids = await encode_prompt(
                    service, prompt, add_special_tokens=body.add_special_tokens, param="prompt"
                )
            else:
                ids = prompt
            check_token_ids(service, ids, "prompt")
            sampling = sampling_params(
                service,
                body,
                len(ids),
                max_tokens=body.max_tokens,
                default=COMPLETION_MAX_TOKENS,
                param="prompt",
            )
            prompts.append((ids, sampling))
        generation = Generation(service, _new_id("cmpl"), prompts, body, arrival)
        await generation.start(request.receive)
        echoed = _echoes(service, body, prompts)
        answer = _Completion(generation, arrival, model, body, echoed)
        if body.stream:
            return EventStream(generation, answer.chunk, answer.usage_chunk if answer.include_usage else None)
        return await _whole(generation, answer.body)

    @router.post("/chat/completions", response_model=None)
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer the last message of a conversation."""
        arrival = time.time()
        model = service.check_model(body.model)
        service.admit()
        text = await render_chat(
            service,
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            variables=body.chat_template_kwargs,
        )
        # The template writes the special tokens itself.
        ids = await encode_prompt(service, text, add_special_tokens=False, param="messages")
        check_token_ids(service, ids, "messages")
        max_tokens = body.max_completion_tokens or body.max_tokens
        sampling = sampling_params(
            service, body, len(ids), max_tokens=max_tokens, default=None, param="messages"
        )
        generation = Generation(service, _new_id("chatcmpl"), [(ids, sampling)], body, arrival)
        await generation.start(request.receive)
        answer = _Chat(generation, arrival, model, body)
        if body.stream:
            return EventStream(generation, answer.chunk, answer.usage_chunk if answer.include_usage else None)
        return await _whole(generation, answer.body)

    return router


Ends = list[tuple[str, FinishReason | None, str | int | None]]  # text, finish reason, stop reason per choice


async def _whole(generation: Generation, body: Callable[[Ends, Usage], bytes]) -> Response:
    """Collects every piece and answers at once."""
    texts = [""] * len(generation.choices)
    ends: list[tuple[FinishReason | None, str | int | None]] = [(None, None)] * len(texts)
    try:
        async for pieces in generation.pieces():
            for piece in pieces:
                texts[piece.choice] += piece.text
                if piece.finish_reason is not None:
                    ends[piece.choice] = piece.finish_reason, piece.stop_reason
    except ClientDisconnected:
        return Response(status_code=499)  # nobody reads it
    except ApiError:
        generation.close("error")
        raise
    finally:
        generation.close()
    parts = [(text, *end) for text, end in zip(texts, ends, strict=True)]
    return Response(body(parts, usage(generation)), media_type="application/json")


class _Answer:
    """What all chunks of one answer share."""

    def __init__(self, generation: Generation, created: float, model: str, body: Generate) -> None:
        self.id, self.created, self.model = generation.request_id, int(created), model
        options = body.stream_options or StreamOptions()
        self.include_usage = options.include_usage
        self._continuous = options.include_usage and options.continuous_usage_stats
        self._generation = generation

    @property
    def usage_so_far(self) -> Usage | UnsetType | None:
        """What a chunk says about usage. OpenAI: with ``include_usage``, null in every chunk but the last."""
        if self._continuous:
            return usage(self._generation)
        return None if self.include_usage else UNSET


class _Completion(_Answer):
    """``echoed``: what each choice's text begins with, or nothing at all."""

    def __init__(
        self, generation: Generation, created: float, model: str, body: Generate, echoed: list[str]
    ) -> None:
        super().__init__(generation, created, model, body)
        self._echoed = echoed

    def chunk(self, piece: Piece) -> bytes:
        index, text, finish, stop = piece
        if self._echoed and self._echoed[index]:
            text, self._echoed[index] = self._echoed[index] + text, ""
        choice = answers.CompletionChoice(index, text, finish, stop)
        return event(answers.Completion(self.id, self.created, self.model, [choice], usage=self.usage_so_far))

    def usage_chunk(self, total: Usage) -> bytes:
        return event(answers.Completion(self.id, self.created, self.model, [], usage=total))

    def body(self, parts: Ends, total: Usage) -> bytes:
        echoed = self._echoed or [""] * len(parts)
        choices = [
            answers.CompletionChoice(index, echoed[index] + text, finish, stop)
            for index, (text, finish, stop) in enumerate(parts)
        ]
        return encode(answers.Completion(self.id, self.created, self.model, choices, usage=total))


class _Chat(_Answer):
    def __init__(self, generation: Generation, created: float, model: str, body: Generate) -> None:
        super().__init__(generation, created, model, body)
        self._started: set[int] = set()

    def chunk(self, piece: Piece) -> bytes:
        index, text, finish, stop = piece
        events = b""
        if index not in self._started:
            self._started.add(index)
            events = self._event(answers.ChunkChoice(index, answers.Delta(role="assistant", content="")))
        if text:
            events += self._event(answers.ChunkChoice(index, answers.Delta(content=text)))
        if finish is not None:
            events += self._event(answers.ChunkChoice(index, answers.Delta(), finish, stop))
        return events

    def _event(self, choice: answers.ChunkChoice) -> bytes:
        return event(answers.ChatChunk(self.id, self.created, self.model, [choice], usage=self.usage_so_far))

    def usage_chunk(self, total: Usage) -> bytes:
        return event(answers.ChatChunk(self.id, self.created, self.model, [], usage=total))

    def body(self, parts: Ends, total: Usage) -> bytes:
        choices = [
            answers.ChatChoice(index, answers.ChatMessage(text), finish, stop)
            for index, (text, finish, stop) in enumerate(parts)
        ]
        return encode(answers.ChatCompletion(self.id, self.created, self.model, choices, total))


def _echoes(
    service: Service, body: CompletionRequest, prompts: list[tuple[list[int], SamplingParams]]
) -> list[str]:
    """What each choice's text begins with; empty without ``echo``."""
    if not body.echo:
        return []
    tokenizer = service.folder.tokenizer
    texts = [
        prompt if isinstance(prompt, str) else tokenizer.decode(ids)
        for prompt, (ids, _) in zip(body.prompt, prompts, strict=True)
    ]
    return [text for text in texts for _ in range(body.n or 1)]


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
