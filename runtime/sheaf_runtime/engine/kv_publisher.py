"""KV events over ZMQ as vLLM publishes them: PUB frames (topic, sequence number, batch), and a ROUTER that
replays the last batches.

Nothing here can hold up the engine: a subscriber that does not keep up loses batches, sees it by the numbers,
and asks for them again.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import msgspec
import zmq

from sheaf_runtime.config import KVEventsConfig
from sheaf_runtime.engine.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

END = (-1).to_bytes(8, "big", signed=True)


class KVEventPublisher:
    """Raises ``ValueError`` for an endpoint that cannot be used."""

    def __init__(self, config: KVEventsConfig) -> None:
        self._topic = config.topic.encode()
        self._encode = msgspec.msgpack.Encoder().encode
        self._next = 0
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=config.buffer_steps)  # number, batch
        self._lock = threading.Lock()
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.SNDHWM, config.hwm)
        self._pub.setsockopt(zmq.LINGER, 0)
        try:
            _attach(self._pub, config.endpoint)
            if config.replay_endpoint is not None:
                self._serve_replays(config.replay_endpoint)
        except ValueError:
            self._context.destroy(linger=0)
            raise

    def _serve_replays(self, endpoint: str) -> None:
        replay = self._context.socket(zmq.ROUTER)
        replay.setsockopt(zmq.SNDHWM, 0)  # a replay is sent whole; it is bounded by what is kept
        replay.setsockopt(zmq.LINGER, 0)
        _attach(replay, endpoint, bind=True)
        threading.Thread(target=self._replay, args=(replay,), daemon=True, name="kv-replay").start()

    def publish(self, events: list[BlockStored | BlockRemoved | AllBlocksCleared]) -> None:
        if not events:
            return
        number = self._next.to_bytes(8, "big")
        batch = self._encode(KVEventBatch(time.time(), events, 0))
        self._next += 1
        with self._lock:
            self._kept.append((number, batch))
        self._pub.send_multipart((self._topic, number, batch), zmq.NOBLOCK)

    def close(self) -> None:
        self._pub.close()
        self._context.term()

    def _replay(self, socket: zmq.Socket[bytes]) -> None:
        """Answers (sequence number of the first batch wanted) with the batches kept from there on."""
        try:
            while True:
                frames = socket.recv_multipart()
                if len(frames) != 3 or len(frames[2]) != 8:
                    continue
                client, _, first = frames
                with self._lock:
                    wanted = [kept for kept in self._kept if kept[0] >= first]
                for number, batch in wanted:
                    socket.send_multipart((client, b"", self._topic, number, batch))
                socket.send_multipart((client, b"", b"", END, b""))
        except zmq.ContextTerminated:
            socket.close()


def _attach(socket: zmq.Socket[bytes], endpoint: str, *, bind: bool = False) -> None:
    """vLLM's rule: addresses of this machine's own are bound, others connected to."""
    here = bind or "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))
    try:
        (socket.bind if here else socket.connect)(endpoint)
    except zmq.ZMQError as error:
        raise ValueError(f"--kv-events-config: {endpoint} cannot be used: {error}") from error
