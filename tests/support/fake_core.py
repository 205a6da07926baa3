"""A stand-in for the engine core that speaks the real protocol over a real socket, for deterministic faults.

Its "model" repeats the prompt: output token i is prompt token i modulo the prompt's length. Faults are
asked for by the environment variable FAKE_CORE, a JSON object of ``Faults``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import select
import socket
import sys
import time

import msgspec
import zmq
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.protocol.messages import (
    AbortRequests,
    Accepted,
    AddRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    Hello,
    Rejected,
    RequestOutput,
    StepOutput,
    decode_client,
    encode,
)

END_TOKEN = 0


class Faults(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Steps are counted from 1. Waiting requests beyond ``max_queued`` are rejected."""

    step_seconds: float = 0.0
    load_seconds: float = 0.0
    vocab_size: int = 320
    max_running: int = 64
    max_queued: int = 1000
    fail_loading: str | None = None
    fail_at_step: int | None = None
    exit_at_step: int | None = None
    hang_at_step: int | None = None
    garble_at_step: int | None = None
    log: str | None = None  # a file that gets one line per request added or aborted


class FakeCore:
    def __init__(self, router: zmq.Socket[bytes], config: EngineConfig, faults: Faults) -> None:
        self.socket, self.config, self.faults = router, config, faults
        self.requests: dict[str, tuple[AddRequest, int]] = {}
        self.client = b""
        self.steps = self.prompt_tokens = self.generation_tokens = 0
        self.log = open(faults.log, "a", buffering=1) if faults.log else None  # noqa: SIM115

    def ready(self) -> EngineReady:
        return EngineReady(
            max_model_len=self.config.max_model_len or 512,
            block_size=16,
            num_blocks=100,
            max_num_seqs=self.faults.max_running,
            vocab_size=self.faults.vocab_size,
            weights_bytes=1,
            device="fake",
            dtype="float32",
        )

    def send(self, message: object) -> None:
        self.socket.send_multipart((self.client, encode(message)))

    def take(self, frame: bytes) -> None:
        message = decode_client.decode(frame)
        if isinstance(message, Hello):
            self.send(self.ready())
        elif isinstance(message, AbortRequests):
            for id_ in message.request_ids:
                self.requests.pop(id_, None)
                self.note(f"abort {id_}")
            if not self.requests:
                self.send(StepOutput(outputs=[], stats=self.stats()))
        elif len(self.requests) >= self.faults.max_running + self.faults.max_queued:
            self.send(
                Rejected(request_id=message.request_id, reason="queue_full", message="the queue is full")
            )
        else:
            self.requests[message.request_id] = (message, 0)
            self.note("add " + msgspec.json.encode(message).decode())
            self.send(Accepted(request_id=message.request_id))

    def note(self, line: str) -> None:
        if self.log:
            self.log.write(line + "\n")

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.faults.hang_at_step:
            time.sleep(3600)
        if self.steps == self.faults.garble_at_step:
            self.socket.send_multipart((self.client, b"\xc1 no message"))
        if self.steps == self.faults.exit_at_step:
            os._exit(7)
        if self.steps == self.faults.fail_at_step:
            self.send(EngineFailed(message="the device is on fire"))
            self.socket.close(linger=1000)
            sys.exit(1)
        outputs = []
        for id_, (request, done) in list(itertools.islice(self.requests.items(), self.faults.max_running)):
            outputs.append(self.output(request, done))
            if outputs[-1].finish_reason:
                del self.requests[id_]
            else:
                self.requests[id_] = (request, done + 1)
        self.generation_tokens += len(outputs)
        self.send(StepOutput(outputs=outputs, stats=self.stats()))

    def output(self, request: AddRequest, done: int) -> RequestOutput:
        prompt, sampling = request.prompt_token_ids, request.sampling
        token = prompt[done % len(prompt)]
        ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {END_TOKEN})
        stopped = token in ends and done >= sampling.min_tokens
        finish = "stop" if stopped else "length" if done + 1 >= sampling.max_tokens else None
        first = {}
        if done == 0:
            self.prompt_tokens += len(prompt)
            cached = len(prompt) // 16 * 16
            first = {"cached_tokens": cached, "scheduled_time": time.time(), "first_token_time": time.time()}
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[token],
            finish_reason=finish,
            stop_token_id=token if stopped else None,
            **first,
        )

    def stats(self) -> EngineStats:
        total, limit = len(self.requests), self.faults.max_running
        waiting = list(self.requests.values())[limit:]
        return EngineStats(
            time=time.time(),
            running=min(total, limit),
            waiting=len(waiting),
            queued_tokens=sum(len(request.prompt_token_ids) for request, _ in waiting),
            oldest_arrival=waiting[0][0].arrival_time if waiting else None,
            blocks_live=min(total, 90),
            blocks_cached=10,
            blocks_free=90 - min(total, 90),
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            prefix_cache_queries=0,
            prefix_cache_hits=0,
            preemptions=0,
            iteration_tokens=[min(total, limit)],
        )

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(0, zmq.POLLIN)  # the lifeline
        due = 0.0
        while True:
            wait = None if not self.requests else max(0.0, due - time.monotonic()) * 1000
            events = dict(poller.poll(wait))
            if 0 in events:
                return
            while self.socket.poll(0):
                self.client, frame = self.socket.recv_multipart()
                self.take(frame)
            if self.requests and time.monotonic() >= due:
                due = time.monotonic() + self.faults.step_seconds
                self.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int)
    listener = parser.parse_args().socket
    if not (line := sys.stdin.buffer.readline()):
        return
    config = msgspec.json.decode(line, type=EngineConfig)
    faults = msgspec.json.decode(os.environ.get("FAKE_CORE", "{}"), type=Faults)
    with socket.socket(fileno=os.dup(listener)) as duplicate:
        address = duplicate.getsockname()
    router = zmq.Context().socket(zmq.ROUTER)
    router.setsockopt(zmq.USE_FD, listener)
    router.bind(f"ipc://{address}")
    if select.select([sys.stdin], [], [], faults.load_seconds)[0]:
        return  # the server has gone, as the real core would see
    core = FakeCore(router, config, faults)
    if faults.fail_loading:
        core.client, _ = router.recv_multipart()
        core.send(EngineFailed(message=faults.fail_loading))
        router.close(linger=1000)
        sys.exit(2)
    core.run()
    os._exit(0)


if __name__ == "__main__":
    main()
