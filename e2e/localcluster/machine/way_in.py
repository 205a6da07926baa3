"""Carries TCP connections from a listening socket to an address: from outside the namespace to inside.

A listening socket belongs to the network namespace it was made in, whoever holds it. So the launcher makes
one on 127.0.0.1 outside, and we accept on it inside and connect from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct


class _Pipe(asyncio.Protocol):
    """One direction's receiving end: what arrives goes to ``peer``, end of stream included.

    Data may arrive before there is a peer (pausing a transport in ``connection_made`` has no effect before
    Python 3.12), and waits then.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.peer: _Pipe | None = None
        self._early: list[bytes] = []
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def join(self, peer: _Pipe) -> None:
        self.peer = peer
        for data in self._early:
            peer.transport.write(data)
        self._early.clear()
        if self._ended:
            self.eof_received()

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self._early.append(data)
        else:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        if self.peer and self.peer.transport.can_write_eof() and not self.peer.transport.is_closing():
            self.peer.transport.write_eof()
        return True  # keep the other direction open: half-closed connections are legal

    def connection_lost(self, error: Exception | None) -> None:
        if self.peer is None:
            return
        if isinstance(
            error, ConnectionError
        ):  # a reset travels on as a reset: a client sees what the server did
            self.peer.reset()
        else:
            self.peer.transport.close()

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


class WayIn:
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
        outer.join(inner)
        inner.join(outer)

    def spawn(self, outer: _Pipe) -> None:
        task = asyncio.ensure_future(self.connect(outer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Incoming(_Pipe):
    def __init__(self, way_in: WayIn) -> None:
        super().__init__()
        self._way_in = way_in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._way_in.spawn(self)
