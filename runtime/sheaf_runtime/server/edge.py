"""The outermost ASGI layer: API key, body size, and the ``Connection: close`` of a draining server."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sheaf_runtime.server.errors import ApiError, error_response
from sheaf_runtime.server.lifecycle import Lifecycle

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A million token ids, or a text far beyond any context, fit.
MAX_BODY_BYTES = 16 * 2**20
CLOSE = (b"connection", b"close")
PROTECTED = ("/v1", "/tokenize", "/detokenize")


class Edge:
    """Wraps the application without touching the bytes that stream through."""

    def __init__(self, app: App, lifecycle: Lifecycle, api_key: str | None) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._authorization = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def closing_send(event: Event) -> None:
            if event["type"] == "http.response.start" and self._lifecycle.draining:
                event["headers"] = [*event.get("headers", ()), CLOSE]
            await send(event)

        headers = dict(scope["headers"])
        if error := self._refusal(scope["path"], headers):
            await error_response(error)(scope, receive, closing_send)
            return
        await self._app(scope, _limited(receive), closing_send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if self._authorization and path.startswith(PROTECTED):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._authorization):
                return ApiError(
                    401,
                    "missing or wrong API key: send it as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        coding = headers.get(b"content-encoding", b"identity")
        if coding.lower() != b"identity":
            return ApiError(415, "the body is compressed; send it without Content-Encoding")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return _too_large()
        return None


def _limited(receive: Receive) -> Receive:
    """Counts the body as it arrives, for those that do not say how long it is."""
    size = 0

    async def limited() -> Event:
        nonlocal size
        event = await receive()
        if event["type"] == "http.request":
            size += len(event.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise _too_large()
        return event

    return limited


def _too_large() -> ApiError:
    limit = MAX_BODY_BYTES // 2**20
    return ApiError(413, f"the body is larger than {limit} MiB", headers={"Connection": "close"})
