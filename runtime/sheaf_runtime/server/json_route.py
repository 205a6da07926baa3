"""Reads the bodies of requests with orjson."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from sheaf_runtime.server.body import LARGE
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.json_size import may_be_too_many, too_many


class JsonRequest(Request):
    async def json(self) -> Any:
        """The body. Raises ``JSONDecodeError`` also for what Python's own parser lets through: NaN, halves of
        surrogate pairs (text that cannot be written as UTF-8 again), nesting without end; ``ApiError`` 400
        for more values than can be read while others wait."""
        if not hasattr(self, "_json"):
            body = await self.body()
            large = len(body) > LARGE
            self._json = await _large(body, self.app.state.context()) if large else orjson.loads(body)
        return self._json


async def _large(body: bytes, context: int) -> Any:
    """Between its steps, others have their turn."""
    if may_be_too_many(body, context) and (problem := await asyncio.to_thread(too_many, body, context)):
        raise ApiError(400, f"the JSON of the body has {problem}")
    await asyncio.sleep(0)
    gc.disable()  # it would look at all of the new values again and again, and none of them is garbage
    try:
        value = orjson.loads(body)
    finally:
        gc.enable()
    await asyncio.sleep(0)
    return value


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handler
