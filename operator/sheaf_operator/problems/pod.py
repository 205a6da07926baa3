"""Why a pod does not serve, as a reason and a sentence that its user can act on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sheaf_operator.cluster.observed import Json
from sheaf_operator.problems.containers import of_containers
from sheaf_operator.problems.ended import has_ended, of_ended
from sheaf_operator.problems.problem import Problem
from sheaf_operator.problems.scheduling import of_scheduling
from sheaf_operator.problems.volumes import of_volumes


def of_pod(pod: Json, resource: str, now: datetime, events: Sequence[Json] = ()) -> Problem | None:
    """What keeps this pod from serving; None while it is on its way or serves.

    `resource` is the accelerator's resource name, such as nvidia.com/gpu; `events` are those that were read
    because something stood still, see `questions`.
    """
    if has_ended(pod):
        return of_ended([pod], now)
    return (
        of_scheduling(pod, resource, now, events)
        or of_volumes(pod, now, events)
        or of_containers(pod, now, events)
    )
