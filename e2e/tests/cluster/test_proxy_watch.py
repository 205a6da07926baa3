"""The proxy's view of the API server, against a small one over real HTTP; and the whole proxy on top."""

import asyncio
import contextlib
import json
import ssl
from typing import Any

import pytest
from aiohttp import web
from localcluster.proxy import watch
from localcluster.proxy.__main__ import SERVICES, SLICES, Proxy
from localcluster.proxy.relay import Relay
from localcluster.proxy.table import Address
from localcluster.proxy.watch import ApiServer, follow, read_kubeconfig


class FakeApi:
    """Lists and watches of one kind of objects, as the API server serves them."""

    def __init__(self, path: str = SERVICES) -> None:
        self.path = path
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 10
        self.oldest = 0  # watches from before are refused with 410
        self.lists = 0
        self.watchers: list[asyncio.Queue[bytes | None]] = []
        self.watched = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get(self.path, self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.watched.clear()
        for watcher in self.watchers:
            watcher.put_nowait(None)
        self.watchers.clear()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    @property
    def server(self) -> ApiServer:
        return ApiServer(f"http://127.0.0.1:{self.port}", ssl.create_default_context())

    def put(self, name: str, **more: Any) -> None:
        kind = "MODIFIED" if name in self.objects else "ADDED"
        self.version += 1
        metadata = {"name": name, "namespace": "ns", "resourceVersion": str(self.version)}
        self.objects[name] = {"metadata": metadata | more.pop("metadata", {}), **more}
        self.send(kind, self.objects[name])

    def delete(self, name: str) -> None:
        self.version += 1
        gone = self.objects.pop(name)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self.send("DELETED", gone)

    def send(self, kind: str, changed: dict[str, Any]) -> None:
        for watcher in self.watchers:
            watcher.put_nowait(json.dumps({"type": kind, "object": changed}).encode() + b"\n")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists += 1
            metadata = {"resourceVersion": str(self.version)}
            return web.json_response({"metadata": metadata, "items": list(self.objects.values())})
        if int(request.query["resourceVersion"]) < self.oldest:
            return web.Response(status=410)
        response = web.StreamResponse()
        await response.prepare(request)
        watcher: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.watchers.append(watcher)
        self.watched.set()
        with contextlib.suppress(ConnectionError):
            while (line := await watcher.get()) is not None:
                await response.write(line[:7])  # lines need not arrive whole
                await response.write(line[7:])
        return response


class Seen:
    """What `follow` reported last, and a way to wait for it."""

    def __init__(self) -> None:
        self.names: set[str] | None = None
        self._changed = asyncio.Event()

    def __call__(self, objects: watch.Objects) -> None:
        self.names = {name for _, name in objects}
        self._changed.set()

    async def until(self, names: set[str]) -> None:
        async with asyncio.timeout(5):
            while self.names != names:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def api():
    api = FakeApi()
    await api.start()
    yield api
    await api.stop()


@pytest.fixture
async def seen(api, monkeypatch):
    monkeypatch.setattr(watch, "FIRST_DELAY_S", 0.01)
    api.put("first")
    seen = Seen()
    task = asyncio.create_task(follow(api.server, SERVICES, seen))
    await seen.until({"first"})
    await api.watched.wait()
    yield seen
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_changes_arrive(api, seen):
    api.put("second", spec={"long": "x" * 500_000})
    await seen.until({"first", "second"})
    api.put("second")
    api.delete("first")
    await seen.until({"second"})
    api.send("BOOKMARK", {"metadata": {"resourceVersion": "99"}})
    api.put("third")
    await seen.until({"second", "third"})
    assert api.lists == 1


async def test_the_last_state_stands_while_the_server_is_away_and_changes_follow(api, seen):
    await api.stop()
    await asyncio.sleep(0.05)
    assert seen.names == {"first"}
    api.put("second")
    api.delete("first")
    await api.start()
    await seen.until({"second"})
    await api.watched.wait()
    api.put("third")
    await seen.until({"second", "third"})


async def test_a_watch_that_ends_goes_on_where_it_was(api, seen):
    api.put("second")
    await seen.until({"first", "second"})
    api.watched.clear()
    api.watchers.pop().put_nowait(None)  # the server ends a watch after its time
    await api.watched.wait()
    api.put("third")
    await seen.until({"first", "second", "third"})
    assert api.lists == 1


@pytest.mark.parametrize("how", ["status", "event"])
async def test_lost_history_means_listing_again(api, seen, how):
    watcher = api.watchers.pop()  # it hears no more
    api.put("second")
    api.oldest = api.version
    api.watched.clear()
    if how == "event":
        error = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
        watcher.put_nowait(json.dumps(error).encode() + b"\n")
    watcher.put_nowait(None)
    await seen.until({"first", "second"})
    assert api.lists == 2


# The whole proxy, with 127.x addresses, which this machine holds already


class Held:
    def hold(self, ips):
        self.ips = set(ips)


async def test_from_objects_to_bytes(monkeypatch, unused_tcp_port):
    monkeypatch.setattr(watch, "FIRST_DELAY_S", 0.01)

    async def hello(reader, writer):
        writer.write(b"hello")
        writer.close()

    backend = await asyncio.start_server(hello, "127.0.0.1", 0)
    services, slices = FakeApi(SERVICES), FakeApi(SLICES)
    await services.start()
    await slices.start()
    held, relay = Held(), Relay()
    proxy = Proxy(held, relay)
    work = [
        asyncio.create_task(proxy.run()),
        asyncio.create_task(follow(services.server, SERVICES, lambda seen: proxy.report(SERVICES, seen))),
        asyncio.create_task(follow(slices.server, SLICES, lambda seen: proxy.report(SLICES, seen))),
    ]
    try:
        await services.watched.wait()
        await slices.watched.wait()
        address = Address("127.0.0.21", unused_tcp_port)
        services.put("web", spec={"clusterIPs": [address.ip], "ports": [{"port": address.port}]})
        slices.put(
            "web-x",
            metadata={"labels": {"kubernetes.io/service-name": "web"}},
            addressType="IPv4",
            ports=[{"port": backend.sockets[0].getsockname()[1]}],
            endpoints=[{"addresses": ["127.0.0.1"]}],
        )
        async with asyncio.timeout(5):
            while not relay.endpoints.get(address):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert held.ips == {address.ip}
        await services.stop()  # what is known is served without the API server
        await slices.stop()
        reader, writer = await asyncio.open_connection(address.ip, address.port)
        assert await reader.read() == b"hello"
        writer.close()
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        relay.close()
        backend.close()
        await services.stop()
        await slices.stop()


# Credentials


def test_kubeconfig(tmp_path):
    path = tmp_path / "config"
    path.write_text(
        """
        current-context: here
        contexts: [{name: here, context: {cluster: c, user: u}}]
        clusters: [{name: c, cluster: {server: "https://127.0.0.1:1/", insecure-skip-tls-verify: true}}]
        users: [{name: u, user: {token: secret}}]
        """
    )
    server = read_kubeconfig(path)
    assert server.url == "https://127.0.0.1:1"
    assert server.headers == {"Authorization": "Bearer secret"}
    assert server.tls.verify_mode is ssl.CERT_NONE


def test_a_kubeconfig_that_names_what_it_lacks(tmp_path):
    path = tmp_path / "config"
    path.write_text("{current-context: gone, contexts: [], clusters: [], users: []}")
    with pytest.raises(ValueError, match="no context is named 'gone'"):
        read_kubeconfig(path)
