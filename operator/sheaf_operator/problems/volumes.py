"""Why a pod that has a node has no container yet: volumes, the sandbox, its network. Pure.

The pod's own status says ContainerCreating and nothing else; the words are in its Events.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from sheaf_operator.cluster.observed import Json, condition, pod_name
from sheaf_operator.problems.evidence import seconds, turned, warnings
from sheaf_operator.problems.problem import Lack, Problem, clip
from sheaf_operator.problems.scheduling import claims

ASK = 20.0  # seconds after which the pod's Events are worth a request
LONG = 180.0  # seconds after which it is told even though no Event says why
_EVENTS = {
    "FailedAttachVolume": "VolumeNotMounted",
    "FailedMount": "VolumeNotMounted",
    "FailedMapVolume": "VolumeNotMounted",
    "FailedCreatePodSandBox": "SandboxFailed",
    "NetworkNotReady": "SandboxFailed",
}
_EXCLUSIVE = re.compile(
    r"Multi-Attach|already exclusively attached|already (used|attached) by pod|exclusively used"
    r"|still being used|locked by other"
)


def waits_for_node(pod: Json) -> bool:
    """Whether it has a node that has not made the pod's sandbox: no volume yet, or no network."""
    if (condition(pod, "PodScheduled") or {}).get("status") != "True":
        return False
    ready = condition(pod, "PodReadyToStartContainers")
    status = pod.get("status", {})
    states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    waiting = all("waiting" in entry.get("state", {}) for entry in states)
    return waiting and (ready or {}).get("status", "False") == "False"


def of_volumes(pod: Json, now: datetime, events: Sequence[Json]) -> Problem | None:
    if not waits_for_node(pod):
        return None
    since = turned(pod, "PodScheduled")
    told = warnings(events, pod, _EVENTS)
    names = claims(pod)
    which = f" (claim {', '.join(names)})" if names else ""
    # Said once by who attaches volumes, while the kubelet goes on to say that its time has run out.
    held = next((event for event in told if _EXCLUSIVE.search(event["message"])), None)
    if event := held or (told[0] if told else None):
        reason = "VolumeInUse" if held else _EVENTS[event["reason"]]
        lacks = tuple(Lack("Volume", name) for name in names) if held else ()
        where = which if reason != "SandboxFailed" else ""
        words = f"pod {pod_name(pod)} cannot start{where}: {clip(event['message'])}"
        return Problem(reason, words, lacks, since)
    # Before Kubernetes 1.29 the condition is absent, and a large image may be on its way just as well.
    known = condition(pod, "PodReadyToStartContainers") is not None
    if not known or seconds(since, now) < LONG:
        return None
    waited = f"pod {pod_name(pod)} has had a node for {LONG / 60:.0f} minutes"
    if names:
        return Problem("VolumeNotMounted", f"{waited} and waits for its volume{which}", since=since)
    return Problem("ContainersNotStarted", f"{waited} and none of its containers was started", since=since)
