from __future__ import annotations

import pytest
from sheaf_runtime.worker.memory import (
    CPU_CAP,
    KVCacheError,
    available_memory,
    cpu_pool_memory,
    describe_pool,
    pages_that_fit,
)


def test_pages_count_the_null_page() -> None:
    assert pages_that_fit(1000, 100, max_len=144, block_size=16, flag="--kv-cache-memory") == 10


def test_one_full_sequence_must_fit() -> None:
    with pytest.raises(KVCacheError) as caught:
        pages_that_fit(1000, 100, max_len=145, block_size=16, flag="--kv-cache-memory")
    assert "--max-model-len to 144" in str(caught.value)
    assert "--kv-cache-memory to 1100" in str(caught.value)
    pages_that_fit(1100, 100, max_len=145, block_size=16, flag="--kv-cache-memory")


@pytest.mark.parametrize("memory", [-5, 0, 99, 199])
def test_nothing_fits(memory: int) -> None:
    with pytest.raises(KVCacheError, match="use a smaller model, or raise --gpu-memory-utilization"):
        pages_that_fit(memory, 100, max_len=1, block_size=16, flag="--gpu-memory-utilization")


def test_the_default_pool_is_a_share_with_a_cap() -> None:
    assert cpu_pool_memory(10**9, None) == 4 * 10**8
    assert cpu_pool_memory(10**12, None) == CPU_CAP
    assert cpu_pool_memory(10**9, 5 * 10**9) == 5 * 10**9


def test_available_memory_is_plausible() -> None:
    assert 10**7 < available_memory() < 10**14


def test_the_log_line_says_what_the_pool_means() -> None:
    line = describe_pool(101, 1 << 20, max_len=640, block_size=16)
    assert "101.0 MiB: 100 blocks of 16: 1600 tokens, 2.5 sequences at the full length of 640" in line
