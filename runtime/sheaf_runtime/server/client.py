"""The API process's end of the socket to the engine core."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import zmq

from sheaf_runtime.protocol.messages import (
    AbortRequests,
    Accepted,
    AdapterAnswer,
    AddRequest,
    ClientMessage,
    EngineFailed,
    EngineReady,
    EngineStats,
    Hello,
    LoadAdapter,
    Rejected,
    RequestOutput,
    ResetPrefixCache,
    StepOutput,
    UnloadAdapter,
    decode_core,
    encode,
)

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 10.0  # it takes a fraction of a millisecond


class EngineDeadError(RuntimeError):
    """The engine core has exited, failed or stopped making progress."""


class RejectedError(RuntimeError):
    """The core refused a request; ``rejection`` says why."""

    def __init__(self, rejection: Rejected) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection


def connect(socket: zmq.Socket[bytes], address: str) -> None:
    """Returns when it is connected, and the name may vanish. Raises ``OSError``."""
    monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED)
    try:
        socket.connect(address)
        if not monitor.poll(int(CONNECT_SECONDS * 1000)):
            raise TimeoutError(f"cannot connect to {address}")
    finally:
        socket.disable_monitor()


class OutputQueue:
    """Outputs of the engine requests behind one HTTP request; its one reader wakes once per step."""

    def __init__(self) -> None:
        self._items: list[RequestOutput] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: RequestOutput) -> None:
        self._items.append(item)
        self._wake()

    def fail(self, error: Exception) -> None:
        """``get`` raises this once the items before it are taken."""
        self._error = self._error or error
        self._wake()

    async def get(self) -> list[RequestOutput]:
        """Everything since the last call, at least one item."""
        while not self._items:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        items, self._items = self._items, []
        return items

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient:
    """Sends requests, hands out their outputs, and notices when the core dies or stalls.

    Single-threaded: everything happens on the event loop it was made on. Nothing wakes up while no request
    is in flight.

    Attributes:
        info: the core's facts once it is ready, else None.
        stats: the last snapshot of the core's gauges and counters.
        failure: why the core is gone, or None.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        *,
        stall_timeout: float,
        on_ready: Callable[[EngineReady], None],
        on_stats: Callable[[EngineStats], None],
        on_failure: Callable[[str], None],
        on_stall: Callable[[], None],
    ) -> None:
        self.info: EngineReady | None = None
        self.stats: EngineStats | None = None
        self.failure: str | None = None
        self._stall_timeout = stall_timeout
        self._on_ready, self._on_stats, self._on_failure = on_ready, on_stats, on_failure
        self._on_stall = on_stall
        self._closed = False
        self._queues: dict[str, OutputQueue] = {}
        self._admissions: dict[str, asyncio.Future[None]] = {}
        self._loads: dict[int, asyncio.Future[AdapterAnswer]] = {}  # of adapters
        self._heard = time.monotonic()  # of the last sign of progress
        self._stall_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"api")
        self._socket.setsockopt(zmq.LINGER, 0)
        # The core reads its socket once a step; messages must never be dropped or block the event loop.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        connect(self._socket, address)
        self._fd = self._socket.FD
        self._loop.add_reader(self._fd, self._receive)
        self._send(Hello())

    def close(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close()

    @property
    def in_flight(self) -> int:
        return len(self._queues)

    @property
    def seconds_since_progress(self) -> float:
        """0 while nothing is in flight: an idle engine is not a stalled one."""
        return time.monotonic() - self._heard if self._queues else 0.0

    async def add(self, request: AddRequest, queue: OutputQueue) -> None:
        """Returns once the core has accepted; its outputs then arrive in ``queue``.

        Raises ``RejectedError`` or ``EngineDeadError``. A caller that is cancelled must ``abort``.
        """
        if self.failure is not None:
            raise EngineDeadError(self.failure)
        id_ = request.request_id
        if self._closed:
            raise RejectedError(Rejected(request_id=id_, reason="draining", message="shutting down; retry"))
        admission: asyncio.Future[None] = self._loop.create_future()
        self._admissions[id_] = admission
        if not self._queues:
            self._heard = time.monotonic()
        self._queues[id_] = queue
        self._watch_progress()
        self._send(request)
        await admission

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends these requests in the core, at once; no further output of them is delivered."""
        known = [id_ for id_ in request_ids if self._forget(id_)]
        if known and self.failure is None:
            self._send(AbortRequests(request_ids=known))

    def reset_prefix_cache(self) -> None:
        """Requests that are added from now on find no page of earlier ones."""
        if self.failure is None:
            self._send(ResetPrefixCache())

    async def load_adapter(self, message: LoadAdapter) -> AdapterAnswer:
        """Returns once the core has read it, or knows why it cannot. Raises ``EngineDeadError``."""
        if self.failure is not None:
            raise EngineDeadError(self.failure)
        answer: asyncio.Future[AdapterAnswer] = self._loop.create_future()
        self._loads[message.adapter] = answer
        self._send(message)
        return await answer

    def unload_adapter(self, adapter: int) -> None:
        if self.failure is None:
            self._send(UnloadAdapter(adapter=adapter))

    def abort_all(self) -> None:
        """Ends everything in flight; each request's reader sees finish reason ``abort``. Later ones, which
        may be in the tokenizer now, are rejected."""
        self._closed = True
        queues = dict(self._queues)
        self.abort(queues)
        for id_, queue in queues.items():
            queue.put(RequestOutput(request_id=id_, token_ids=[], finish_reason="abort"))

    def fail(self, message: str) -> None:
        """Every request in flight gets ``EngineDeadError``. Only the first reason counts."""
        if self.failure is not None:
            return
        self.failure = message
        error = EngineDeadError(message)
        futures: list[asyncio.Future[Any]] = [*self._admissions.values(), *self._loads.values()]
        for waiting in futures:
            if not waiting.done():
                waiting.set_exception(error)
        for queue in set(self._queues.values()):
            queue.fail(error)
        self._admissions.clear()
        self._loads.clear()
        self._queues.clear()
        self._on_failure(message)

    def drain_socket(self) -> None:
        """Reads what the core managed to say, before its exit is judged."""
        self._receive()

    # --- the socket -----------------------------------------------------------------------------------

    def _send(self, message: ClientMessage) -> None:
        self._socket.send(encode(message), zmq.DONTWAIT, copy=True)
        # ZMQ's descriptor is edge-triggered, and sending may have consumed the edge of an arrival.
        if int(self._socket.EVENTS) & zmq.POLLIN:
            self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        while not self._socket.closed:
            try:
                frame = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._handle(frame)

    def _handle(self, frame: bytes) -> None:
        try:
            message = decode_core.decode(frame)
        except msgspec.DecodeError as error:
            self.fail(f"the engine core sent what is no message: {error}")
            return
        if self.failure is not None:
            return
        if isinstance(message, StepOutput):
            self._note_progress(message)
            if message.stats is not None:
                self.stats = message.stats
                self._on_stats(message.stats)
            for output in message.outputs:
                self._deliver(output)
        elif isinstance(message, Accepted):
            if (admission := self._admissions.pop(message.request_id, None)) and not admission.done():
                admission.set_result(None)
        elif isinstance(message, Rejected):
            if (admission := self._admissions.pop(message.request_id, None)) and not admission.done():
                admission.set_exception(RejectedError(message))
            self._forget(message.request_id)
        elif isinstance(message, AdapterAnswer):
            if (load := self._loads.pop(message.adapter, None)) and not load.done():
                load.set_result(message)
        elif isinstance(message, EngineReady):
            self.info = message
            self._on_ready(message)
        elif isinstance(message, EngineFailed):
            self.fail(f"the engine core failed: {message.message}")

    def _deliver(self, output: RequestOutput) -> None:
        if output.finish_reason is None:
            queue = self._queues.get(output.request_id)
        else:
            queue = self._queues.pop(output.request_id, None)
        if queue is not None:  # else aborted, and this was already under way
            queue.put(output)

    def _forget(self, request_id: str) -> bool:
        if (admission := self._admissions.pop(request_id, None)) and not admission.done():
            admission.set_result(None)  # whoever waits for it learns the rest from the queue
        return self._queues.pop(request_id, None) is not None

    # --- progress -------------------------------------------------------------------------------------

    def _note_progress(self, message: StepOutput) -> None:
        """Only completed steps count: a core that answers and reports but no longer steps is stalled."""
        steps_before = self.stats.steps if self.stats else 0
        if message.outputs or (message.stats is not None and message.stats.steps > steps_before):
            self._heard = time.monotonic()

    def _watch_progress(self) -> None:
        if self._stall_timer is None:
            self._stall_timer = self._loop.call_later(self._stall_timeout, self._check_progress)

    def _check_progress(self) -> None:
        self._stall_timer = None
        if not self._queues or self.failure is not None:
            return
        silence = time.monotonic() - self._heard
        if silence >= self._stall_timeout:
            self._on_stall()
            self.fail(f"the engine core made no progress for {silence:.0f} s with requests in flight")
        else:
            self._stall_timer = self._loop.call_later(self._stall_timeout - silence, self._check_progress)
