"""SPDY as the runtime speaks it, against a client of a few lines; kubectl's is in `test_streaming.py`."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localcluster.cri.spdy import DICTIONARY, Connection, Stream

FIN = 1


class Client:
    def __init__(self) -> None:
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self._compress = zlib.compressobj(zdict=DICTIONARY)

    def control(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        return struct.pack(">II", 0x80030000 | kind, flags << 24 | len(body)) + body

    def open(self, number: int, headers: dict[str, str]) -> bytes:
        block = struct.pack(">I", len(headers))
        for word in (w.encode() for pair in headers.items() for w in pair):
            block += struct.pack(">I", len(word)) + word
        packed = self._compress.compress(block) + self._compress.flush(zlib.Z_SYNC_FLUSH)
        return self.control(1, struct.pack(">IIH", number, 0, 0) + packed)

    def data(self, number: int, data: bytes, flags: int = 0) -> bytes:
        return struct.pack(">II", number, flags << 24 | len(data)) + data

    async def frame(self) -> tuple[int, int, bytes]:
        """Stream (or kind of a control frame), flags, body."""
        first, second = struct.unpack(">II", await self.reader.readexactly(8))
        return first & 0xFFFF, second >> 24, await self.reader.readexactly(second & 0xFFFFFF)


@asynccontextmanager
async def connected(on_stream: Callable[[Stream], None]) -> AsyncIterator[Client]:
    client = Client()
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(Connection(reader, writer, on_stream).run()))
        await tasks[0]
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    client.reader, client.writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield client
    finally:
        client.writer.close()
        await client.writer.wait_closed()
        await asyncio.gather(*tasks)
        server.close()
        await server.wait_closed()


def test_the_dictionary_is_that_of_the_protocol() -> None:
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2  # what its compressed blocks name it by


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 3]), st.binary(max_size=30)), max_size=8), st.integers(1, 40))
async def test_streams_are_told_apart_however_the_bytes_arrive(
    pieces: list[tuple[int, bytes]], cut: int
) -> None:
    opened: list[Stream] = []
    async with connected(opened.append) as client:
        text = client.open(1, {"streamtype": "stdin"}) + client.open(3, {"streamtype": "resize"})
        text += b"".join(client.data(number, data) for number, data in pieces)
        text += client.data(1, b"", FIN) + client.data(3, b"", FIN)
        for start in range(0, len(text), cut):
            client.writer.write(text[start : start + cut])
            await asyncio.sleep(0)
        assert [(await client.frame())[0] for _ in range(2)] == [2, 2]  # both are accepted
        assert [stream.headers["streamtype"] for stream in opened] == ["stdin", "resize"]
        for number, stream in zip((1, 3), opened, strict=True):
            received = b""
            while data := await stream.read():
                received += data
            assert received == b"".join(data for to, data in pieces if to == number)


async def test_pings_are_answered_and_what_is_written_comes_in_frames() -> None:
    opened: list[Stream] = []
    async with connected(opened.append) as client:
        client.writer.write(client.control(6, b"\0\0\0\5") + client.open(1, {"streamtype": "stdout"}))
        assert await client.frame() == (6, 0, b"\0\0\0\5")
        assert (await client.frame())[0] == 2
        opened[0].write(b"x" * 100_000)
        opened[0].end()
        opened[0].write(b"too late")
        frames = [await client.frame() for _ in range(3)]
        assert [(number, flags, len(body)) for number, flags, body in frames] == [
            (1, 0, 65536),
            (1, 0, 34464),
            (1, FIN, 0),
        ]


async def test_what_breaks_is_a_reset_and_not_an_end() -> None:
    opened: list[Stream] = []
    async with connected(opened.append) as client:
        client.writer.write(client.open(1, {"streamtype": "data"}))
        await client.frame()
        opened[0].abort()
        opened[0].end()  # says no more
        assert await client.frame() == (3, 0, struct.pack(">II", 1, 5))
        client.writer.write(client.control(6, b"\0\0\0\5"))
        assert (await client.frame())[0] == 6


@pytest.mark.parametrize("how", ["reset", "gone"])
async def test_a_stream_ends_with_its_client(how: str) -> None:
    opened: list[Stream] = []
    async with connected(opened.append) as client:
        client.writer.write(client.open(1, {"streamtype": "stdin"}))
        await client.frame()
        if how == "reset":
            client.writer.write(client.control(3, struct.pack(">II", 1, 5)))
        else:
            client.writer.close()
        assert await opened[0].read() == b""
