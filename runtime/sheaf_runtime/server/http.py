"""The listening socket and its connections, with an end that loses no request.

uvicorn's protocol class does HTTP. Its ``Server`` is not used: it wakes ten times a second while idle,
and cannot be lame.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

# Longer than any usual client's or proxy's own limit (Envoy's is one hour), so that the side that closes an
# idle connection is the side that sends on it: if the server did, requests already under way would be lost.
KEEP_ALIVE_SECONDS = 3660
FLUSH_SECONDS = 5.0


class HttpServer:
    """Serves an ASGI application on a bound socket."""

    def __init__(self, app: Any) -> None:
        self._config = uvicorn.Config(
            app,
            loop="none",
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, sock=sock)

    def _protocol(self) -> asyncio.Protocol:
        return HttpToolsProtocol(self._config, self._state, {})

    @property
    def busy(self) -> bool:
        """Whether any connection is in the middle of a request."""
        return any(_busy(connection) for connection in self._state.connections)

    def close_after_responses(self) -> None:
        """Connections whose response is already under way are closed right behind its last byte."""
        for connection in self._state.connections:
            if _busy(connection):
                connection.shutdown()

    async def stop(self) -> None:
        """Ends the listening and the idle connections; waits a moment for unsent answers."""
        if self._server is None:
            return
        self._server.close()
        # Requests that already arrived on idle connections are read, and answered, first.
        for _ in range(3):
            await asyncio.sleep(0)
        deadline = asyncio.get_running_loop().time() + FLUSH_SECONDS
        while self._state.connections and asyncio.get_running_loop().time() < deadline:
            for connection in list(self._state.connections):
                connection.shutdown()
            await asyncio.sleep(0.01)


def _busy(connection: Any) -> bool:
    return connection.cycle is not None and not connection.cycle.response_complete
