"""One list per kind: what it finds, what fails, and when everything is looked at."""

from __future__ import annotations

import asyncio
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.errors import ApiError, KindMissing, Unreachable
from sheaf_operator.cluster.kinds import Kind
from sheaf_operator.run import app as app_module
from sheaf_operator.run.app import App
from sheaf_operator.run.resync import Resync
from sheaf_operator.settings import Settings

KEY = ("ns", "m")


class Lists:
    """An API server that only lists: one model, nothing else."""

    def __init__(self) -> None:
        self.version = 1
        self.owner = k.owner()
        self.errors: dict[Kind, Exception] = {}
        self.asked: list[tuple[str, str]] = []

    async def list(self, kind: Kind, namespace: str = "") -> tuple[list[dict[str, Any]], int]:
        self.asked.append((kind.plural, namespace))
        if kind in self.errors:
            raise self.errors[kind]
        self.version += 10
        return ([self.owner] if kind == kinds.MODELS and namespace in ("", "ns") else []), self.version

    async def get_lease(self, *_: Any) -> None:
        return None

    async def write_lease(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass


def resync(server: Lists, cache: Cache) -> tuple[Resync, list[Any]]:
    touched: list[Any] = []
    return Resync(server, cache, lambda _, keys: touched.extend(keys)), touched  # type: ignore[arg-type]


async def test_each_kind_is_listed_once_per_namespace() -> None:
    server, cache = Lists(), Cache(["ns", "other"])
    work, touched = resync(server, cache)
    await work.everything()
    assert sorted(server.asked) == sorted((kind.plural, n) for kind in kinds.ALL for n in ("ns", "other"))
    assert cache.complete
    assert touched == [KEY]
    assert not work.unfinished


@pytest.mark.parametrize("error", [Unreachable("away"), ApiError(403, "", "no"), ApiError(500, "", "")])
async def test_a_kind_that_cannot_be_listed_holds_no_other_up(error: Exception) -> None:
    server, cache = Lists(), Cache()
    server.errors = {kinds.MODELS: error}
    work, _ = resync(server, cache)
    await work.everything()
    assert len(server.asked) == len(kinds.ALL)
    assert work.unfinished
    assert not cache.complete
    server.errors = {}
    await work.everything()
    assert cache.complete
    assert not work.unfinished


async def test_a_kind_that_the_api_server_does_not_know_is_looked_for_soon() -> None:
    server, cache = Lists(), Cache()
    server.errors = {kind: KindMissing(404, "", "") for kind in (kinds.SERVICES, kinds.RUNTIMES)}
    work, touched = resync(server, cache)
    await work.everything()
    assert cache.complete
    assert work.unfinished
    touched.clear()
    server.errors = {}
    await work.everything()
    assert KEY in touched
    assert not work.unfinished


async def test_a_kind_that_appeared_is_listed_often_until_its_watch_is_there() -> None:
    """kopf finds new kinds in its own time. What is deleted before its watch begins, no watch ever tells."""
    server, cache = Lists(), Cache(["ns", "other"])
    server.errors = {kind: KindMissing(404, "", "") for kind in (kinds.SERVICES, kinds.RUNTIMES)}
    app = App(Settings(), server, cache, lambda: None)  # type: ignore[arg-type]
    service = k.service(k.revision(k.spec()))
    service["metadata"] |= {"resourceVersion": "1000"}
    await app._list()
    server.errors = {}
    await app._list()
    assert not app._resync.unfinished, "there is nothing that could be deleted unseen"
    app.see(kinds.SERVICES, "MODIFIED", service)  # the answer to our own write
    assert app._resync.unfinished
    app.watched(kinds.SERVICES, None, service | {"metadata": service["metadata"] | {"namespace": "other"}})
    assert app._resync.unfinished, "that was another namespace's watch"
    app.watched(kinds.SERVICES, None, service)
    assert not app._resync.unfinished
    await app._scraper.close()


async def test_a_lease_that_was_lost_and_won_again_at_once_gives_every_key_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two looks at it, it seems to have been held all along."""
    monkeypatch.setattr(app_module, "HEARTBEAT", 0.001)
    server, cache = Lists(), Cache()
    app = App(Settings(), server, cache, lambda: None)  # type: ignore[arg-type]
    touched: asyncio.Queue[Any] = asyncio.Queue()
    monkeypatch.setattr(app, "touch", touched.put_nowait)
    look = asyncio.create_task(app._look())
    async with asyncio.timeout(5):
        await app.lease.attempt()
        assert await touched.get() == KEY
        app.lease._valid_until = float("-inf")
        await app.lease.attempt()
        assert await touched.get() == KEY
    look.cancel()
    await asyncio.gather(look, return_exceptions=True)
    await app._scraper.close()


async def test_an_operator_without_its_rights_is_not_ready_and_says_which() -> None:
    """It would run and do nothing, and only its log would know."""
    server, cache = Lists(), Cache()
    app = App(Settings(), server, cache, lambda: None)  # type: ignore[arg-type]
    words = 'pods is forbidden: User "system:serviceaccount:s:o" cannot list resource "pods"'
    server.errors = {kinds.PODS: ApiError(403, "Forbidden", words)}
    await app._list()
    told = await app._readyz(None)  # type: ignore[arg-type]
    assert told.status == 503
    assert words in (told.text or "")
    server.errors = {kinds.PODS: Unreachable("away")}
    await app._list()
    assert (await app._readyz(None)).status == 503  # type: ignore[arg-type]
    server.errors = {}
    await app._list()
    assert (await app._readyz(None)).status == 200  # type: ignore[arg-type]
    server.errors = {kinds.PODS: Unreachable("away")}
    await app._list()
    assert (await app._readyz(None)).status == 200  # type: ignore[arg-type]
    app.lease.refused = "leases is forbidden"
    assert (await app._readyz(None)).status == 503  # type: ignore[arg-type]
    await app._scraper.close()


async def test_keys_of_others_are_not_run() -> None:
    server, cache = Lists(), Cache()
    app = App(Settings(), server, cache, lambda: None)  # type: ignore[arg-type]
    app.see(kinds.SERVICES, "ADDED", k.service(k.revision(k.spec())) | {"metadata": _meta("foreign")})
    assert len(app._worker._queue) == 0
    app.see(kinds.MODELS, None, k.owner())
    assert len(app._worker._queue) == 1
    await app._scraper.close()


async def test_a_namesake_that_only_a_list_tells_of_starts_without_the_failures_of_the_first() -> None:
    server, cache = Lists(), Cache()
    app = App(Settings(), server, cache, lambda: None)  # type: ignore[arg-type]
    queue = app._worker._queue
    app.see(kinds.MODELS, None, k.owner())
    assert queue.take(0.0) == KEY
    queue.fail(KEY, 0.0)
    await app._resync.everything()  # nothing new
    server.owner = k.owner(uid="another", resourceVersion="9")
    assert queue.failures(KEY) == 1
    await app._resync.everything()
    assert queue.failures(KEY) == 0
    await app._scraper.close()


@pytest.mark.parametrize(("namespaces", "calls"), [((), 0), (("ns",), 1)])
async def test_kinds_that_come_later_are_told_of_where_nobody_watches_for_them(
    namespaces: tuple[str, ...], calls: int
) -> None:
    server, cache = Lists(), Cache(namespaces)
    server.errors = {kinds.SERVICES: KindMissing(404, "", "")}
    called: list[str] = []
    settings = Settings(watch_namespaces=namespaces)
    app = App(settings, server, cache, lambda: None, lambda: called.append("anew"))  # type: ignore[arg-type]
    await app._list()
    await app._list()
    assert called == []
    server.errors = {}
    await app._list()
    await app._list()
    assert len(called) == calls
    await app._scraper.close()


def _meta(name: str) -> dict[str, Any]:
    return {"name": name, "namespace": "ns", "uid": "f", "resourceVersion": "3"}
