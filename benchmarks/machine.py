"""What a result file says of the machine and the code, and the CPU time of a process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


EXTENSIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}


def processor() -> str:
    """The CPU's name as the kernel tells it, and the widest instructions of it that matter here: a cloud's
    machines of one name differ by a factor of two in them."""
    told = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    flags = told.get("flags", "").split()
    widest = next((f" ({name})" for flag, name in EXTENSIONS.items() if flag in flags), "")
    return told.get("model name", platform.machine()) + widest


def commit() -> str:
    """The checkout's commit, marked if there are uncommitted changes; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def report(result: dict[str, Any], output: Path | None, indent: int = 1) -> None:
    """Print a result as JSON, and keep it in a file."""
    text = json.dumps(result, indent=indent)
    print(text)
    if output is not None:
        output.write_text(text + "\n")
