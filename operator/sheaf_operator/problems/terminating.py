"""Pods that were to end and are still there. Pure."""

from __future__ import annotations

from datetime import datetime

from sheaf_operator.cluster.observed import Json, pod_name
from sheaf_operator.problems.evidence import moment, seconds
from sheaf_operator.problems.problem import Problem

LATE = 60.0  # seconds after the grace period, which deletionTimestamp includes


def of_terminating(pods: list[Json], now: datetime) -> Problem | None:
    for pod in pods:
        due = moment(pod["metadata"].get("deletionTimestamp"))
        if due and seconds(due, now) >= LATE:
            return Problem("PodStuckTerminating", _words(pod), since=due)
    return None


def _words(pod: Json) -> str:
    holders = pod["metadata"].get("finalizers") or []
    why = f"finalizers {', '.join(holders)} hold it" if holders else "its node does not confirm the end"
    node = pod.get("spec", {}).get("nodeName", "unknown")
    due = pod["metadata"]["deletionTimestamp"]
    return f"pod {pod_name(pod)} on node {node} should have ended by {due}: {why}"
