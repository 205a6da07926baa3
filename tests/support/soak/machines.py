"""The state machines in all processes of the machine, in chunks with a seed each."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from state_machines import MACHINES, run_steps

CHUNK = 10_000  # steps of one seed


def run_chunk(name: str, steps: int, seed: int) -> tuple[str, int]:
    """Raises RuntimeError that names the chunk, from whatever the machine raised."""
    try:
        return name, run_steps(MACHINES[name], steps, seed)
    except BaseException as error:
        told = f"python -m soak --machine {name!r} --steps {steps} --seed {seed} repeats it: {error!r}"
        raise RuntimeError(told) from error


def run_machines(steps: int, seed: int, only: str | None = None) -> dict[str, Any]:
    """Steps by machine and seconds. All machines get an equal share of ``steps``, rounded up. A page that
    leaks or a request that is stuck raises."""
    names = [only] if only else list(MACHINES)
    share = -(-steps // len(names))
    sizes = [min(CHUNK, share - start) for start in range(0, share, CHUNK)]
    chunks = [(name, size, seed + i) for i, size in enumerate(sizes) for name in names]
    done = dict.fromkeys(names, 0)
    begin = time.monotonic()
    with ProcessPoolExecutor(min(len(chunks), len(os.sched_getaffinity(0)))) as pool:
        for name, count in pool.map(run_chunk, *zip(*chunks, strict=True)):
            done[name] += count
    return {
        "seed": seed,
        "steps": sum(done.values()),
        "by_machine": done,
        "seconds": round(time.monotonic() - begin, 1),
    }
