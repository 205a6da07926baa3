"""Listen on Service addresses and carry bytes to endpoints and back, losing none.

Half-closes are passed on, resets are passed on as resets, and a side that cannot take more pauses the
other. A connection stays with its endpoint for life, whatever becomes of the table; only new ones follow
the table.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from localcluster.proxy.table import Address, Table

log = logging.getLogger("proxy.relay")

CONNECT_TIMEOUT_S = 3.0  # then the next endpoint is tried
DELIVERY_TIMEOUT_S = 5.0  # for what was written before a reset
BACKLOG = 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Relay:
    """The listening sockets. `apply` makes them follow a table."""

    def __init__(self) -> None:
        self._listening: dict[Address, tuple[asyncio.Server, _Rotation]] = {}

    async def apply(self, table: Table) -> list[Address]:
        """Serve `table` from now on; return the addresses that could not be listened on.

        An address without endpoints is not listened on, so that connecting to it is refused.
        """
        failed = []
        for address in [each for each in self._listening if not table.get(each)]:
            server, _ = self._listening.pop(address)
            server.close()
            log.info("%s: no endpoints", address)
        for address, endpoints in table.items():
            if address in self._listening:
                self._listening[address][1].endpoints = endpoints
            elif endpoints:
                try:
                    self._listening[address] = await _listen(address, _Rotation(endpoints))
                    log.info("%s: %s", address, ", ".join(map(str, endpoints)))
                except OSError as error:
                    log.warning("cannot listen on %s: %s", address, error)
                    failed.append(address)
        return failed

    @property
    def endpoints(self) -> Mapping[Address, tuple[Address, ...]]:
        """What is served now."""
        return {address: rotation.endpoints for address, (_, rotation) in self._listening.items()}

    def close(self) -> None:
        for server, _ in self._listening.values():
            server.close()
        self._listening.clear()


class _Rotation:
    """Endpoints that take turns."""

    def __init__(self, endpoints: tuple[Address, ...]) -> None:
        self.endpoints = endpoints
        self._turn = 0

    def order(self) -> tuple[Address, ...]:
        """All endpoints, the one whose turn it is first."""
        self._turn += 1
        start = self._turn % len(self.endpoints)
        return self.endpoints[start:] + self.endpoints[:start]


async def _listen(address: Address, rotation: _Rotation) -> tuple[asyncio.Server, _Rotation]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Client(rotation), address.ip, address.port, backlog=BACKLOG)
    return server, rotation


class _Side(asyncio.Protocol):
    """One connection of a pair; `other` is its counterpart while both exist."""

    transport: asyncio.Transport
    other: "_Side | None" = None
    ended = False  # nothing more will come from here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end of this direction on; the other direction may go on for as long as it likes."""
        self.ended = True
        if self.other is None:
            return False
        if self.other.ended:
            self.other.transport.close()
            return False
        self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is None:
            return
        self.other.other = None
        if error is None:
            self.other.transport.close()  # after what is still to be written
        else:
            _keep(asyncio.ensure_future(_reset(self.other.transport)))
        self.other = None


class _Client(_Side):
    """An accepted connection. What it sends before it has an endpoint is kept, and it is paused."""

    def __init__(self, rotation: _Rotation) -> None:
        self._rotation = rotation
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        _keep(asyncio.ensure_future(self._connect()))

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
        else:
            self._early.append(data)
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        if self.other is not None:
            return super().eof_received()
        self.ended = True
        return True

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for endpoint in self._rotation.order():
            connection = socket.socket()
            connection.setblocking(False)
            try:
                connecting = loop.sock_connect(connection, (endpoint.ip, endpoint.port))
                await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)
            except (OSError, TimeoutError) as error:
                connection.close()
                log.info("%s does not answer: %s", endpoint, error or "timeout")
                continue
            await loop.create_connection(lambda: _Upstream(self), sock=connection)
            return
        await _reset(self.transport)

    def join(self, upstream: _Side) -> None:
        if self.transport.is_closing():
            upstream.transport.close()
            return
        self.other, upstream.other = upstream, self
        if self._early:
            upstream.transport.write(b"".join(self._early))
            self._early.clear()
            self.transport.resume_reading()
        if self.ended:
            upstream.transport.write_eof()


class _Upstream(_Side):
    """The connection to an endpoint. It is joined at once, since the endpoint may speak first."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client.join(self)


async def _reset(transport: asyncio.Transport) -> None:
    """Close with a reset, so that the peer learns that something broke, once it has all that was written."""
    connection: socket.socket = transport.get_extra_info("socket")
    deadline = time.monotonic() + DELIVERY_TIMEOUT_S
    with suppress(OSError):
        while _undelivered(transport, connection) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # nobody is told when the peer acknowledges
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def _undelivered(transport: asyncio.Transport, connection: socket.socket) -> bool:
    if transport.is_closing():
        return False
    in_kernel = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return bool(in_kernel or transport.get_write_buffer_size())


_running: set[asyncio.Future[None]] = set()  # the event loop itself keeps only weak references


def _keep(task: asyncio.Future[None]) -> None:
    _running.add(task)
    task.add_done_callback(_running.discard)
