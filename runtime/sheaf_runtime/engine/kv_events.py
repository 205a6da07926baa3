"""What became of the prefix cache's pages, in vLLM's words: routers follow them to know what a replica holds.

A page is named by the last eight bytes of its digest. Our pool keeps one page under a key, so a page that is
removed is gone: the pages stored and not removed since the last clearing are those that can be hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec

from sheaf_runtime.engine.prefix import split_key
from sheaf_runtime.worker.plan import KVGroup

MEDIUM = "GPU"  # the cache that attention reads, wherever it is
AdapterLabel = tuple[int | None, str | None]  # id and name
# What vLLM calls the kinds of groups.
SPEC_KINDS = {
    "full": "full_attention",
    "window": "sliding_window",
    "chunk": "chunked_local_attention",
}


class KVEvent(msgspec.Struct, omit_defaults=True, tag=True, frozen=True):
    """A map on the wire, with the name of its class as ``type``."""


class BlockStored(KVEvent, frozen=True):
    """Consecutive pages of one group. ``extra_keys`` has what, beside tokens, the first page of a chain was
    hashed with."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(KVEvent, frozen=True):
    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(KVEvent, frozen=True):
    pass


class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class KVEventLog:
    """Events since they were last taken, in order."""

    def __init__(self, groups: Sequence[KVGroup], block_size: int) -> None:
        self._groups = groups
        self._block_size = block_size
        self._events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []

    def take(self) -> list[BlockStored | BlockRemoved | AllBlocksCleared]:
        taken, self._events = self._events, []
        return taken

    def stored(
        self,
        group: int,
        pages: Sequence[int],
        digests: Sequence[bytes],
        token_ids: Sequence[int],
        extras: tuple[str, ...],
        adapter: AdapterLabel,
    ) -> None:
        """``pages`` are places in the request's table that can be found from now on; ``digests`` and
        ``token_ids`` are the whole request's."""
        size, kept = self._block_size, self._groups[group]
        for _, run in groupby(enumerate(pages), lambda item: item[1] - item[0]):
            places = [place for _, place in run]
            first, last = places[0], places[-1]
            self._events.append(
                BlockStored(
                    block_hashes=[block_hash(digests[place]) for place in places],
                    parent_block_hash=block_hash(digests[first - 1]) if first else None,
                    token_ids=list(token_ids[first * size : (last + 1) * size]),
                    block_size=size,
                    lora_id=adapter[0],
                    medium=MEDIUM,
                    lora_name=adapter[1],
                    extra_keys=[extras if extras and place == 0 else None for place in places],
                    group_idx=group,
                    kv_cache_spec_kind=SPEC_KINDS[kept.kind],
                    kv_cache_spec_sliding_window=kept.window,
                )
            )

    def removed(self, key: bytes) -> None:
        group, digest, full = split_key(key)
        if full:  # others were never told of
            self._events.append(BlockRemoved([block_hash(digest)], MEDIUM, group))

    def cleared(self) -> None:
        self._events.append(AllBlocksCleared())


def block_hash(digest: bytes) -> int:
    return int.from_bytes(digest[-8:], "big")
