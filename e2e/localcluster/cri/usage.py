"""What a container's processes use, read from /proc."""

import os
import re
from dataclasses import dataclass

_NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_RESIDENT = re.compile(rb"^Rss(Anon|Shmem|File):\s+(\d+) kB$", re.MULTILINE)


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
                pending += map(int, _read(f"/proc/{current}/task/{task}/children").split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def _measure_one(pid: int) -> Usage:
    # The command's name may hold spaces and parentheses; the fields after it are fixed.
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # its own and its reaped children's, user and system
    kib = {name: int(value) for name, value in _RESIDENT.findall(_read(f"/proc/{pid}/status"))}
    anonymous = kib.get(b"Anon", 0) + kib.get(b"Shmem", 0)
    return Usage(
        cpu_ns=ticks * _NANOSECONDS_PER_TICK,
        resident_bytes=(anonymous + kib.get(b"File", 0)) * 1024,
        anonymous_bytes=anonymous * 1024,
        processes=1,
    )


def _read(path: str) -> bytes:
    """A small file of /proc. Called some hundred times a second, so with the plain calls."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64 * 1024)
    finally:
        os.close(fd)
