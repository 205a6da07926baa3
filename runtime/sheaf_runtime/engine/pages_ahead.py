"""What pages requests will need soon: all that they have so far, and one page of output. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sheaf_runtime.engine.kv_cache import BlockTables, KVCache
from sheaf_runtime.engine.request import Request


def find_hit(kv: KVCache, request: Request) -> BlockTables:
    """The cached prefix that it may begin behind; takes no reference."""
    tokens = request.token_ids[:1] if request.must_compute_all else request.token_ids
    return kv.find_hit(tokens, request.root, request.digests)


def pages_soon(kv: KVCache, request: Request) -> int:
    """That it will hold a page's worth of output from now."""
    return kv.num_pages(_tokens_soon(kv, request))


def pages_to_begin(kv: KVCache, request: Request, hit: BlockTables) -> int:
    """Of those the ones that leave the available ones when it begins behind ``hit``."""
    return kv.pages_to_admit(hit, _tokens_soon(kv, request))


def promised(kv: KVCache, running: Iterable[Request]) -> int:
    """That running requests will take soon, beyond those that they hold."""
    return sum(max(0, pages_soon(kv, r) - r.tables.num_held) for r in running)


def _tokens_soon(kv: KVCache, request: Request) -> int:
    return min(request.final_length, len(request.token_ids) + kv.block_size)
