"""Who makes way for a request of a better priority that waits. Pure: decides, changes nothing.

Equal priorities never push each other out: they would do so in turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from sheaf_runtime.engine.adapter_room import AdapterRoom
from sheaf_runtime.engine.kv_cache import KVCache
from sheaf_runtime.engine.pages_ahead import find_hit, pages_soon, pages_to_begin, promised
from sheaf_runtime.engine.request import Request
from sheaf_runtime.engine.step import StepLimits


def victims(
    waiting: Sequence[Request],
    running: Sequence[Request],
    kv: KVCache,
    late: int,
    limits: StepLimits,
    adapters: AdapterRoom,
) -> list[Request]:
    """Those to preempt, in this order, for the first that waits with a better priority than some that run;
    nobody where that would not let it in. ``late``: pages that come back by themselves."""
    worst = max((r.priority for r in running), default=0)
    better = (r for r in waiting if r.priority < worst)
    request = next((r for r in better if not r.must_wait and not adapters.keeps_out(r)), None)
    if request is None:
        return []
    # Those that rank behind it, last first.
    below = [r for r in reversed(running) if r.priority > request.priority and r.rank > request.rank]
    seats = len(running) + 1 - limits.max_num_seqs
    if request.num_to_compute > limits.long:
        partial = [r for r in running if r.num_to_compute > limits.long]
        if len(partial) >= limits.max_num_partial:  # it also needs the place of one of them
            below.sort(key=lambda r: r not in partial)
            if not below or below[0] not in partial:
                return []
            seats = max(seats, 1)
    needed = pages_to_begin(kv, request, find_hit(kv, request))
    missing = needed + promised(kv, running) - kv.pool.num_available - late
    chosen = []
    for victim in below:
        if seats <= 0 and missing <= 0:
            break
        chosen.append(victim)
        seats -= 1
        missing -= max(victim.tables.num_held, pages_soon(kv, victim))
    return chosen if seats <= 0 and missing <= 0 else []
