"""Carries TCP connections from a listening socket to an address: from outside the namespace to inside.

A listening socket belongs to the network namespace it was made in, whoever holds it. So the launcher makes one on
127.0.0.1 outside, and we accept on it inside and connect from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct


class _Pipe(asyncio.Protocol):
    """One direction's receiving end: what arrives goes to ``peer``, end of stream included."""

    transport: asyncio.Transport
    peer: _Pipe | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.peer is not None  # reading starts only once both ends exist
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        assert self.peer is not None
        if self.peer.transport.can_write_eof() and not self.peer.transport.is_closing():
            self.peer.transport.write_eof()
        return True  # keep the other direction open: half-closed connections are legal

    def connection_lost(self, error: Exception | None) -> None:
        if self.peer is None:
            return
        if error is None:
            self.peer.transport.close()
        else:  # a reset travels on as a reset, so that a client sees what the server did
            self.peer.reset()

    def reset(self) -> None:
        connection = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()


class Relay:
    def __init__(self, listener: socket.socket, host: str, port: int) -> None:
        self._listener, self._host, self._port = listener, host, port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._accept, sock=self._listener)

    def _accept(self) -> _Pipe:
        return _Incoming(self)

    async def connect(self, outer: _Pipe) -> None:
        try:
            _, inner = await asyncio.get_running_loop().create_connection(_Pipe, self._host, self._port)
        except OSError:
            outer.reset()  # refused inside is a broken connection outside
            return
        if outer.transport.is_closing():
            inner.transport.abort()
            return
        for pipe in (outer, inner):
            connection = pipe.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outer.peer, inner.peer = inner, outer
        outer.transport.resume_reading()

    def spawn(self, outer: _Pipe) -> None:
        task = asyncio.ensure_future(self.connect(outer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Incoming(_Pipe):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        self._relay.spawn(self)
