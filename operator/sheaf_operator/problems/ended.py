"""Pods that the node ended or refused: they stay there as Failed while the next is made. Pure."""

from __future__ import annotations

import re
from datetime import datetime

from sheaf_operator.cluster.observed import Json, condition, is_ready, pod_name
from sheaf_operator.problems.containers import of_end
from sheaf_operator.problems.evidence import created, moment, seconds
from sheaf_operator.problems.problem import Problem, clip

RECENT = 1800.0  # seconds for which a pod that ended may explain why none serves
_REASONS = {
    "Evicted": "Evicted",
    "UnexpectedAdmissionError": "UnexpectedAdmissionError",
    "NodeLost": "NodeLost",
    "NodeShutdown": "NodeShutdown",
    "Shutdown": "NodeShutdown",
    "Terminated": "NodeShutdown",
    "Preempting": "Preempted",
    "DeadlineExceeded": "DeadlineExceeded",
}
# The kubelet's own checks at admission; OutOf is followed by the resource's name.
_REFUSED = re.compile(
    r"OutOf|NodeAffinity|NodeName|NodePorts|NodeUnschedulable|TaintToleration|Topology\w*|AppArmor|Sysctl\w*"
    r"|Pod\w*NotSupported|PodFeatureUnsupported|InvalidNodeInfo|UnknownReason|\w*AdmissionError|HostNetwork"
)
_DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "TerminationByKubelet": "Evicted",
}


def has_ended(pod: Json) -> bool:
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def of_ended(pods: list[Json], now: datetime) -> Problem | None:
    """What the pods of one revision that ended tell, `pods` the newest first.

    One that has a successor which serves is history. One alone may be mere chance while its successor starts;
    several in a row are a standstill that began with the first.
    """
    row: list[Json] = []
    for pod in pods:
        if is_ready(pod):
            break
        if has_ended(pod) and seconds(_ended_at(pod), now) < RECENT:
            row.append(pod)
    if not row:
        return None
    alone = len(row) == 1 and any(not has_ended(pod) for pod in pods)
    # A kubelet that cleans up after an end may forget why.
    speaks = next((pod for pod in row if pod["status"].get("reason")), row[0])
    return _one(speaks, len(row), None if alone else created(row[-1]))


def _one(pod: Json, times: int, since: datetime | None) -> Problem:
    status = pod["status"]
    kubelet = status.get("reason", "")
    disruption = condition(pod, "DisruptionTarget") or {}
    reason = _REASONS.get(kubelet) or ("NodeRefusedPod" if _REFUSED.match(kubelet) else None)
    if reason is None:
        reason = _DISRUPTIONS.get(disruption.get("reason", ""))
    if reason is None and (crash := _crash(pod, since)):
        return crash
    said = clip(status.get("message") or disruption.get("message") or "it left no message")
    row = f" ({times} pods in a row)" if times > 1 else ""
    named = kubelet or disruption.get("reason") or status["phase"]
    return Problem(reason or "PodFailed", f"pod {pod_name(pod)} ended with {named}{row}: {said}", since=since)


def _crash(pod: Json, since: datetime | None) -> Problem | None:
    for entry in pod["status"].get("containerStatuses", []):
        ended = entry.get("state", {}).get("terminated")
        if ended and ended.get("exitCode", 0) != 0 and ended.get("reason") != "ContainerStatusUnknown":
            return of_end(pod, entry, ended, since)
    return None


def _ended_at(pod: Json) -> datetime | None:
    """The last time that its status tells of."""
    status = pod["status"]
    texts = [c.get("lastTransitionTime") for c in status.get("conditions", [])]
    ends = [(c.get("state", {}).get("terminated") or {}) for c in status.get("containerStatuses", [])]
    texts += [end.get("finishedAt") for end in ends]
    times = [found for text in [*texts, status.get("startTime")] if (found := moment(text))]
    return max(times, default=created(pod))
