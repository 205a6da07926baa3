"""The block pool: states, order of eviction, and invariants under random use."""

from __future__ import annotations

import pytest
from sheaf_runtime.engine.blocks import NULL_BLOCK, BlockPool


def test_null_page_is_never_handed_out():
    pool = BlockPool(4)
    assert sorted(pool.allocate(3)) == [1, 2, 3]
    assert (pool.num_total, pool.num_live, pool.num_available) == (3, 3, 0)


def test_a_pool_without_usable_pages_is_refused():
    with pytest.raises(ValueError, match="at least 2 pages"):
        BlockPool(1)


def test_free_pages_go_before_cached_ones_and_oldest_cached_first():
    pool = BlockPool(6)
    old, new, plain = pool.allocate(1), pool.allocate(1), pool.allocate(1)
    pool.publish(old[0], b"old")
    pool.publish(new[0], b"new")
    for ids in (old, new, plain):
        pool.free(ids)
    assert (pool.num_cached, pool.num_free) == (2, 3)
    assert set(pool.allocate(3)).isdisjoint(old + new)
    assert pool.allocate(1) == old
    assert pool.lookup(b"old") is None
    assert pool.lookup(b"new") == new[0]


def test_the_end_of_a_chain_is_evicted_before_its_beginning():
    pool = BlockPool(4)
    table = pool.allocate(3)
    for i, page in enumerate(table):
        pool.publish(page, b"%d" % i)
    pool.free(table)
    assert [pool.allocate(1)[0] for _ in range(3)] == table[::-1]


def test_touch_revives_a_cached_page_and_makes_it_young():
    pool = BlockPool(3)
    a, b = pool.allocate(2)
    pool.publish(a, b"a")
    pool.publish(b, b"b")
    pool.free([a])
    pool.free([b])
    pool.touch([a])
    assert (pool.num_live, pool.num_cached) == (1, 1)
    pool.free([a])
    assert pool.allocate(1) == [b]


def test_double_free_and_touching_a_free_page_are_caught():
    pool = BlockPool(3)
    ids = pool.allocate(1)
    pool.free(ids)
    with pytest.raises(AssertionError, match="double free"):
        pool.free(ids)
    with pytest.raises(AssertionError, match="means nothing"):
        pool.touch(ids)


def test_the_first_page_under_a_key_keeps_it():
    pool = BlockPool(4)
    a, b = pool.allocate(2)
    pool.publish(a, b"k")
    pool.publish(b, b"k")
    assert pool.lookup(b"k") == a
    pool.free([b])
    assert pool.num_cached == 0
    pool.check_integrity()


def test_null_pages_in_a_table_are_skipped_on_free():
    pool = BlockPool(4)
    table = [NULL_BLOCK, *pool.allocate(2)]
    pool.free(table)
    assert pool.num_live == 0
    pool.check_integrity()


@pytest.mark.parametrize("damage", ["leak", "double_link", "stale_key"])
def test_check_integrity_sees_damage(damage):
    pool = BlockPool(5)
    page = pool.allocate(1)[0]
    block = pool._blocks[page]
    if damage == "leak":
        block.ref_count = 0
    elif damage == "double_link":
        pool._link_before(pool._ring, block)
    else:
        block.key = b"nobody knows"
    with pytest.raises(AssertionError):
        pool.check_integrity()


def test_what_is_forgotten_is_not_found_and_comes_back_when_it_is_freed():
    pool = BlockPool(5)
    kept, freed = pool.allocate(2)
    pool.publish(kept, b"kept")
    pool.publish(freed, b"freed")
    pool.free([freed])
    pool.forget()
    pool.check_integrity()
    assert pool.lookup(b"kept") is None
    assert pool.lookup(b"freed") is None
    assert (pool.num_live, pool.num_cached, pool.num_free) == (1, 0, 3)
    pool.free([kept])
    pool.check_integrity()
    assert pool.num_free == 4
