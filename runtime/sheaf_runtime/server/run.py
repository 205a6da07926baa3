"""The life of the API process: start, wait for an end, drain, exit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import zmq

from sheaf_runtime.config import EngineConfig, ServerConfig
from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.name import Order
from sheaf_runtime.protocol.messages import EngineReady
from sheaf_runtime.server.adapter_file import AdapterFile
from sheaf_runtime.server.app import create_app
from sheaf_runtime.server.client import EngineClient
from sheaf_runtime.server.core_process import CoreProcess, describe_exit
from sheaf_runtime.server.http import HttpServer
from sheaf_runtime.server.hub_download import download as hub_download
from sheaf_runtime.server.model_folder import ModelFolderError, check_folder, load_folder
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.tls import Certificate
from sheaf_runtime.server.tracing import Traces

logger = logging.getLogger(__name__)

OK, ENGINE_LOST, CONFIGURATION_ERROR = 0, 1, 2
# After the engine is lost: time for answers under way, and for probes to see why.
LAST_WORDS_SECONDS = 1.0
CORE_EXIT_SECONDS = 5.0
SIGNAL_SECONDS = 0.5  # between the arrivals of one signal at several processes


async def serve(
    engine: EngineConfig,
    server: ServerConfig,
    sock: socket.socket,
    core: CoreProcess,
    *,
    order: Order | None = None,
    certificate: Certificate | None = None,
) -> int:
    """Serves on ``sock`` until a signal or the loss of the engine; the exit status. ``order`` is what has to
    be had from the hub before ``core`` can be told what to load."""
    traces = Traces(server.otlp_traces_endpoint) if server.otlp_traces_endpoint else None
    status = await Server(Service(engine, server, traces), core, order, certificate).run(sock)
    if traces is not None:
        traces.close()
    return status


class Server:
    def __init__(
        self,
        service: Service,
        core: CoreProcess,
        order: Order | None,
        certificate: Certificate | None,
    ) -> None:
        self._config = service.server_config
        self._service = service
        self._order = order
        self._http = HttpServer(create_app(self._service), certificate)
        self._core = core
        self._client: EngineClient | None = None
        self._follow: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()  # a signal, or the engine is lost
        self._signals: list[signal.Signals] = []
        self._exit_status = OK
        self._started = time.monotonic()

    async def run(self, sock: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signum is not signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:  # nohup's
                loop.add_signal_handler(signum, self._on_signal, signum)
        self._http.start(sock)
        host, port = sock.getsockname()[:2]
        scheme = "https" if self._config.ssl_certfile else "http"
        model = self._service.root
        logger.info("listening on %s://%s:%d, loading %s", scheme, host, port, model)
        if await self._obtain():
            with zmq.Context() as context:
                await self._configure_core(context)
                tasks = [asyncio.create_task(self._watch_core()), asyncio.create_task(self._load_folder())]
                await self._stop.wait()
                await self._finish()
                await _cancel(*tasks, *([self._follow] if self._follow else []))
                await self._stop_core()
        else:
            await self._finish()
            await self._core.stop(patience=0)
        failure = self._service.lifecycle.failure
        logger.info("exit status %d%s", self._exit_status, f": {failure}" if failure else "")
        for threads in (self._service.tokenizing, self._service.tokenizing_large):
            threads.shutdown(wait=False, cancel_futures=True)
        return self._exit_status

    # --- start ----------------------------------------------------------------------------------------

    async def _obtain(self) -> bool:
        """Whether the model is here. False if the hub has none that can be served, or a signal came first."""
        engine = self._service.engine_config
        try:
            model = engine.model if self._order is None else await self._download(self._order)
            if model is None:
                return False
            check_folder(model)
        except (HubError, ModelFolderError) as error:
            self._on_failure(str(error))
            self._exit_status = CONFIGURATION_ERROR
            return False
        self._service.engine_config = msgspec.structs.replace(engine, model=model)
        return True

    async def _download(self, order: Order) -> str | None:
        """None if a signal came first."""
        download, stop = asyncio.create_task(hub_download(order)), asyncio.create_task(self._stop.wait())
        await asyncio.wait({download, stop}, return_when=asyncio.FIRST_COMPLETED)
        done = download.done()
        await _cancel(stop, *([] if done else [download]))
        return download.result() if done else None

    async def _configure_core(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        # The socket's name is there for less than a millisecond, whatever ends this process later.
        with _folder_for_a_socket() as folder:
            self._core.listener.bind(f"{folder}/core")
            self._core.listener.listen()
            self._client = EngineClient(
                context,
                f"ipc://{folder}/core",
                stall_timeout=self._config.stall_timeout,
                on_ready=self._on_ready,
                on_stats=self._service.metrics.on_stats,
                on_failure=self._on_failure,
                on_stall=self._core.ask_state,
            )
        self._service.attach(self._client)
        await self._core.configure(self._service.engine_config)

    async def _load_folder(self) -> None:
        """Reads the tokenizer in a thread, while the core loads the weights."""
        engine = self._service.engine_config
        load = asyncio.to_thread(load_folder, engine, self._config)
        try:
            self._service.set_folder(await load)
        except ModelFolderError as error:
            self._on_failure(str(error))
            self._exit_status = CONFIGURATION_ERROR
        except Exception as error:  # else the server would say "loading" for ever
            logger.exception("reading the model folder failed")
            self._on_failure(f"{self._service.engine_config.model}: {type(error).__name__}: {error}")

    def _on_ready(self, info: EngineReady) -> None:
        self._service.engine_ready(info)
        self._follow_adapters()
        gc.collect()
        gc.freeze()  # what start-up made is never collected: no pauses for looking at it
        logger.info(
            "engine ready after %.1f s: %s %s, context of %d tokens, %d KV blocks of %d tokens",
            time.monotonic() - self._started,
            info.device,
            info.dtype,
            info.max_model_len,
            info.num_blocks,
            info.block_size,
        )

    def _follow_adapters(self) -> None:
        if self._config.adapters_file is None:
            return
        file = AdapterFile(self._service, Path(self._config.adapters_file), time.monotonic)
        self._service.metrics.adapters = lambda: file.states
        self._follow = asyncio.create_task(file.follow(self._service.adapters_tried, asyncio.sleep))

    # --- what ends it ---------------------------------------------------------------------------------

    def _on_signal(self, signum: signal.Signals) -> None:
        if self._signals:
            self._core.kill()
            os._exit(128 + signum)
        self._signals.append(signum)
        logger.info("%s: draining", signal.Signals(signum).name)
        self._stop.set()

    def _on_failure(self, message: str) -> None:
        if self._service.lifecycle.failure is None:
            logger.error("%s", message)
            self._service.lifecycle.fail(message)
            self._exit_status = ENGINE_LOST
            self._stop.set()

    async def _watch_core(self) -> None:
        assert self._client is not None
        status = await self._core.wait()
        if status in (-signal.SIGTERM, -signal.SIGINT) and not self._loaded:
            # Sent to everybody here, and the core was too young to ignore it: ours is on its way.
            await asyncio.sleep(SIGNAL_SECONDS)
        if self._signals and not self._loaded:
            return
        self._client.drain_socket()  # its own last words say more than its exit status
        self._client.fail(f"the engine core has died: {describe_exit(status)}")
        if status == CONFIGURATION_ERROR:
            self._exit_status = status

    # --- the end --------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Everything that is owed to clients, before the core may end."""
        if self._loaded and self._service.lifecycle.failure is None:
            await self._drain()
        if self._service.lifecycle.failure is not None:
            await asyncio.sleep(LAST_WORDS_SECONDS)
        await self._http.stop()

    async def _stop_core(self) -> None:
        assert self._client is not None
        healthy = self._loaded and self._service.lifecycle.failure is None
        await self._core.stop(patience=CORE_EXIT_SECONDS if healthy else 0)
        self._client.close()

    @property
    def _loaded(self) -> bool:
        return self._client is not None and self._client.info is not None

    async def _drain(self) -> None:
        """Lame, then refusing, until nothing runs any more or ``--drain-timeout`` is over.

        Lame until no load balancer has sent a client here for ``--lame-duck`` seconds: on a busy cluster it
        may hear late. At most for half of the time, for some client may never hear.
        """
        config, lifecycle = self._config, self._service.lifecycle
        began = time.monotonic()
        lifecycle.begin_drain()
        # Ctrl-C comes from a person: there is no load balancer that has to hear of it first.
        lame_duck = 0.0 if self._signals[0] is signal.SIGINT else min(config.lame_duck, config.drain_timeout)
        most = began + max(lame_duck, config.drain_timeout / 2)
        while lifecycle.failure is None:
            ends = min(most, max(began, lifecycle.sought_at) + lame_duck)
            if (left := ends - time.monotonic()) <= 0:
                break
            await self._pause(left)
        lifecycle.end_lame_duck()
        deadline = began + config.drain_timeout
        await self._quiet(deadline)
        await self._http.end_listening()
        await self._quiet(deadline)
        if self._client is not None and self._client.in_flight:
            logger.warning("--drain-timeout is over: aborting %d requests", self._client.in_flight)
            self._client.abort_all()

    async def _quiet(self, deadline: float) -> None:
        """Until no request is under way, the engine is lost, or it is ``deadline``."""
        lifecycle = self._service.lifecycle
        while self._http.busy and lifecycle.failure is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, unless the engine is lost meanwhile."""
        self._stop.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _folder_for_a_socket() -> Iterator[str]:
    """A temporary one, in /tmp if the path would be too long for a socket's name."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sheaf-"))
        if len(os.fsencode(f"{folder}/core")) > zmq.IPC_PATH_MAX_LEN:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sheaf-", dir="/tmp"))
        yield folder
