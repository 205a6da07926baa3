"""A real engine core process and a client of its socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import zmq
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.protocol.messages import CoreMessage, StepOutput, decode_core, encode

PATIENCE = 60.0  # seconds; importing torch on a busy machine takes some


class Client:
    """A DEALER with messages in and out; fails instead of waiting forever."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, identity: bytes) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    def send(self, message: object) -> None:
        self._socket.send(message if isinstance(message, bytes) else encode(message))

    def receive(self, seconds: float = PATIENCE) -> CoreMessage:
        assert self._socket.poll(int(seconds * 1000)), "the core says nothing"
        return decode_core.decode(self._socket.recv())

    def answer(self) -> CoreMessage:
        """The next message that is no step's output."""
        while isinstance(message := self.receive(), StepOutput):
            pass
        return message

    def until_idle(self, *request_ids: str) -> list[StepOutput]:
        """Step outputs up to the one after which these requests have ended and nothing runs or waits."""
        missing, seen = set(request_ids), []
        while True:
            message = self.receive()
            if isinstance(message, StepOutput):
                seen.append(message)
                missing -= {o.request_id for o in message.outputs if o.finish_reason}
                stats = message.stats
                if not missing and stats is not None and stats.running + stats.waiting == 0:
                    return seen

    def close(self) -> None:
        self._socket.close()


@contextmanager
def sockets() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


def listening(address: str) -> socket.socket:
    """A Unix socket that listens at a ZMQ address."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address.removeprefix("ipc://"))
    listener.listen()
    return listener


@contextmanager
def core_process(config: EngineConfig | bytes, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Started with ``config`` on stdin, which stays open; ended and reaped at the end."""
    line = config if isinstance(config, bytes) else msgspec.json.encode(config)
    with listening(address) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "sheaf_runtime.engine", "--socket", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=[listener.fileno()],
        )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stderr.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
