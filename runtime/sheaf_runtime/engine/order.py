"""Who is served first, as one number that is set once: the lowest goes first and is preempted last. Pure.

- Equal priorities go by arrival plus the seconds that the prompt is foreseen to take, ``PASSED`` at most. So
  a short prompt passes longer ones that came just before it, and what comes later than that passes nobody.
- A priority is worth seconds of waiting: ``AGEING`` for the first level, less for each further one and never
  ``LONGEST`` together. So a better priority passes those who came before it, but not for ever: who waits for
  twice ``LONGEST`` ranks before everyone that comes.
- ``--target-ttft-ms``: by slack, the deadline of the first token less those seconds. While two requests wait,
  the slack of both falls alike, so their order does not change.
"""

from __future__ import annotations

AGEING = 60.0
LONGEST = 600.0
PASSED = 5.0  # seconds after which a prompt, however long, is passed by nobody that comes
SURE = 0.8  # of the seconds that a prompt is foreseen to take: no request ends for a model's small error

Rank = tuple[float, int]  # (seconds, order of arrival)


def head_start(priority: int) -> float:
    """Seconds by which an arrival of this ``priority`` stands behind one of priority 0; below 0: before."""
    return LONGEST * priority / (abs(priority) + LONGEST / AGEING)


def rank(
    arrival: float, priority: int, number: int, prompt_seconds: float = 0.0, *, by_slack: bool = False
) -> Rank:
    """``number`` counts the requests. ``by_slack``: the target for first tokens is the same for all and so
    takes no part."""
    behind = -prompt_seconds if by_slack else min(prompt_seconds, PASSED)
    return arrival + head_start(priority) + behind, number


def too_late(deadline: float, now: float, prompt_seconds: float) -> bool:
    """Whether nothing can come by ``deadline`` any more: it has passed, or the ``prompt_seconds`` that are
    left alone surely reach beyond it."""
    return now + SURE * prompt_seconds >= deadline
