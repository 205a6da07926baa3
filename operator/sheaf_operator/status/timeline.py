"""How long the way from `kubectl apply` to the first ready pod took, phase by phase. Pure.

Read from the timestamps that Kubernetes itself keeps (whole seconds), for the present revision's first pod
that became ready. A complete timeline is kept as it is: later pods and restarts do not rewrite history.
"""

from __future__ import annotations

from datetime import datetime

from sheaf_operator.cluster.observed import Json, Observed, condition, main_container, revision_of

Stamp = tuple[str, str]  # phase, RFC 3339 time


def timeline(observed: Observed, revision: str | None) -> list[Json]:
    """At most 10 phases with the seconds each took. `revision` is the one that is wanted."""
    before: list[Json] = observed.status.get("timeline", [])
    same = observed.status.get("revision") == revision
    if same and any(entry["phase"] == "Ready" for entry in before):
        return before
    pods = [pod for pod in observed.live_pods if revision_of(pod) == revision]
    if not pods:
        return before if same else []
    pod = min(pods, key=lambda p: (_ready_at(p) or "9", str(p["metadata"]["creationTimestamp"])))
    start = _started_at(observed, pod)
    stamps = [stamp for stamp in _stamps(pod) if stamp[1]]
    return _durations([("Accepted", start), *stamps])


def _started_at(observed: Observed, pod: Json) -> str:
    """The resource's creation for its first spec, else the pod's: a spec change leaves no timestamp.

    A pod that was taken back is older than the resource; then its own creation counts too.
    """
    created = str(pod["metadata"]["creationTimestamp"])
    if observed.generation == 1:
        return min(created, str(observed.owner["metadata"]["creationTimestamp"]))
    return created


def _ready_at(pod: Json) -> str | None:
    ready = condition(pod, "Ready")
    return ready.get("lastTransitionTime") if ready and ready.get("status") == "True" else None


def _true_at(pod: Json, kind: str) -> str:
    found = condition(pod, kind)
    return str(found.get("lastTransitionTime", "")) if found and found.get("status") == "True" else ""


def _stamps(pod: Json) -> list[Stamp]:
    downloads = pod.get("status", {}).get("initContainerStatuses", [])
    fetched = [s.get("state", {}).get("terminated", {}).get("finishedAt", "") for s in downloads]
    state = main_container(pod).get("state", {})
    return [
        ("PodCreated", str(pod["metadata"]["creationTimestamp"])),
        ("Scheduled", _true_at(pod, "PodScheduled")),
        ("ModelFetched", max(fetched, default="")),
        ("ContainerStarted", str(state.get("running", {}).get("startedAt", ""))),
        ("Ready", _ready_at(pod) or ""),
    ]


def _durations(stamps: list[Stamp]) -> list[Json]:
    result = []
    previous = stamps[0][1]
    for phase, time in stamps:
        seconds = max(0, int((_parse(time) - _parse(previous)).total_seconds()))
        result.append({"phase": phase, "time": time, "seconds": seconds})
        previous = max(previous, time)
    return result


def _parse(time: str) -> datetime:
    return datetime.fromisoformat(time)
