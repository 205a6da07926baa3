"""The core's end of the socket: messages in, one ``StepOutput`` per step and client out."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable

import msgspec
import zmq

from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.kv_publisher import KVEventPublisher
from sheaf_runtime.engine.outputs import Output
from sheaf_runtime.protocol.messages import (
    AbortRequests,
    Accepted,
    AddRequest,
    CoreMessage,
    EngineFailed,
    Hello,
    LoadAdapter,
    Rejected,
    RequestOutput,
    ResetPrefixCache,
    StepOutput,
    UnloadAdapter,
    decode_client,
    encode,
)

STATS_INTERVAL = 0.1  # seconds
CHECK_AFTER_IDLE = 1.0  # seconds
POLL = 0.005  # seconds between looks at what other threads do, while nothing else happens
FAREWELL = 2.0  # seconds to wait for a client's Hello, and for its last message to leave


class _AnyRequest(msgspec.Struct):
    request_id: str


class Channel:
    """A ROUTER on a Unix socket that listens already, given by its descriptor. Messages to clients that are
    gone are dropped by ZMQ, nothing ever blocks."""

    def __init__(self, listener: int) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        # A burst must not be dropped; what can pile up is bounded by the requests that were accepted.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a client that reconnects keeps its identity
        self._socket.setsockopt(zmq.USE_FD, listener)
        self._socket.bind(f"ipc://{_name(listener)}")

    def wait(self, seconds: float | None) -> bool:
        """Whether a message has arrived; blocks for ``seconds``, or for as long as it takes."""
        return bool(self._socket.poll(None if seconds is None else int(seconds * 1000)))

    def receive(self) -> tuple[bytes, bytes] | None:
        """(client, payload) of one message, or None at once if there is none."""
        try:
            client, *rest = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return client, rest[-1] if rest else b""

    def send(self, client: bytes, message: CoreMessage) -> None:
        try:
            self._socket.send_multipart((client, encode(message)), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # The client is gone; its API process is too, or will notice by itself.
            print(f"engine: dropped a message to {client!r}: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._socket.close(linger=int(FAREWELL * 1000))
        self._context.term()

    def fail(self, clients: set[bytes], message: str) -> None:
        """Tell everybody who is there, or about to be, that this process ends."""
        deadline = time.monotonic() + FAREWELL
        while True:
            while (received := self.receive()) is not None:
                clients.add(received[0])
            left = deadline - time.monotonic()
            if clients or left <= 0 or not self.wait(left):
                break
        for client in clients:
            self.send(client, EngineFailed(message=message))


def _name(listener: int) -> str:
    with socket.socket(fileno=os.dup(listener)) as duplicate:
        return str(duplicate.getsockname())


class EngineServer:
    """Feeds an ``EngineCore`` from a ``Channel``. ``clients`` are all that ever said something: they get the
    stats, and hear of a failure."""

    def __init__(
        self,
        core: EngineCore,
        channel: Channel,
        *,
        clock: Callable[[], float] = time.monotonic,
        kv_publisher: KVEventPublisher | None = None,
    ) -> None:
        self._core = core
        self._channel = channel
        self._clock = clock
        self.clients: set[bytes] = set()
        self._stats_due = 0.0
        self._kv_publisher = kv_publisher
        self._kv_log = core.record_kv_events() if kv_publisher is not None else None

    def run(self) -> None:
        """Serve forever. Blocks without a timer while idle."""
        core = self._core
        checked = False
        while True:
            if core.awaits_threads:
                if not core.busy:
                    self._channel.wait(POLL)
            elif not core.busy and not self._channel.wait(None if checked else CHECK_AFTER_IDLE):
                # Full scans are for quiet times: the pool can have a million pages.
                core.check_integrity()
                checked = True
                continue
            self.take_in()
            for client, answer in core.take_ready():
                self._channel.send(client, answer)
            for client, read in core.take_adapter_answers():
                self._channel.send(client, read)
            if core.busy:
                checked = False
                self.send(core.step())
            if self._kv_publisher is not None and self._kv_log is not None:
                self._kv_publisher.publish(self._kv_log.take())

    def take_in(self) -> None:
        """Handle every message that has arrived."""
        aborted = False
        while (received := self._channel.receive()) is not None:
            client, payload = received
            self.clients.add(client)
            try:
                message = decode_client.decode(payload)
            except msgspec.DecodeError as error:
                self._reject_malformed(client, payload, str(error))
                continue
            if isinstance(message, AddRequest):
                if (answer := self._add(client, message)) is not None:
                    self._channel.send(client, answer)
            elif isinstance(message, AbortRequests):
                aborted = aborted or self._core.has_requests
                self._core.abort(client, message.request_ids)
            elif isinstance(message, ResetPrefixCache):
                self._core.reset_prefix_cache()
            elif isinstance(message, LoadAdapter):
                self._core.adapters.load(client, message)
            elif isinstance(message, UnloadAdapter):
                self._core.adapters.unload(message.adapter)
            elif isinstance(message, Hello):
                self._channel.send(client, self._core.ready)
        if aborted and not self._core.has_requests:
            self._send_stats({})

    def _add(self, client: bytes, message: AddRequest) -> Accepted | Rejected | None:
        try:
            return self._core.add(client, message)
        except Exception as error:  # this request's trouble, not everybody's
            traceback.print_exc()
            problem = f"the request cannot be taken in: {type(error).__name__}: {error}"
            return Rejected(request_id=message.request_id, reason="internal", message=problem)

    def send(self, outputs: list[Output]) -> None:
        """Group one step's outputs by client; stats ride along when due and when no requests are left."""
        by_client: dict[bytes, list[RequestOutput]] = {}
        for output in outputs:
            by_client.setdefault(output.request.client, []).append(_to_message(output))
        if not self._core.has_requests or self._clock() >= self._stats_due:
            self._send_stats(by_client)
        else:
            for client, items in by_client.items():
                self._channel.send(client, StepOutput(outputs=items))

    def _send_stats(self, by_client: dict[bytes, list[RequestOutput]]) -> None:
        stats = self._core.take_stats()
        self._stats_due = self._clock() + STATS_INTERVAL
        for client in self.clients:
            self._channel.send(client, StepOutput(outputs=by_client.get(client, []), stats=stats))

    def _reject_malformed(self, client: bytes, payload: bytes, problem: str) -> None:
        """A request that cannot be read must still get its answer, or somebody waits for it forever."""
        print(f"engine: malformed message from {client!r}: {problem}", file=sys.stderr, flush=True)
        try:
            request_id = msgspec.msgpack.decode(payload, type=_AnyRequest).request_id
        except msgspec.DecodeError:
            return
        self._channel.send(
            client,
            Rejected(request_id=request_id, reason="internal", message=f"Malformed request: {problem}"),
        )


def _to_message(output: Output) -> RequestOutput:
    request = output.request
    return RequestOutput(
        request_id=request.request_id,
        token_ids=output.token_ids,
        finish_reason=output.finish_reason,
        stop_token_id=output.stop_token_id,
        error=output.error,
        pooled=output.pooled,
        logprobs=output.logprobs,
        prompt_logprobs=request.scored if output.first else [],
        cached_tokens=request.cached_tokens if output.first else 0,
        scheduled_time=request.scheduled_time if output.first else None,
        first_token_time=request.first_token_time if output.first else None,
    )
