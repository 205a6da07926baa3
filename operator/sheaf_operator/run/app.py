"""The operator's running parts, put together: work queue, Lease, resync, HTTP for probes and metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.kinds import Kind
from sheaf_operator.cluster.lease import Lease, NotHolder
from sheaf_operator.cluster.scrape import Scraper
from sheaf_operator.cluster.store import Json
from sheaf_operator.run.queue import KeyedQueue, Worker
from sheaf_operator.run.reconcile import Key, Reconciler
from sheaf_operator.run.resync import Resync
from sheaf_operator.run.telemetry import Telemetry
from sheaf_operator.settings import Settings

log = logging.getLogger(__name__)
HEARTBEAT = 1.0
RELIST = 10.0  # while a kind cannot be listed, such as KServe's before it is installed
SPACING = 1.0  # between runs that events cause: a pod that starts brings several
SILENCE = 60.0  # a loop that has not turned for so long is stuck


class App:
    """`on_failure` is called when a part ends that should not, `on_new_kinds` when there are kinds that kopf
    did not find when it started, and does not look for.
    """

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        cache: Cache,
        on_failure: Callable[[], None],
        on_new_kinds: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._cluster, self._cache = settings, cluster, cache
        self._on_failure, self._on_new_kinds = on_failure, on_new_kinds
        self.telemetry = Telemetry()
        self.lease = Lease(
            cluster,
            settings.namespace,
            settings.lease_name,
            settings.identity,
            duration=settings.lease_duration,
        )
        self._scraper = Scraper(settings.scrape_timeout)
        self._reconciler = Reconciler(cluster, cache, self._scraper, self.lease, self.telemetry, settings)
        queue: KeyedQueue[Key] = KeyedQueue(settings.retry_base, settings.retry_cap, spacing=SPACING)
        self._worker = Worker(queue, self._reconciler.process, (ApiError, Unreachable, NotHolder))
        self._resync = Resync(cluster, cache, self._news)
        self._main: asyncio.Task[None] | None = None
        self._beat = 0.0

    def touch(self, key: Key) -> None:
        """Something about this LLMDeployment or what belongs to it has changed."""
        if self._cache.get(kinds.MODELS, key) is None and not self._reconciler.remembers(key):
            return  # another operator's
        self._reconciler.touch(key)
        self._worker.add(key)

    def watched(self, kind: Kind, event: str | None, obj: Json) -> None:
        """A watch's event."""
        self._resync.watched(kind, obj["metadata"]["namespace"])
        self.see(kind, event, obj)

    def see(self, kind: Kind, event: str | None, obj: Json) -> None:
        """A watch's event: ADDED, MODIFIED, DELETED, or None for what its first list holds; MODIFIED also for
        what a write of ours has answered. That may show an object which does not count any more: a watch told
        of its end with an older version, or will.
        """
        labels = obj["metadata"].get("labels", {})
        ended = event == "DELETED" or not kind.counts(labels, self._settings.watch_class)
        self._news(kind, self._cache.remove(kind, obj) if ended else self._cache.put(kind, obj))

    def _news(self, kind: Kind, changed: set[Key]) -> None:
        for key in changed:
            if kind == kinds.MODELS:
                self._worker.forget(key)  # another spec, or another resource
            self.touch(key)

    def start(self) -> None:
        self._main = asyncio.create_task(self._run(), name="sheaf-operator")

    async def stop(self) -> None:
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self._scraper.close()
        await self._cluster.close()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.lease.run())
                group.create_task(self._worker.run())
                group.create_task(self._heartbeat())
                group.create_task(self._look())
                group.create_task(self._serve())
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.exception("a part of the operator failed; exiting so that it is restarted")
            self._on_failure()

    async def _heartbeat(self) -> None:
        while True:
            self._beat = asyncio.get_running_loop().time()
            self.telemetry.lease_held.set(self.lease.held)
            await asyncio.sleep(HEARTBEAT)

    async def _look(self) -> None:
        """List everything now and then, and when the Lease has been won: then every key gets a run."""
        clock = asyncio.get_running_loop().time
        listed, term, begins = float("-inf"), 0, False
        while True:
            if self.lease.held and self.lease.term != term:
                listed, term, begins = float("-inf"), self.lease.term, True
            if clock() - listed >= (RELIST if self._resync.unfinished else self._settings.resync_interval):
                await self._list()
                listed = clock()
            if begins and self._cache.complete:
                begins = False
                for key in self._cache.keys:
                    self.touch(key)
            await asyncio.sleep(HEARTBEAT)

    async def _list(self) -> None:
        missing = self._cache.missing
        await self._resync.everything()
        # It would have to watch definitions, which is a right to the whole cluster.
        if missing - self._cache.missing and self._settings.watch_namespaces:
            self._on_new_kinds()

    async def _serve(self) -> None:
        application = web.Application()
        routes = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        application.add_routes([web.get(path, answer) for path, answer in routes.items()])
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, port=self._settings.http_port).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        """Says whether this process works, not whether the API server does: a restart would not help that."""
        silent = asyncio.get_running_loop().time() - self._beat
        if silent > SILENCE:
            return web.Response(status=503, text=f"no heartbeat for {silent:.0f} s\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        """Whether it has the rights it needs, so that an install or upgrade without them does not succeed. An
        API server that is away makes nobody unready.
        """
        if refused := "; ".join(filter(None, (self._resync.refused, self.lease.refused))):
            words = "rights are missing, install the Role or ClusterRole of this release"
            return web.Response(status=503, text=f"{words}: {refused}\n")
        return web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self.telemetry.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
