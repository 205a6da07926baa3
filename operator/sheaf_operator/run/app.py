"""The operator's running parts, put together: work queue, Lease, resync, HTTP for probes and metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.lease import Lease, NotHolder
from sheaf_operator.cluster.scrape import Scraper
from sheaf_operator.run.queue import KeyedQueue, Worker
from sheaf_operator.run.reconcile import Key, Reconciler
from sheaf_operator.run.telemetry import Telemetry
from sheaf_operator.settings import Settings

log = logging.getLogger(__name__)
LEASE_NAME = "sheaf-operator"
HEARTBEAT = 1.0
SPACING = 1.0  # between runs that events cause: a pod that starts brings several
SILENCE = 60.0  # a loop that has not turned for so long is stuck


class App:
    """`keys` lists all known LLMDeployments; `on_failure` is called when a part ends that should not."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        keys: Callable[[], Iterable[Key]],
        on_failure: Callable[[], None],
    ) -> None:
        self._settings, self._cluster, self._keys, self._on_failure = settings, cluster, keys, on_failure
        self.telemetry = Telemetry()
        self.lease = Lease(
            cluster, settings.namespace, LEASE_NAME, settings.identity, duration=settings.lease_duration
        )
        self._scraper = Scraper(settings.scrape_timeout)
        self.reconciler = Reconciler(cluster, self._scraper, self.lease, self.telemetry, settings)
        queue: KeyedQueue[Key] = KeyedQueue(settings.retry_base, settings.retry_cap, spacing=SPACING)
        expected = (ApiError, Unreachable, NotHolder)
        self._worker = Worker(queue, self.reconciler.process, settings.workers, expected)
        self._main: asyncio.Task[None] | None = None
        self._beat = 0.0

    def touch(self, key: Key) -> None:
        """Something about this LLMDeployment or its children has changed."""
        self.reconciler.touch(key)
        self._worker.add(key)

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
                group.create_task(self._resync())
                group.create_task(self._serve())
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.exception("a part of the operator failed; exiting so that it is restarted")
            self._on_failure()

    async def _resync(self) -> None:
        """Look at everything now and then, and at once when the Lease has been won."""
        clock = asyncio.get_running_loop().time
        last, held = clock(), False
        while True:
            self._beat = clock()
            won = self.lease.held and not held
            held = self.lease.held
            self.telemetry.lease_held.set(held)
            if won or clock() - last >= self._settings.resync_interval:
                last = clock()
                for key in list(self._keys()):
                    self.touch(key)
            await asyncio.sleep(HEARTBEAT)

    async def _serve(self) -> None:
        application = web.Application()
        application.add_routes([web.get("/healthz", self._healthz), web.get("/metrics", self._metrics)])
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

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self.telemetry.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
