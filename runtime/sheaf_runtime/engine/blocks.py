"""The pool of KV pages: reference counts, a free list in least-recently-used order, content addresses.

Every page is in exactly one of three states:

* live    ref_count > 0, not on the free list;
* cached  ref_count = 0, on the free list, and its content can still be found by its key;
* free    ref_count = 0, on the free list, no key.

Page 0 is the null page: it stands in block tables for pages that are not needed, and is never handed out.

The free list is intrusive and doubly linked, so that taking a page out of its middle (a prefix hit) and
evicting the oldest one are both O(1). Free pages enter at the front and cached pages at the back, so
nothing that could still be hit is evicted while a worthless page is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

NULL_BLOCK = 0


class Block:
    """One page. ``prev``/``next`` are set exactly while it is on the free list."""

    __slots__ = ("block_id", "key", "next", "prev", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.key: bytes | None = None
        self.prev: Block | None = None
        self.next: Block | None = None


class BlockPool:
    """``num_blocks`` pages with the null page, ids 0..num_blocks-1; all objects are made once, here.
    ``on_evict``, where it is set, is told the key of each page that makes room for another."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a block pool needs at least 2 pages (one is the null page), got {num_blocks}")
        self._blocks = [Block(i) for i in range(num_blocks)]
        self._by_key: dict[bytes, Block] = {}
        self._num_available = 0  # length of the free list
        self._num_cached = 0  # those on it that have a key
        self.on_evict: Callable[[bytes], None] | None = None
        # A sentinel closes the list into a ring, which spares every link operation its special cases.
        self._ring = Block(-1)
        self._ring.prev = self._ring.next = self._ring
        for block in self._blocks[1:]:
            self._link_before(self._ring, block)

    # --- counts, all without the null page ------------------------------------------------------------

    @property
    def num_total(self) -> int:
        return len(self._blocks) - 1

    @property
    def num_available(self) -> int:
        """Pages that ``allocate`` can hand out: free and cached ones."""
        return self._num_available

    @property
    def num_cached(self) -> int:
        return self._num_cached

    @property
    def num_free(self) -> int:
        return self._num_available - self._num_cached

    @property
    def num_live(self) -> int:
        return self.num_total - self._num_available

    def ref_count(self, block_id: int) -> int:
        return self._blocks[block_id].ref_count

    # --- taking and giving back -----------------------------------------------------------------------

    def allocate(self, count: int) -> list[int]:
        """``count`` pages with one reference each, evicting the longest unused cached pages if need be.

        The caller checks ``num_available`` first.
        """
        assert 0 <= count <= self._num_available, (count, self._num_available)
        taken = []
        for _ in range(count):
            block = self._ring.next
            assert block is not None
            self._unlink(block)
            if block.key is not None:
                del self._by_key[block.key]
                if self.on_evict is not None:
                    self.on_evict(block.key)
                block.key = None
            block.ref_count = 1
            taken.append(block.block_id)
        return taken

    def touch(self, block_ids: Iterable[int]) -> None:
        """One more reference to pages that are live or cached."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            assert block_id != NULL_BLOCK
            if block.ref_count == 0:
                assert block.key is not None, f"page {block_id} is free: its content means nothing"
                self._unlink(block)
            block.ref_count += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Give one reference back for each page of a block table (null pages are skipped).

        In reverse order: a page is worthless once an earlier page of its chain is gone, so the later ones
        must be evicted first.
        """
        for block_id in reversed(block_ids):
            if block_id == NULL_BLOCK:
                continue
            block = self._blocks[block_id]
            assert block.ref_count > 0, f"double free of page {block_id}"
            block.ref_count -= 1
            if block.ref_count == 0:
                if block.key is None:
                    first = self._ring.next
                    assert first is not None
                    self._link_before(first, block)
                else:
                    self._link_before(self._ring, block)

    def use(self, block_id: int) -> None:
        """It was of use: pages that wait to be evicted go behind those which were not."""
        block = self._blocks[block_id]
        if block.ref_count == 0:
            self._unlink(block)
            self._link_before(self._ring, block)

    # --- content addresses ----------------------------------------------------------------------------

    def publish(self, block_id: int, key: bytes) -> bool:
        """Let a live, fully computed page be found under ``key``; the first page under a key keeps it.
        Returns whether this one was the first."""
        block = self._blocks[block_id]
        assert block.ref_count > 0
        if block.key is not None or key in self._by_key:
            return False
        block.key = key
        self._by_key[key] = block
        return True

    def forget(self) -> None:
        """No page is found any more, whoever holds it."""
        for block in self._by_key.values():
            block.key = None
        self._by_key.clear()
        self._num_cached = 0

    def lookup(self, key: bytes) -> int | None:
        block = self._by_key.get(key)
        return None if block is None else block.block_id

    def is_published(self, block_id: int) -> bool:
        return self._blocks[block_id].key is not None

    # --- invariants -----------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` if any page is in no state or in two. O(pages)."""
        on_list = set()
        cached = 0
        block = self._ring.next
        while block is not self._ring:
            assert block is not None, "broken link in the free list"
            assert block.next is not None, "broken link in the free list"
            assert block.next.prev is block, "broken link in the free list"
            assert block.block_id not in on_list, f"page {block.block_id} is twice on the free list"
            assert block.ref_count == 0, f"page {block.block_id} is free and referenced"
            on_list.add(block.block_id)
            cached += block.key is not None
            block = block.next
        assert NULL_BLOCK not in on_list, "the null page is on the free list"
        assert len(on_list) == self._num_available, (len(on_list), self._num_available)
        assert cached == self._num_cached, (cached, self._num_cached)
        null = self._blocks[NULL_BLOCK]
        assert null.ref_count == 0, "the null page is referenced"
        assert null.key is None, "the null page has a key"
        for block in self._blocks[1:]:
            assert (block.ref_count > 0) != (block.block_id in on_list), f"page {block.block_id} leaked"
            assert block.key is None or self._by_key.get(block.key) is block, f"stale key {block.block_id}"
        assert sum(b.key is not None for b in self._blocks) == len(self._by_key), "a key without a page"

    # --- links ----------------------------------------------------------------------------------------

    def _link_before(self, after: Block, block: Block) -> None:
        before = after.prev
        assert before is not None
        block.prev, block.next = before, after
        before.next = after.prev = block
        self._num_available += 1
        self._num_cached += block.key is not None

    def _unlink(self, block: Block) -> None:
        before, after = block.prev, block.next
        assert before is not None
        assert after is not None
        before.next, after.prev = after, before
        block.prev = block.next = None
        self._num_available -= 1
        self._num_cached -= block.key is not None
