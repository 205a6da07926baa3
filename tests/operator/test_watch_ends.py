"""A watch that ends with an error ends kopf: everything is watched anew then, in the same process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from sheaf_operator import main
from sheaf_operator.cluster import kinds
from sheaf_operator.settings import Settings

Json = dict[str, Any]
DEADLINE = 30.0
NO_LEADER = {"kind": "Status", "code": 500, "message": "etcdserver: no leader"}
EXTRA = (("", "v1", "namespaces"), ("apiextensions.k8s.io", "v1", "customresourcedefinitions"))
SERVED = [*((kind.group, kind.version, kind.plural) for kind in kinds.ALL), *EXTRA]


class Server:
    """An API server with nothing in it, whose first watch of models ends with an error."""

    def __init__(self, on_second: Callable[[], object]) -> None:
        self.watches, self.on_second = Counter[str](), on_second
        self.lease: Json | None = None

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.strip("/").split("/")
        if "leases" in path:
            return await self.hold(request)
        if path[-1] in ("api", "apis"):
            return web.json_response(self.groups(path[-1]))
        group, version, *rest = path[1:] if path[0] == "apis" else ["", *path[1:]]
        if not rest:
            found = [plural for g, v, plural in SERVED if (g, v) == (group, version)]
            return web.json_response({"resources": [resource(plural) for plural in found]})
        if "watch" in request.query:
            return await self.watch(request, rest[-1])
        head = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "5"}}
        return web.json_response({**head, "items": []})

    def groups(self, root: str) -> Json:
        if root == "api":
            return {"versions": ["v1"]}
        found = sorted({(group, version) for group, version, _ in SERVED if group})
        return {
            "groups": [
                {"name": g, "versions": [{"version": v}], "preferredVersion": {"version": v}}
                for g, v in found
            ]
        }

    async def hold(self, request: web.Request) -> web.Response:
        if request.method != "GET":
            self.lease = await request.json()
            self.lease["metadata"]["resourceVersion"] = "1"
        if self.lease is None:
            details = {"details": {"name": "x"}, "reason": "NotFound"}
            return web.json_response(details, status=404)
        return web.json_response(self.lease)

    async def watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        self.watches[plural] += 1
        first = self.watches[plural] == 1
        response = web.StreamResponse()
        await response.prepare(request)
        if plural == kinds.MODELS.plural and first:
            await response.write(json.dumps({"type": "ERROR", "object": NO_LEADER}).encode() + b"\n")
            return response
        if plural == kinds.MODELS.plural:
            self.on_second()
        await asyncio.Event().wait()
        return response


def resource(plural: str) -> Json:
    kind = {"name": plural, "singularName": plural[:-1], "kind": plural.title(), "namespaced": True}
    return {**kind, "verbs": ["list", "watch"]}


@pytest.fixture
def serve() -> Iterator[Callable[[Server], str]]:
    """Serves in a thread of its own: kopf waits for every task of its loop before it ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening: list[TestServer] = []

    def start(server: Server) -> str:
        listening.append(TestServer(server.application()))
        asyncio.run_coroutine_threadsafe(listening[-1].start_server(), loop).result(DEADLINE)
        return str(listening[-1].make_url("")).rstrip("/")

    yield start
    for one in listening:
        asyncio.run_coroutine_threadsafe(one.close(), loop).result(DEADLINE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def test_a_watch_that_ends_with_an_error_is_begun_anew(
    serve: Callable[[Server], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, again = asyncio.get_running_loop(), asyncio.Event()
    server = Server(lambda: loop.call_soon_threadsafe(again.set))
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": serve(server)}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    where = "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(where, str(tmp_path / "config"))
    settings = Settings(http_port=0, retry_base=0.01, watch_namespaces=("ns",))
    running = asyncio.create_task(main.run(settings))
    waiting = asyncio.create_task(again.wait())
    done, _ = await asyncio.wait({running, waiting}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    for task in (running, waiting):
        task.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert waiting in done, running
