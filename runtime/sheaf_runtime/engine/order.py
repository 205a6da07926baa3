"""Who is served first, as one number that is set once: the lowest goes first and is preempted last. Pure.

- Equal priorities go by arrival.
- A priority is worth seconds of waiting: ``AGEING`` for the first level, less for each further one and never
  ``LONGEST`` together. So a better priority passes those who came before it, but not for ever: who waits for
  twice ``LONGEST`` ranks before everyone that comes.
- ``--target-ttft-ms``: by slack, the deadline of the first token less the seconds that the prompt still
  takes. While two requests wait, the slack of both falls alike, so their order does not change.
"""

from __future__ import annotations

AGEING = 60.0
LONGEST = 600.0
SURE = 0.8  # of the seconds that a prompt is foreseen to take: no request ends for a model's small error

Rank = tuple[float, int]  # (seconds, order of arrival)


def head_start(priority: int) -> float:
    """Seconds by which an arrival of this ``priority`` stands behind one of priority 0; below 0: before."""
    return LONGEST * priority / (abs(priority) + LONGEST / AGEING)


def rank(arrival: float, priority: int, number: int, prompt_seconds: float = 0.0) -> Rank:
    """``number`` counts the requests; ``prompt_seconds`` only matter where there is a target for first
    tokens, which is the same for all and so takes no part."""
    return arrival + head_start(priority) - prompt_seconds, number


def too_late(deadline: float, now: float, prompt_seconds: float) -> bool:
    """Whether nothing can come by ``deadline`` any more: it has passed, or the ``prompt_seconds`` that are
    left alone surely reach beyond it."""
    return now + SURE * prompt_seconds >= deadline
