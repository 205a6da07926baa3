"""The relay with real sockets on 127.x addresses, under the event loop that the proxy uses."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop
from localcluster.proxy import relay as relay_module
from localcluster.proxy.relay import Relay
from localcluster.proxy.table import Address, Table

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RelayInItsLoop:
    """A relay on a uvloop of its own, as in the proxy's process."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._relay = Relay()

    async def apply(self, table: Table) -> list[Address]:
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._relay.apply(table), self._loop)
        )

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._relay.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def relay():
    relay = RelayInItsLoop()
    yield relay
    relay.close()


@pytest.fixture
async def backend():
    """`await backend(ip, handler)` serves on a free port and returns the address."""
    servers = []

    async def start(handler: Handler, ip: str = "127.0.0.1", port: int = 0) -> Address:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(serve, ip, port)
        servers.append(server)
        return Address(ip, server.sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()


def free_address(ip: str) -> Address:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return Address(ip, probe.getsockname()[1])


@contextlib.asynccontextmanager
async def silent_address() -> AsyncIterator[Address]:
    """One that neither accepts nor refuses: a listener whose queue is full drops further connections."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        silent = Address("127.0.0.1", full.getsockname()[1])
        _, filler = await asyncio.open_connection(silent.ip, silent.port)
        yield silent
        filler.close()


def says(name: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name)
        await writer.drain()

    return handler


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def ask(address: Address) -> bytes:
    reader, writer = await asyncio.open_connection(address.ip, address.port)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_endpoints_take_turns_and_each_address_has_its_own(relay, backend):
    one, two = await backend(says(b"1")), await backend(says(b"2"))
    first, second = free_address("127.0.0.11"), free_address("127.0.0.12")
    assert await relay.apply({first: (one, two), second: (two,)}) == []
    assert sorted([await ask(first) for _ in range(4)]) == [b"1", b"1", b"2", b"2"]
    assert [await ask(second) for _ in range(2)] == [b"2", b"2"]


async def test_an_endpoint_that_refuses_is_passed_over(relay, backend):
    alive, dead = await backend(says(b"alive")), free_address("127.0.0.1")
    service = free_address("127.0.0.11")
    await relay.apply({service: (alive, dead)})
    assert [await ask(service) for _ in range(4)] == [b"alive"] * 4


async def test_an_endpoint_that_does_not_answer_is_passed_over(relay, backend, monkeypatch):
    monkeypatch.setattr(relay_module, "CONNECT_TIMEOUT_S", 0.2)
    alive, service = await backend(says(b"alive")), free_address("127.0.0.11")
    async with silent_address() as silent:
        await relay.apply({service: (alive, silent)})
        assert [await ask(service) for _ in range(2)] == [b"alive"] * 2


@pytest.mark.parametrize("size", [3, 300_000])
async def test_what_the_client_sends_before_it_has_an_endpoint_is_kept(relay, backend, monkeypatch, size):
    monkeypatch.setattr(relay_module, "CONNECT_TIMEOUT_S", 0.2)
    async with silent_address() as silent:
        service = free_address("127.0.0.11")
        await relay.apply({service: (await backend(echo), silent)})
        for half_close in (True, False):
            reader, writer = await asyncio.open_connection(service.ip, service.port)
            writer.write(b"x" * size)
            if half_close:
                writer.write_eof()
            assert await reader.readexactly(size) == b"x" * size
            writer.close()


async def test_no_endpoints_means_refused_until_there_are_some(relay, backend):
    alive, service = await backend(says(b"alive")), free_address("127.0.0.11")
    await relay.apply({service: ()})
    with pytest.raises(ConnectionRefusedError):
        await ask(service)
    await relay.apply({service: (alive,)})
    assert await ask(service) == b"alive"
    await relay.apply({service: ()})
    with pytest.raises(ConnectionRefusedError):
        await ask(service)


async def test_every_endpoint_dead_resets_the_client(relay):
    service = free_address("127.0.0.11")
    await relay.apply({service: (free_address("127.0.0.1"),)})
    with pytest.raises(ConnectionResetError):
        await ask(service)


async def test_a_connection_outlives_its_endpoint_in_the_table(relay, backend):
    old, new = await backend(echo), await backend(says(b"new"))
    service = free_address("127.0.0.11")
    await relay.apply({service: (old,)})
    reader, writer = await asyncio.open_connection(service.ip, service.port)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    await relay.apply({service: (new,)})
    assert [await ask(service) for _ in range(3)] == [b"new"] * 3
    writer.write(b"after")
    assert await reader.readexactly(5) == b"after"
    await relay.apply({})  # not even the Service's end cuts it
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still"
    writer.close()


async def test_half_close_is_passed_on(relay, backend):
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = len(await reader.read())  # ends only with the client's half-close
        writer.write(b"%d" % total)
        await writer.drain()

    service = free_address("127.0.0.11")
    await relay.apply({service: (await backend(count),)})
    reader, writer = await asyncio.open_connection(service.ip, service.port)
    writer.write(b"x" * 100_000)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b"100000"
    writer.close()


async def test_the_server_may_close_its_direction_first(relay, backend):
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write_eof()
        received.set_result(await reader.read())

    service = free_address("127.0.0.11")
    await relay.apply({service: (await backend(handler),)})
    reader, writer = await asyncio.open_connection(service.ip, service.port)
    assert await reader.read() == b"hello"
    writer.write(b"later")
    writer.write_eof()
    assert await asyncio.wait_for(received, 5) == b"later"
    writer.close()


async def test_no_byte_is_lost_however_slow_the_reader(relay, backend):
    payload = os.urandom(20 * 1024 * 1024)  # far more than the buffers on the way hold

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(payload)
        await writer.drain()

    service = free_address("127.0.0.11")
    await relay.apply({service: (await backend(send),)})
    reader, writer = await asyncio.open_connection(service.ip, service.port)
    await asyncio.sleep(0.1)  # everything backs up
    assert await reader.read() == payload
    writer.close()


async def test_a_reset_is_passed_on_after_the_bytes_before_it(relay, backend):
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(b"part of an answer")
        await writer.drain()
        await reader.readexactly(1)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, relay_module._RESET_ON_CLOSE)
        writer.transport.abort()

    service = free_address("127.0.0.11")
    await relay.apply({service: (await backend(die),)})
    reader, writer = await asyncio.open_connection(service.ip, service.port)
    writer.write(b"go")
    assert await reader.readexactly(17) == b"part of an answer"
    writer.write(b"!")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_client_that_leaves_ends_the_connection_to_its_endpoint(relay, backend):
    gone = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"started")
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        gone.set()

    service = free_address("127.0.0.11")
    await relay.apply({service: (await backend(handler),)})
    reader, writer = await asyncio.open_connection(service.ip, service.port)
    assert await reader.readexactly(7) == b"started"
    writer.close()
    await asyncio.wait_for(gone.wait(), 5)


async def test_an_address_that_is_taken_is_reported_and_works_later(relay, backend):
    alive = await backend(says(b"alive"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.11", 0))
        taken.listen()
        service = Address("127.0.0.11", taken.getsockname()[1])
        assert await relay.apply({service: (alive,)}) == [service]
    assert await relay.apply({service: (alive,)}) == []
    assert await ask(service) == b"alive"
