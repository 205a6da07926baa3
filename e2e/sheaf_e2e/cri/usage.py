"""What a container's processes use, read from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Sums over a process and all its descendants."""

    cpu_ns: int = 0
    resident_bytes: int = 0  # everything resident, files' pages included
    anonymous_bytes: int = 0  # what only this tree can give back: private memory and shared memory
    processes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.cpu_ns + other.cpu_ns,
            self.resident_bytes + other.resident_bytes,
            self.anonymous_bytes + other.anonymous_bytes,
            self.processes + other.processes,
        )


def measure(pid: int) -> Usage:
    """The usage of the tree below `pid`; processes that end meanwhile are left out."""
    total, pending = Usage(), [pid]
    while pending:
        current = pending.pop()
        try:
            total += _measure_one(current)
            for task in os.listdir(f"/proc/{current}/task"):
                pending += map(int, Path(f"/proc/{current}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def _measure_one(pid: int) -> Usage:
    # The command's name may hold spaces and parentheses; the fields after it are fixed.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # its own and its reaped children's, user and system
    memory = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("Rss")
    )
    kib = {name: int(value.split()[0]) for name, value in memory.items()}
    anonymous = kib.get("RssAnon", 0) + kib.get("RssShmem", 0)
    return Usage(
        cpu_ns=ticks * _NANOSECONDS_PER_TICK,
        resident_bytes=(anonymous + kib.get("RssFile", 0)) * 1024,
        anonymous_bytes=anonymous * 1024,
        processes=1,
    )
