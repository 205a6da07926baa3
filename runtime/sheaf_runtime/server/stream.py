"""An answer on its way: whole, or as server-sent events written straight to ASGI, the path of every token."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import msgspec
import orjson
from starlette.responses import Response

from sheaf_runtime.server.answers import encode
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.generation import ClientDisconnected, Generation, Piece

logger = logging.getLogger(__name__)
UNWRITTEN = "the answer cannot be written"
DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class AnyAnswer(Protocol):
    """``take`` every piece and ask for the ``body``; or send the events of the ``opening``, the ``chunk`` of
    each piece and the ``closing``."""

    def take(self, piece: Piece) -> object: ...

    def drop(self, index: int) -> None: ...

    def body(self) -> bytes: ...

    @property
    def opening(self) -> bytes: ...

    def chunk(self, piece: Piece) -> bytes: ...

    @property
    def closing(self) -> bytes: ...

    def failure(self, error: ApiError) -> bytes: ...


def event(body: msgspec.Struct) -> bytes:
    return b"data: " + encode(body) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    return b"data: " + orjson.dumps(error.body) + b"\n\n"


class EventStream(Response):
    """Answers with the pieces of a started generation; owns it from construction on."""

    def __init__(self, generation: Generation, answer: AnyAnswer) -> None:
        self.background = None
        self.status_code = 200
        self._generation = generation
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        generation, answer = self._generation, self._answer
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            if opening := answer.opening:
                await send({"type": "http.response.body", "body": opening, "more_body": True})
            async for pieces in generation.pieces():
                body = b"".join(map(self._chunk, pieces))
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": answer.closing})
        except ClientDisconnected:
            return
        except ApiError as error:
            generation.close("error")
            await send({"type": "http.response.body", "body": answer.failure(error)})
        except Exception as error:  # in writing; the other requests go on
            logger.exception("the answer to request %s cannot be written", generation.request_id)
            generation.close("error")
            unwritten = ApiError(500, f"{UNWRITTEN}: {error!r}", code="request_failed")
            await send({"type": "http.response.body", "body": error_event(unwritten)})
        finally:
            generation.close()

    def _chunk(self, piece: Piece) -> bytes:
        try:
            return self._answer.chunk(piece)
        except Exception as error:  # in a parser or a writer: this choice's trouble
            return self._answer.chunk(self._generation.fail(piece.choice, UNWRITTEN, error))


async def respond(generation: Generation, answer: AnyAnswer, *, stream: bool) -> Response:
    if stream:
        return EventStream(generation, answer)
    try:
        async for pieces in generation.pieces():
            for piece in pieces:
                _take(generation, answer, piece)
    except ClientDisconnected:
        return Response(status_code=499)  # nobody reads it
    except ApiError:
        generation.close("error")
        raise
    finally:
        generation.close()
    body = _body(generation, answer)
    status = 200 if generation.failure is None else generation.failure.status_code
    return Response(body, status, media_type="application/json")


def _take(generation: Generation, answer: AnyAnswer, piece: Piece) -> None:
    try:
        answer.take(piece)
    except Exception as error:  # in a parser: this choice's trouble
        answer.drop(piece.choice)
        answer.take(generation.fail(piece.choice, UNWRITTEN, error))


def _body(generation: Generation, answer: AnyAnswer) -> bytes:
    try:
        return answer.body()
    except ApiError:
        raise
    except Exception as error:  # whose it is nobody knows: none of the request's choices is told
        for index in range(len(generation.choices)):
            answer.drop(index)
            answer.take(generation.fail(index, UNWRITTEN, error))
        return answer.body()
