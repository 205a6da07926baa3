from __future__ import annotations

import pytest
from sheaf_runtime.worker.memory import (
    CPU_CAP,
    KVCacheError,
    RequestSize,
    available_memory,
    cpu_pool_memory,
    describe_pool,
    pages_that_fit,
)
from sheaf_runtime.worker.plan import KVGroup

FULL = (KVGroup(kind="full", layers=(0,), page_bytes=100),)
WINDOWED = (*FULL, KVGroup(kind="window", layers=(1,), page_bytes=100, window=33))


def size(max_len: int) -> RequestSize:
    return RequestSize(max_len=max_len, block_size=16, in_flight_tokens=32)


def test_pages_count_the_null_page() -> None:
    assert pages_that_fit(1000, FULL, size(144), flag="--kv-cache-memory") == 10


def test_one_full_sequence_must_fit() -> None:
    with pytest.raises(KVCacheError) as caught:
        pages_that_fit(1000, FULL, size(145), flag="--kv-cache-memory")
    assert "--max-model-len to 144" in str(caught.value)
    assert "--kv-cache-memory to 1100" in str(caught.value)
    pages_that_fit(1100, FULL, size(145), flag="--kv-cache-memory")


@pytest.mark.parametrize("memory", [-5, 0, 99, 199])
def test_nothing_fits(memory: int) -> None:
    with pytest.raises(KVCacheError, match="use a smaller model, or raise --gpu-memory-utilization"):
        pages_that_fit(memory, FULL, size(1), flag="--gpu-memory-utilization")


def test_the_default_pool_is_a_share_with_a_cap() -> None:
    assert cpu_pool_memory(10**9, None) == 4 * 10**8
    assert cpu_pool_memory(10**12, None) == CPU_CAP
    assert cpu_pool_memory(10**9, 5 * 10**9) == 5 * 10**9


def test_available_memory_is_plausible() -> None:
    assert 10**7 < available_memory() < 10**14


def test_a_windowed_group_needs_the_pages_of_its_window_only() -> None:
    # 10 pages in full; 64 tokens of window and in flight, wherever they begin within a page
    assert pages_that_fit(1600, WINDOWED, size(160), flag="--kv-cache-memory") == 16
    with pytest.raises(KVCacheError, match=r"--max-model-len to 144.*--kv-cache-memory to 1600"):
        pages_that_fit(1500, WINDOWED, size(160), flag="--kv-cache-memory")


def test_the_log_line_says_what_the_pool_means() -> None:
    line = describe_pool((KVGroup(kind="full", layers=(0,), page_bytes=1 << 20),), 101, size(640))
    assert "101.0 MiB: 100 blocks of 16 tokens, 2.5 sequences at the full length of 640" in line
