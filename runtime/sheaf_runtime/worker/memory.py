"""How many KV pages there are, and what to change when they are too few. Pure, with one exception."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from sheaf_runtime.worker.plan import KVGroup

GIB = 1 << 30
# The CPU pool's default: this share of what is free after loading, and no more than the cap.
CPU_FRACTION = 0.4
CPU_CAP = 4 * GIB


class KVCacheError(ValueError):
    """The KV cache does not fit; the message says what to change."""


@dataclass(frozen=True)
class RequestSize:
    """The longest request: ``max_len`` tokens, of which ``in_flight_tokens`` may be launched and not
    committed."""

    max_len: int
    block_size: int
    in_flight_tokens: int

    def most_pages(self, groups: tuple[KVGroup, ...], num_tokens: int | None = None) -> int:
        """Pages that it holds at most at one time, over all groups."""
        tokens = self.max_len if num_tokens is None else num_tokens
        options = {"block_size": self.block_size, "in_flight_tokens": self.in_flight_tokens}
        return sum(group.most_pages(tokens, **options) for group in groups)


def pages_that_fit(memory: int, groups: tuple[KVGroup, ...], size: RequestSize, *, flag: str) -> int:
    """Pages of a pool of ``memory`` bytes, null page included, for sequences of full length.

    ``flag`` names the option that would make the pool larger. Raises ``KVCacheError`` if not even one
    sequence of full length fits.
    """
    page_bytes = groups[0].page_bytes
    pages = memory // page_bytes
    needed = size.most_pages(groups) + 1
    if pages < needed:
        lengths = range(size.block_size, size.max_len, size.block_size)
        fitting = bisect_right(lengths, pages - 1, key=lambda tokens: size.most_pages(groups, tokens))
        lower = f"lower --max-model-len to {lengths[fitting - 1]}" if fitting > 0 else "use a smaller model"
        raise KVCacheError(
            f"one sequence of {size.max_len} tokens needs {gib(needed * page_bytes)} of KV cache, but there "
            f"is room for {gib(max(0, memory))}: {lower}, or raise {flag}"
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


def describe_pool(groups: tuple[KVGroup, ...], num_pages: int, size: RequestSize) -> str:
    sequences = (num_pages - 1) / size.most_pages(groups)
    return (
        f"KV cache {gib(num_pages * groups[0].page_bytes)}: {num_pages - 1} blocks of {size.block_size} "
        f"tokens, {sequences:.1f} sequences at the full length of {size.max_len}"
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
