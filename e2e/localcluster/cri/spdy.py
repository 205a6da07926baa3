"""The part of SPDY/3.1 that carries `kubectl exec`, `attach` and `port-forward` between kubelet and runtime.

One connection holds many streams. The client opens them, each with headers; both sides send bytes on them
and end their direction on its own. Flow control is left to TCP, as the Kubernetes clients do.
"""

import asyncio
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress

_VERSION = 3
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING = 1, 2, 3, 6
_FIN = 1
_CANCEL = 5  # a reason to reset a stream
_LARGEST_FRAME = 64 * 1024

# With what both sides prime the compression of headers, as the protocol has it.
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges"
    " age allow authorization cache-control connection content-base content-encoding content-language"
    " content-length content-location content-md5 content-range content-type date etag expect expires from"
    " host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location"
    " max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer"
    " transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version"
    " HTTP/1.1 url public set-cookie keep-alive origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack(">I", len(word)) + word.replace("_", " ").encode() for word in _WORDS.split())
    + _TAIL.encode()
)


class Stream:
    """One stream of a connection, from its acceptance on."""

    def __init__(self, connection: "Connection", number: int, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._connection, self._number = connection, number
        self._received: asyncio.Queue[bytes] = asyncio.Queue()
        self._open = True

    async def read(self) -> bytes:
        """What came next; nothing at the end."""
        return await self._received.get()

    def write(self, data: bytes) -> None:
        """Send bytes; after the end, or to a client that has gone, they are lost."""
        for start in range(0, len(data) if self._open else 0, _LARGEST_FRAME):
            self._send(data[start : start + _LARGEST_FRAME], 0)

    def end(self) -> None:
        """Nothing more will be written."""
        if self._open:
            self._open = False
            self._send(b"", _FIN)

    def abort(self) -> None:
        """Tell the client that no more will come, and that this is not how it should end."""
        if self._open:
            self._open = False
            self._connection.send_control(_RST_STREAM, struct.pack(">II", self._number, _CANCEL))

    def feed(self, data: bytes) -> None:
        self._received.put_nowait(data)

    def reset(self) -> None:
        self._open = False
        self.feed(b"")

    def _send(self, data: bytes, flags: int) -> None:
        self._connection.send(struct.pack(">II", self._number, flags << 24 | len(data)) + data)


class Connection:
    """The server's side of a connection; `on_stream` is told of each stream that the client opens."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_stream: Callable[[Stream], None],
    ) -> None:
        self._reader, self._writer, self._on_stream = reader, writer, on_stream
        self._streams: dict[int, Stream] = {}
        self._compress = zlib.compressobj(zdict=DICTIONARY)
        self._decompress = zlib.decompressobj(zdict=DICTIONARY)

    def send(self, frame: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame)

    def send_control(self, kind: int, body: bytes) -> None:
        self.send(struct.pack(">II", 1 << 31 | _VERSION << 16 | kind, len(body)) + body)

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written."""
        with suppress(ConnectionError):
            await self._writer.drain()

    async def run(self) -> None:
        """Serve until the client goes; every stream then ends."""
        try:
            while True:
                first, second = struct.unpack(">II", await self._reader.readexactly(8))
                body = await self._reader.readexactly(second & 0xFFFFFF)
                if first >> 31:
                    self._control(first & 0xFFFF, second >> 24, body)
                elif stream := self._streams.get(first):
                    if body:
                        stream.feed(body)
                    if second >> 24 & _FIN:
                        stream.feed(b"")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for stream in self._streams.values():
                stream.reset()

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        if kind == _SYN_STREAM:
            number = struct.unpack_from(">I", body)[0]
            stream = self._streams[number] = Stream(self, number, self._headers(body[10:]))
            block = self._compress.compress(struct.pack(">I", 0)) + self._compress.flush(zlib.Z_SYNC_FLUSH)
            self.send_control(_SYN_REPLY, struct.pack(">I", number) + block)
            if flags & _FIN:
                stream.feed(b"")
            self._on_stream(stream)
        elif kind == _RST_STREAM and (found := self._streams.get(struct.unpack_from(">I", body)[0])):
            found.reset()
        elif kind == _PING:
            self.send_control(_PING, body)

    def _headers(self, block: bytes) -> dict[str, str]:
        text = self._decompress.decompress(block)
        (count,), at = struct.unpack_from(">I", text), 4
        parts: list[str] = []
        for _ in range(2 * count):
            (length,) = struct.unpack_from(">I", text, at)
            parts.append(text[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return dict(zip(parts[::2], parts[1::2], strict=True))
