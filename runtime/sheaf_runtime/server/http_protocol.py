"""uvicorn's HTTP protocol, made to keep to the book where it does not."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

Event = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]
MOST_HEAD_BYTES = 64 * 1024  # as uvicorn's other protocol has it
_UPGRADE = re.compile(rb"^upgrade:", re.IGNORECASE | re.MULTILINE)


class HttpProtocol(HttpToolsProtocol):
    """What differs from uvicorn's:

    - An answer to HTTP/1.0 is not chunked, which that client cannot read (RFC 9112, 6.1): the end of the
      connection is the end of the body. Nor does it get a "100 Continue".
    - An offer to upgrade (Java's and curl's clients offer h2c) is ignored, so that the request's body and the
      next request on the connection are read like any others (RFC 9110, 7.8).
    - A request that does not say once which host it means is refused (RFC 9112, 3.2); so is a head that does
      not end within ``MOST_HEAD_BYTES`` (RFC 9110, 5.4), which would otherwise be kept whatever its size.
    - HEAD is answered as GET is, without the body (RFC 9110, 9.3.2), on every route that has GET.
    - The scope's ``state`` has ``connected_at``: when the connection was opened, by the monotonic clock.
    """

    _connected_at = 0.0
    _in_body = False
    _head = 0  # bytes of a head that has not ended yet

    def connection_made(self, transport: Any) -> None:
        self._connected_at = time.monotonic()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._in_body and _UPGRADE.search(data):
            # The parser takes whatever follows an upgrade's head for another protocol, its body included.
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"not-now:", head) + end + rest
        if not self._in_body:
            self._head += len(data)
        super().data_received(data)
        if self._head > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is larger than {MOST_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._in_body, self._head = True, 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError("a request names its host once")  # the parser's caller answers 400
        self.scope["state"]["connected_at"] = self._connected_at
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: App) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.waiting_for_100_continue = False
            app = _unframed(cycle, app)
        if cycle.scope["method"] == "HEAD":
            app = _as_get(app)
        super()._start_asgi_task(cycle, app)


def _unframed(cycle: RequestResponseCycle, app: App) -> App:
    """Sends answers of unknown length without framing."""

    async def run(scope: Any, receive: Any, send: Callable[[Event], Awaitable[None]]) -> None:
        bare = False

        async def send_bare(event: Event) -> None:
            nonlocal bare
            if event["type"] == "http.response.start":
                bare = not any(name.lower() == b"content-length" for name, _ in event.get("headers", ()))
                if bare:
                    cycle.chunked_encoding = False
            elif bare:
                cycle.expected_content_length = len(event.get("body", b""))
            await send(event)

        await app(scope, receive, send_bare)

    return run


def _as_get(app: App) -> App:
    """uvicorn itself leaves the body out."""

    async def run(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "method": "GET"}, receive, send)

    return run
