"""Server-sent events, written straight to ASGI: this is the path that every token takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from sheaf_runtime.server.answers import PromptTokensDetails, Usage, encode
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.generation import ClientDisconnected, Generation, Piece

logger = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def event(body: msgspec.Struct) -> bytes:
    return b"data: " + encode(body) + b"\n\n"


class EventStream(Response):
    """Answers with the pieces of a started generation; owns it from construction on.

    ``chunks(piece)`` gives the events of one piece, ``usage_chunk(usage)`` the last one if it was asked for.
    """

    def __init__(
        self,
        generation: Generation,
        chunks: Callable[[Piece], bytes],
        usage_chunk: Callable[[Usage], bytes] | None,
    ) -> None:
        self.background = None
        self.status_code = 200
        self._generation = generation
        self._chunks = chunks
        self._usage_chunk = usage_chunk

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        generation, chunks = self._generation, self._chunks
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            async for pieces in generation.pieces():
                body = b"".join(map(chunks, pieces))
                await send({"type": "http.response.body", "body": body, "more_body": True})
            end = DONE
            if generation.error is not None:
                error = ApiError(500, generation.error, code="request_failed")
                end = b"data: " + orjson.dumps(error.body) + b"\n\n" + DONE
            if self._usage_chunk is not None:
                end = self._usage_chunk(usage(generation)) + end
            await send({"type": "http.response.body", "body": end})
        except ClientDisconnected:
            return
        except ApiError as error:
            generation.close("error")
            body = b"data: " + orjson.dumps(error.body) + b"\n\n"
            await send({"type": "http.response.body", "body": body})
        finally:
            generation.close()


def usage(generation: Generation) -> Usage:
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    details = PromptTokensDetails(generation.cached_tokens)
    return Usage(prompt, completion, prompt + completion, details)
