"""The listening socket and its connections, with an end that loses no request.

`http_protocol` does HTTP. uvicorn's ``Server`` is not used: it wakes ten times a second while idle,
and cannot be lame.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from sheaf_runtime.server.http_protocol import HttpProtocol
from sheaf_runtime.server.tls import Certificate

# Longer than any usual client's or proxy's own limit (Envoy's is one hour), so that the side that closes an
# idle connection is the side that sends on it: if the server did, requests already under way would be lost.
KEEP_ALIVE_SECONDS = 3660
# At the end: for last requests to arrive, and for answers to be flushed.
LAST_REQUEST_SECONDS = 0.25
FLUSH_SECONDS = 5.0
ACCEPT_PAUSE_SECONDS = 0.5
# A client that opens a connection and does not speak TLS on it, or does not say goodbye.
TLS_HANDSHAKE_SECONDS = 10.0
TLS_GOODBYE_SECONDS = 2.0

logger = logging.getLogger(__name__)


class HttpServer:
    """Serves an ASGI application on a bound socket, over TLS with a ``certificate``."""

    def __init__(self, app: Any, certificate: Certificate | None = None) -> None:
        self._certificate = certificate
        self._config = uvicorn.Config(
            app,
            loop="none",
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._state = ServerState()
        self._sock: socket.socket | None = None
        self._adoptions: set[asyncio.Task[Any]] = set()
        self._resume: asyncio.TimerHandle | None = None

    def start(self, sock: socket.socket) -> None:
        """``sock`` listens already and does not block."""
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._accept)

    def _accept(self) -> None:
        """Takes every connection that waits. Done here, and not by ``create_server``, because at the end
        the queue must be empty at the very moment the socket closes: the kernel resets what is in it."""
        assert self._sock is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # this client has gone already
                continue
            except OSError as error:  # no descriptors left: the socket stays readable, so look away
                logger.warning("cannot accept connections: %s; trying again in a moment", error)
                loop.remove_reader(self._sock)
                self._resume = loop.call_later(ACCEPT_PAUSE_SECONDS, self.start, self._sock)
                return
            connection.setblocking(False)
            adoption = loop.create_task(self._adopt(connection))
            self._adoptions.add(adoption)
            adoption.add_done_callback(self._adoptions.discard)

    async def _adopt(self, connection: socket.socket) -> None:
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            tls = {
                "ssl": self._certificate.context(),
                "ssl_handshake_timeout": TLS_HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": TLS_GOODBYE_SECONDS,
            }
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, **tls)
        except OSError as error:  # a failed handshake is the client's affair: it is closed, others go on
            logger.debug("a connection came to nothing: %s", error)

    def _protocol(self) -> asyncio.Protocol:
        return HttpProtocol(self._config, self._state, {})

    @property
    def busy(self) -> bool:
        """Whether any connection is in the middle of a request."""
        return any(_busy(connection) for connection in self._state.connections)

    async def end_listening(self) -> None:
        """Closes the listening socket. Returns a moment later, when what was on its way has arrived.

        A client may be sending on any connection right now: those that are open get that moment for a last
        request. They cannot be closed right behind a response that did not announce it, because the client
        is free to send its next request as soon as it has the last byte.
        """
        if self._sock is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        self._accept()
        if self._resume is not None:
            self._resume.cancel()
        self._sock.close()
        self._sock = None
        if self._adoptions:
            _, unfinished = await asyncio.wait(self._adoptions, timeout=LAST_REQUEST_SECONDS)
            for adoption in unfinished:  # in the middle of a handshake: nothing was asked yet
                adoption.cancel()
        if self._state.connections:
            await asyncio.sleep(LAST_REQUEST_SECONDS)
        # On a busy machine the moment may have passed without one look at the sockets.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """Ends listening, then the connections; what still runs has ``FLUSH_SECONDS`` to be sent."""
        await self.end_listening()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FLUSH_SECONDS
        while self._state.connections and loop.time() < deadline:
            for connection in list(self._state.connections):
                connection.shutdown()
            await asyncio.sleep(0.01)


def _busy(connection: Any) -> bool:
    return connection.cycle is not None and not connection.cycle.response_complete
