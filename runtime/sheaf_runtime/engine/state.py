"""The scheduler's state as one readable record, for the log of an engine that makes no progress. It has
counts and ids, never a prompt or an answer."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable

from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.request import Request

MOST_REQUESTS = 50  # of each kind; the rest is a number


def describe(core: EngineCore, now: float) -> str:
    """JSON on one line. Called from another thread, while the engine's own stands still."""
    scheduler = core.scheduler
    live, cached, free = scheduler.count_blocks()
    return json.dumps(
        {
            "steps_committed": scheduler.counters.steps,
            "steps_in_flight": scheduler.num_in_flight,
            "blocks": {"live": live, "cached": cached, "free": free},
            "running": _requests(scheduler.running, now),
            "waiting": _requests(scheduler.waiting, now),
            "grammars_compiling": core.structured.num_waiting,
            "preemptions": scheduler.counters.preemptions,
            "step_seconds": {name: float(f"{c:.3g}") for name, c in scheduler.costs.coefficients.items()},
        }
    )


def where(thread: int) -> str:
    """The lines of code at which a thread stands."""
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame)) if frame is not None else "the thread has ended"


def _requests(requests: Iterable[Request], now: float) -> dict[str, object]:
    listed = list(requests)
    return {
        "count": len(listed),
        "requests": [
            {
                "id": request.request_id,
                "age": round(now - request.arrival_time, 1),
                "priority": request.priority,
                "prompt": request.num_prompt_tokens,
                "output": request.num_output_tokens,
                "computed": request.computed,
                "in_flight": request.in_flight,
                "blocks": 0 if request.held is None else request.held.num_held,
                "last_step": request.last_step,
            }
            for request in listed[:MOST_REQUESTS]
        ],
    }
