"""The outermost ASGI layer: API keys, bodies and refusals in turn, request ids, access log, spans, and
``Connection: close`` of a draining server."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sheaf_runtime.config import ServerConfig
from sheaf_runtime.server.body import Bodies, Body
from sheaf_runtime.server.errors import ApiError, error_response
from sheaf_runtime.server.keys import ApiKeys
from sheaf_runtime.server.lifecycle import Lifecycle
from sheaf_runtime.server.tracing import TRACED, Traces

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CLOSE = (b"connection", b"close")
PROTECTED = (
    *("/v1", "/v2", "/rerank", "/score", "/invocations"),
    *("/tokenize", "/detokenize", "/reset_prefix_cache"),
)
UNLOGGED = ("/health", "/ready", "/ping", "/metrics")  # asked all the time
REQUEST_ID = b"x-request-id"
UNPACED = (408, 429)  # what a client of good will is answered too, and should hear soon
access = logging.getLogger("sheaf.access")


class Edge:
    """Wraps the application without touching the bytes that stream through."""

    def __init__(
        self,
        app: App,
        lifecycle: Lifecycle,
        config: ServerConfig,
        bodies: Bodies,
        traces: Traces | None = None,
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._keys = ApiKeys(config.api_key, config.api_key_file)
        self._bodies = bodies
        self._log = config.access_log
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope["path"] = _without_slash(scope["path"])
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(REQUEST_ID, b""))
        began, clock = time.monotonic(), time.time()
        if self._traces is not None and scope["path"] in TRACED:
            scope["span"] = {"gen_ai.request.id": request_id.decode()}
        facts: dict[str, Any] = scope.setdefault("facts", {})
        scope["body"] = body = Body(receive, self._bodies)
        status = 0

        async def sent(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                if 400 <= status < 500 and status not in UNPACED:
                    await body.refused()
                body.handled()
                event["headers"] = [*event.get("headers", ()), (REQUEST_ID, request_id)]
                if self._lifecycle.draining:
                    event["headers"].append(CLOSE)
            await send(event)

        try:
            if error := self._refusal(scope, headers):
                await error_response(error)(scope, receive, sent)
            else:
                await self._app(scope, body, sent)
        finally:
            body.close()
            if self._traces is not None and "span" in scope:
                path, span = scope["path"], scope["span"]
                self._traces.request(headers, span, path=path, status=status, began=clock, ended=time.time())
            if self._log and scope["path"] not in UNLOGGED:
                took = (time.monotonic() - began) * 1000
                facts = {"request_id": request_id.decode(), **facts}
                words = " ".join(f"{name}={value}" for name, value in facts.items())
                access.info("%s %s %d %.0f ms %s", scope["method"], _shown(scope), status, took, words)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> ApiError | None:
        protected = scope["path"].startswith(PROTECTED)
        asks = protected and scope["method"] == "POST"
        if asks and (error := self._lifecycle.on_request(scope["state"]["connected_at"])):
            return error
        if protected and self._keys.required and not self._keys.accept(headers.get(b"authorization", b"")):
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
        if length.isdigit() and int(length[:20]) > self._bodies.most:
            return self._bodies.too_large()
        return None


def _without_slash(path: str) -> str:
    """A route is meant with a slash at its end too. A redirect, as the framework has it, would lead from a
    proxy that ends TLS to plain HTTP. Names of models may end in one."""
    bare = path.rstrip("/")
    return path if not bare or bare.startswith("/v1/models/") else bare


def _request_id(given: bytes) -> bytes:
    """The client's own, if it can be written into a header and a log, else a new one."""
    if 0 < len(given) <= 128 and given.isascii() and given.decode().isprintable() and b" " not in given:
        return given
    return uuid.uuid4().hex.encode()


def _shown(scope: Scope) -> str:
    """The path as it was sent: escapes cannot break a line of the log."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.decode("ascii", "replace")[:200]
