"""KV events as a subscriber that knows vLLM's schema reads them: they tell exactly what the cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import pytest
import zmq
from checked_executor import CheckedExecutor, Info
from engine_jobs import GROUPS, random_jobs
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import serving, wait_for
from sheaf_runtime.config import EngineConfig, KVEventsConfig
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.kv_events import BlockStored as Stored
from sheaf_runtime.engine.kv_events import KVEventBatch as SentBatch
from sheaf_runtime.engine.kv_events import block_hash
from sheaf_runtime.engine.kv_publisher import KVEventPublisher
from sheaf_runtime.engine.prefix import extend_digests, root_digest, split_key

NewSocket = Callable[[int, str], zmq.Socket[bytes]]

# --- vLLM's types, as its subscribers declare them ---------------------------------------------------------


class Event(msgspec.Struct, omit_defaults=True, tag=True):
    pass


class BlockStored(Event):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(Event):
    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(Event):
    pass


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


decode = msgspec.msgpack.Decoder(Batch).decode


def follow(held: set[tuple[int | None, int]], events: list[Any]) -> None:
    """Fails for what is stored twice or removed without having been there."""
    for event in events:
        if isinstance(event, BlockStored):
            assert len(event.token_ids) == event.block_size * len(event.block_hashes)
            assert len(event.extra_keys or []) == len(event.block_hashes)
            new = {(event.group_idx, hash_) for hash_ in event.block_hashes}
            assert not new & held
            held |= new
        elif isinstance(event, BlockRemoved):
            gone = {(event.group_idx, hash_) for hash_ in event.block_hashes}
            assert gone <= held
            held -= gone
        else:
            held.clear()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), depth=st.sampled_from([0, 1]))
def test_stored_and_not_removed_is_what_the_pool_can_find(seed: int, depth: int) -> None:
    r = Random(seed)
    jobs, groups, size = random_jobs(r), r.choice(GROUPS), r.choice([1, 2, 4])
    config = EngineConfig(
        model="none", block_size=size, max_num_seqs=4, max_num_batched_tokens=16, pipeline_depth=depth
    )
    info = Info(num_blocks=r.choice([90, 300]) // size * len(groups), kv_groups=groups, max_model_len=80)
    salts = {j.message.sampling.seed: hash(root_digest(cache_salt=j.message.cache_salt)) for j in jobs}
    core = EngineCore(CheckedExecutor(info, size, 4, 16, salts), config)
    log, held = core.record_kv_events(), set()
    turn = 0
    while turn <= 60 or core.busy:
        for job in jobs:
            if job.arrives == turn:
                core.add(b"c", job.message)
            if job.aborted == turn:
                core.abort(b"c", [job.message.request_id])
        if r.random() < 0.02:
            core.reset_prefix_cache()
        core.step()
        sent = msgspec.msgpack.encode(SentBatch(0.0, log.take(), 0))
        follow(held, decode(sent).events)
        found = {split_key(key) for key in core.scheduler.kv.pool._by_key}
        assert held == {(group, block_hash(digest)) for group, digest, full in found if full}
        turn += 1


@pytest.fixture
def addresses(tmp_path: Path) -> tuple[str, str]:
    return f"ipc://{tmp_path}/live", f"ipc://{tmp_path}/replay"


@pytest.fixture
def new_socket() -> Iterator[NewSocket]:
    """``new_socket(kind, address)``: connected."""
    context, made = zmq.Context(), []

    def new(kind: int, address: str) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        made.append(socket)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.RCVHWM, 1)
            socket.subscribe(b"")
        socket.connect(address)
        return socket

    yield new
    for socket in made:
        socket.close(linger=0)
    context.term()


def stored(count: int) -> list[Any]:
    return [Stored([count], None, [1, 2], 2, None, "GPU", None)]


def replayed(socket: zmq.Socket[bytes], first: int) -> list[int]:
    socket.send_multipart((b"", first.to_bytes(8, "big")))
    numbers = []
    while True:
        _, topic, number, payload = socket.recv_multipart()
        if not payload:
            assert number == b"\xff" * 8
            return numbers
        assert topic == b"kv@m"
        assert decode(payload).data_parallel_rank == 0
        numbers.append(int.from_bytes(number, "big"))


def test_batches_are_numbered_and_the_last_ones_replayed(
    addresses: tuple[str, str], new_socket: NewSocket
) -> None:
    live, replay = addresses
    config = KVEventsConfig(endpoint=live, replay_endpoint=replay, buffer_steps=5000, topic="kv@m")
    publisher = KVEventPublisher(config)
    socket = new_socket(zmq.DEALER, replay)
    assert replayed(socket, 0) == []
    for count in range(6000):
        publisher.publish(stored(count))
    publisher.publish([])  # nothing happened: no batch
    assert replayed(socket, 0) == list(range(1000, 6000)), "more than ZMQ's own limit, none left out"
    assert replayed(socket, 5998) == [5998, 5999]
    socket.send_multipart((b"", b"short"))  # no number: ignored, the next one is answered
    assert replayed(socket, 6000) == []
    publisher.close()


def test_a_subscriber_that_does_not_read_holds_up_nobody(
    addresses: tuple[str, str], new_socket: NewSocket
) -> None:
    live, _ = addresses
    publisher = KVEventPublisher(KVEventsConfig(endpoint=live, hwm=10))
    slow = new_socket(zmq.SUB, live)
    wait_for(lambda: publisher.publish(stored(0)) or slow.poll(10), "the subscription")
    events = [Stored([1], None, [7] * 20000, 20000, None, "GPU", None)]
    for _ in range(2000):  # 40 MB and more, far beyond what sockets hold
        publisher.publish(events)
    publisher.close()


def test_an_endpoint_that_is_taken_is_refused(addresses: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="--kv-events-config: tcp://\\*:nonsense"):
        KVEventPublisher(KVEventsConfig(endpoint="tcp://*:nonsense"))


def test_a_server_publishes_its_prompts_pages(
    tmp_path: Path, tiny_llama: Any, addresses: tuple[str, str], new_socket: NewSocket
) -> None:
    live, replay = addresses
    config = {"enable_kv_cache_events": True, "endpoint": live, "replay_endpoint": replay, "topic": "kv"}
    flags = ("--kv-events-config", msgspec.json.encode(config).decode(), "--block-size", "4")
    with serving(tiny_llama(), tmp_path, *flags, "--num-gpu-blocks-override", "99", real=True) as served:
        served.wait_ready()
        subscriber = new_socket(zmq.SUB, live)
        body = {"prompt": list(range(3, 13)), "max_tokens": 1, "temperature": 0}
        for salt in (None, "s"):
            salted = body if salt is None else {**body, "cache_salt": salt}
            assert httpx.post(f"{served.url}/v1/completions", json=salted, timeout=60).status_code == 200
        httpx.post(f"{served.url}/reset_prefix_cache", timeout=60)
        socket = new_socket(zmq.DEALER, replay)

        def all_events() -> list[Any]:
            socket.send_multipart((b"", bytes(8)))
            events: list[Any] = []
            while True:
                *_, payload = socket.recv_multipart()
                if not payload:
                    return events if events and isinstance(events[-1], AllBlocksCleared) else []
                events += decode(payload).events

        plain, salted_event, _ = wait_for(all_events, "the clearing")
        digests: list[bytes] = []
        extend_digests(digests, root_digest(), body["prompt"], 4, 2)
        assert plain.block_hashes == [block_hash(digest) for digest in digests]
        assert (plain.parent_block_hash, plain.token_ids) == (None, body["prompt"][:8])
        assert plain.extra_keys == [None, None]
        assert salted_event.extra_keys == [("s",), None]
        assert salted_event.block_hashes != plain.block_hashes
        topic, _, payload = subscriber.recv_multipart()
        assert topic == b"kv"
        assert decode(payload).events
