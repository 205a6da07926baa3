"""Block tables of all KV groups over one pool of pages: prefix hits, growth, windows, publishing.

A *full* group keeps every page of a request. A *window* group needs the pages of the last ``window`` tokens
only, a *chunk* group those of the chunk it is in: the others are given back and the null page takes their
place in the table, so that the page of position ``p`` is ``table[p // block_size]`` in every group.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from sheaf_runtime.engine.blocks import NULL_BLOCK, BlockPool
from sheaf_runtime.engine.branches import Branches
from sheaf_runtime.engine.kv_events import AdapterLabel, KVEventLog
from sheaf_runtime.engine.prefix import extend_digests, page_key, part_digest, part_key, split_key
from sheaf_runtime.worker.plan import KVGroup


@dataclass(slots=True)
class BlockTables:
    """One request's pages, a table per KV group.

    ``first_live[g]`` is the index of the first page of group g that is still held. ``digests`` are those of
    the request's first full pages; ``num_published`` of them can be found by others.

    Of a hit, ``num_copied`` tokens more are in ``sources``, a page of each group: the request begins behind
    them with a copy.
    """

    tables: list[list[int]]
    first_live: list[int]
    digests: list[bytes]
    num_published: int = 0
    num_copied: int = 0
    sources: list[int] = field(default_factory=list)

    @property
    def num_held(self) -> int:
        return sum(map(len, self.tables)) - sum(self.first_live)


class KVCache:
    """``max_in_flight_tokens`` bounds how many tokens of one request can be launched and not yet committed:
    a window group must hold pages for them beside its window. ``copy_pages``: a hit may end within a page,
    which is copied then; else it ends with a whole one."""

    def __init__(
        self,
        groups: Sequence[KVGroup],
        *,
        num_blocks: int,
        block_size: int,
        prefix_caching: bool,
        max_in_flight_tokens: int,
        copy_pages: bool = False,
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self.pool.on_evict = self._evicted
        self._branches = Branches() if copy_pages and prefix_caching else None
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._groups = tuple(groups)
        self._is_full = [group.kind == "full" for group in groups]
        self._max_in_flight_tokens = max_in_flight_tokens
        self._log: KVEventLog | None = None

    def record(self) -> KVEventLog:
        """From now on what becomes of pages is written down."""
        self._log = KVEventLog(self._groups, self.block_size)
        return self._log

    def forget(self) -> None:
        """No page is found any more, whoever holds it."""
        self.pool.forget()
        if self._branches is not None:
            self._branches.clear()
        if self._log is not None:
            self._log.cleared()

    def num_pages(self, num_tokens: int) -> int:
        """Most pages that a request of ``num_tokens`` tokens holds at once, over all groups."""
        options = {"block_size": self.block_size, "in_flight_tokens": self._max_in_flight_tokens}
        return sum(group.most_pages(num_tokens, **options) for group in self._groups)

    def max_tokens(self) -> int:
        """Longest request that the empty pool can hold."""
        total = self.pool.num_total
        if not any(self._is_full) and self.num_pages(sys.maxsize) <= total:
            return sys.maxsize
        pages = bisect_right(range(total + 1), total, key=lambda n: self.num_pages(n * self.block_size)) - 1
        return pages * self.block_size

    # --- prefix hits ----------------------------------------------------------------------------------

    def find_hit(self, token_ids: list[int], root: bytes, digests: list[bytes]) -> BlockTables:
        """The longest cached prefix of ``token_ids``; takes no reference.

        It exists in the full groups from the start, and in a window group as far back as the next token
        sees. It never covers the last token, which must be computed to get something to sample from.
        ``digests`` belongs to the request and is extended in place.
        """
        n = 0
        if self.prefix_caching:
            limit = (len(token_ids) - 1) // self.block_size
            extend_digests(digests, root, token_ids, self.block_size, limit)
            n = self._hit_length(digests, limit)
        tables, first_live = [], []
        for group in range(len(self._groups)):
            first = self._first_needed(group, n * self.block_size)
            table = [NULL_BLOCK] * first
            for digest in digests[first:n]:
                page = self.pool.lookup(page_key(group, digest))
                assert page is not None
                table.append(page)
            tables.append(table)
            first_live.append(first)
        num_copied, sources = self._part_of_a_page(token_ids, digests[n - 1] if n else root, n)
        return BlockTables(tables, first_live, digests, n, num_copied, sources)

    def hit_tokens(self, hit: BlockTables) -> int:
        return hit.num_published * self.block_size + hit.num_copied

    def _part_of_a_page(self, token_ids: list[int], before: bytes, n: int) -> tuple[int, list[int]]:
        """How many tokens behind the first ``n`` pages, the last of which is ``before``, a page of every
        group has, and those pages."""
        rest = token_ids[n * self.block_size : (n + 1) * self.block_size]
        if n * self.block_size + len(rest) == len(token_ids):
            rest.pop()
        if self._branches is None or not rest or (found := self._branches.closest(before, rest)) is None:
            return 0, []
        shared, digest = found
        sources = []
        for group in range(len(self._groups)):
            page = self.pool.lookup(page_key(group, digest))
            if page is None:
                page = self.pool.lookup(part_key(group, digest))
            if page is None:
                return 0, []
            sources.append(page)
        return shared, sources

    def _hit_length(self, digests: list[bytes], limit: int) -> int:
        lookup = self.pool.lookup
        n = limit
        for group, is_full in enumerate(self._is_full):
            if is_full:
                n = next((i for i in range(n) if lookup(page_key(group, digests[i])) is None), n)
        while True:
            before = n
            for group, is_full in enumerate(self._is_full):
                if not is_full:
                    n = self._window_hit(group, digests, n)
            if n == before:
                return n

    def _window_hit(self, group: int, digests: list[bytes], n: int) -> int:
        """Most pages, at most ``n``, after which the group's last window is there without a gap."""
        i = n
        while i > self._first_needed(group, n * self.block_size):
            i -= 1
            if self.pool.lookup(page_key(group, digests[i])) is None:
                n = i
        return n

    def _first_needed(self, group: int, position: int) -> int:
        """Index of the first page that the token at ``position`` (and later ones) attends to."""
        return self._groups[group].first_seen(position) // self.block_size

    def pages_to_admit(self, hit: BlockTables, num_tokens: int) -> int:
        """Pages that leave the available ones if the hit is taken and grown to ``num_tokens`` tokens."""
        unreferenced = sum(
            self.pool.ref_count(page) == 0
            for table, first in zip(hit.tables, hit.first_live, strict=True)
            for page in table[first:]
        )
        return unreferenced + max(0, self.num_pages(num_tokens) - hit.num_held)

    def take(self, hit: BlockTables) -> None:
        for table, first in zip(hit.tables, hit.first_live, strict=True):
            self.pool.touch(table[first:])
        for page in hit.sources:  # no reference: what evicts it overwrites it only once it was copied
            self.pool.use(page)

    def copies(self, hit: BlockTables) -> list[tuple[int, int]]:
        """(from, to) pages that have to be copied before the step that begins behind ``hit``, which has grown
        already."""
        return [
            (page, table[hit.num_published]) for page, table in zip(hit.sources, hit.tables, strict=False)
        ]

    # --- growth and release ---------------------------------------------------------------------------

    def grow(self, held: BlockTables, num_tokens: int) -> list[list[int]] | None:
        """New pages per group so that positions below ``num_tokens`` have a slot; None if too few left."""
        pages = -(-num_tokens // self.block_size)
        missing = [pages - len(table) for table in held.tables]
        if sum(missing) > self.pool.num_available:
            return None
        new = [self.pool.allocate(max(0, count)) for count in missing]
        for table, ids in zip(held.tables, new, strict=True):
            table += ids
        return new

    def has_spare(self, requests: int, num_tokens: int) -> bool:
        """Whether so many requests could each grow by so many tokens, and by one page more."""
        pages = requests * (1 + -(-num_tokens // self.block_size)) * len(self._groups)
        return pages <= self.pool.num_available

    def publish(
        self,
        held: BlockTables,
        token_ids: list[int],
        root: bytes,
        num_computed: int,
        extras: tuple[str, ...] = (),
        adapter: AdapterLabel = (None, None),
    ) -> None:
        """Let the pages filled by the first ``num_computed`` tokens, all committed, be found. ``extras`` are
        what ``root`` was made of."""
        full = num_computed // self.block_size
        if not self.prefix_caching or full <= held.num_published:
            return
        extend_digests(held.digests, root, token_ids, self.block_size, full)
        for group, table in enumerate(held.tables):
            new = [
                i
                for i in range(held.num_published, full)  # none of them is trimmed yet
                if self.pool.publish(table[i], page_key(group, held.digests[i]))
            ]
            if self._log is not None:
                self._log.stored(group, new, held.digests, token_ids, extras, adapter)
            if self._branches is not None and group == 0:
                for i in new:
                    tokens = token_ids[i * self.block_size : (i + 1) * self.block_size]
                    self._branches.add(held.digests[i - 1] if i else root, tokens, held.digests[i])
        held.num_published = full

    def publish_rest(self, held: BlockTables, token_ids: list[int], root: bytes, num_computed: int) -> None:
        """As ``publish`` with the last page, which is not full, of a request that writes no more into it
        before position ``num_computed``. Others may begin with a copy of it."""
        full, rest = divmod(num_computed, self.block_size)
        if self._branches is None or rest == 0 or held.num_published != full:
            return
        before = held.digests[full - 1] if full else root
        tokens = token_ids[full * self.block_size : num_computed]
        digest = part_digest(before, tokens)
        for group, table in enumerate(held.tables):
            if self.pool.publish(table[full], part_key(group, digest)) and group == 0:
                self._branches.add(before, tokens, digest)

    def _evicted(self, key: bytes) -> None:
        if self._log is not None:
            self._log.removed(key)
        if self._branches is not None:
            group, digest, _ = split_key(key)
            if group == 0:
                self._branches.discard(digest)

    def trim(self, held: BlockTables, num_computed: int) -> None:
        """Give back the pages that no token from position ``num_computed`` on attends to."""
        for group, is_full in enumerate(self._is_full):
            if is_full:
                continue
            table, first = held.tables[group], held.first_live[group]
            needed = min(self._first_needed(group, num_computed), len(table))
            if needed > first:
                self.pool.free(table[first:needed])
                table[first:needed] = [NULL_BLOCK] * (needed - first)
                held.first_live[group] = needed

    def release(self, held: BlockTables) -> None:
        for table in held.tables:
            self.pool.free(table)
