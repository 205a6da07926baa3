"""Who of those that wait begins in the step that is planned, and with how many tokens. Pure: decides, changes
nothing.

Admission is by pages: a request must fit with all its tokens so far and one page to grow, after every running
request has been granted the same. Otherwise it would push others out at once, or be pushed out itself, and
its prefill would be thrown away. Only a long prompt that finds no room in the step, and a request that waits
for another's pages or for its adapter, let later ones pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sheaf_runtime.engine.adapter_room import AdapterRoom
from sheaf_runtime.engine.kv_cache import BlockTables, KVCache
from sheaf_runtime.engine.pages_ahead import find_hit, pages_soon, pages_to_begin, promised
from sheaf_runtime.engine.request import Request
from sheaf_runtime.engine.step import Step, StepLimits


@dataclass(frozen=True, slots=True)
class Entry:
    """It begins behind the prefix ``hit`` that was found, with ``num_tokens`` tokens; its prompt is ``short``
    or not."""

    request: Request
    hit: BlockTables
    num_tokens: int
    short: bool


def entries(
    waiting: Sequence[Request],
    running: Sequence[Request],
    step: Step,
    kv: KVCache,
    limits: StepLimits,
    adapters: AdapterRoom,
) -> Iterator[Entry]:
    """In the order in which they begin. Each is to be in the step, and to hold its pages, before the next one
    is asked for: what is left then decides about that one."""
    room = step.room
    seats = limits.max_num_seqs - len(running)
    if not waiting or room.holds(0, 1) == 0 or seats <= 0:
        return
    taken = promised(kv, running)
    num_partial = sum(r.num_to_compute > n for r, (n, _) in step.chosen.items())
    for request in list(waiting):
        if room.holds(0, 1) == 0 or seats <= 0:
            break
        if request.must_wait or (
            request.num_to_compute > limits.long and room.holds(0, room.tokens) <= step.reserve
        ):
            continue
        if not adapters.takes(request):
            continue
        hit = find_hit(kv, request)
        start = kv.hit_tokens(hit)
        num_tokens = min(len(request.token_ids), request.final_length) - start
        short = num_tokens <= limits.long
        if short:
            allowed = room.holds(start, num_tokens)
        else:
            allowed = step.part(start, num_tokens, 1)
            if allowed == 0 or (allowed < num_tokens and num_partial >= limits.max_num_partial):
                continue
        if allowed == 0 or pages_to_begin(kv, request, hit) + taken > kv.pool.num_available:
            break
        yield Entry(request, hit, allowed, short)
        seats -= 1
        num_partial += allowed < num_tokens
        taken += max(0, pages_soon(kv, request) - hit.num_held)
