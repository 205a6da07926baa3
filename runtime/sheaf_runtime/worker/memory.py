"""How many KV pages there are, and what to change when they are too few. Pure, with one exception."""

from __future__ import annotations

from pathlib import Path

GIB = 1 << 30
# The CPU pool's default: this share of what is free after loading, and no more than the cap.
CPU_FRACTION = 0.4
CPU_CAP = 4 * GIB


class KVCacheError(ValueError):
    """The KV cache does not fit; the message says what to change."""


def pages_that_fit(memory: int, page_bytes: int, *, max_len: int, block_size: int, flag: str) -> int:
    """Pages of a pool of ``memory`` bytes, null page included, for sequences of up to ``max_len`` tokens.

    ``flag`` names the option that would make the pool larger. Raises ``KVCacheError`` if not even one
    sequence of full length fits.
    """
    pages = memory // page_bytes
    needed = -(-max_len // block_size) + 1
    if pages < needed:
        fitting = (pages - 1) * block_size
        lower = f"lower --max-model-len to {fitting}" if fitting > 0 else "use a smaller model"
        raise KVCacheError(
            f"one sequence of {max_len} tokens needs {gib(needed * page_bytes)} of KV cache, but there is "
            f"room for {gib(max(0, memory))}: {lower}, or raise {flag}"
            + (f" to {needed * page_bytes}" if flag == "--kv-cache-memory" else "")
        )
    return pages


def cpu_pool_memory(available: int, requested: int | None) -> int:
    """Bytes for the pool on CPU: what was asked for, else a share of what is available."""
    if requested is not None:
        if requested <= 0:
            raise KVCacheError(f"--kv-cache-memory must be a positive number of bytes, got {requested}")
        return requested
    return min(CPU_CAP, int(available * CPU_FRACTION))


def describe_pool(num_pages: int, page_bytes: int, *, max_len: int, block_size: int) -> str:
    tokens = (num_pages - 1) * block_size
    return (
        f"KV cache {gib(num_pages * page_bytes)}: {num_pages - 1} blocks of {block_size}: {tokens} tokens, "
        f"{tokens / max_len:.1f} sequences at the full length of {max_len}"
    )


def gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB // 10 else f"{count / (1 << 20):.1f} MiB"


def available_memory() -> int:
    """Bytes this process can still take: the machine's, or its cgroup's where that is less."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # no cgroup of this version, or "max"
            continue
    return max(0, available)
