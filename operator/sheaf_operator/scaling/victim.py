"""Which pod should go when there is one too many. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from sheaf_operator.cluster.observed import Json, Observed, is_ready, pod_name
from sheaf_operator.cluster.reading import Reading


def choose(observed: Observed, readings: Mapping[str, Reading | str]) -> tuple[str, bool]:
    """(pod that should go, whether it needs a deletion cost). Unready pods go first by themselves."""
    live = observed.live_pods
    unready = [pod_name(pod) for pod in live if not is_ready(pod)]
    if unready:
        return min(unready), False

    def burden(pod: Json) -> tuple[float, float, str]:
        answer = readings.get(pod_name(pod))
        # A pod that does not answer serves nobody as far as we can see.
        return (*(answer.burden if isinstance(answer, Reading) else (-1, -1)), pod_name(pod))

    return pod_name(min(live, key=burden)), True


# Any cost below the default of 0 makes the ReplicaSet take this pod first.
COST = "-1000"
