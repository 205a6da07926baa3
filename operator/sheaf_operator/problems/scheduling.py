"""Why a pod has no node, as the scheduler says it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from sheaf_operator.cluster.observed import Json, condition, pod_name
from sheaf_operator.problems.evidence import first, rules, seconds, turned, warnings
from sheaf_operator.problems.problem import Lack, Problem, clip

UNSEEN = 60.0  # seconds in which a scheduler that runs has looked at a new pod
_INSUFFICIENT = re.compile(r"Insufficient ([\w.\-/]*\w)")
_COUNTED = re.compile(r", (?=\d+ )")  # between the scheduler's clauses; taints may hold commas of their own
# What other means would do, after the clauses: claims of devices, preemption.
_PREEMPTION = re.compile(
    r"\.? ((no new claims to deallocate|still not schedulable),? )?preemption: .*", re.DOTALL
)
_VOLUMES = rules(
    ("VolumeNotFound", r'persistentvolumeclaim "[^"]*" not found'),
    ("VolumeInUse", r"ReadWriteOncePod access mode"),
    (
        "VolumeNotBound",
        r"unbound immediate PersistentVolumeClaims|non-existent (persistentvolume|pv)\b"
        r"|find available persistent volumes to bind|persistentvolumeclaim .* is being deleted"
        r"|did not have enough free storage|storageclass.* not found|PreBind plugin \"VolumeBinding\"",
    ),
)
_ELSEWHERE = rules(
    (
        "VolumeElsewhere",
        # The first is how Kubernetes says it now, the second how it did before.
        r"match PersistentVolume's node affinity|volume node affinity conflict|no available volume zone",
    )
)


def of_scheduling(pod: Json, resource: str, now: datetime, events: Sequence[Json]) -> Problem | None:
    """`resource` is the accelerator's resource name; `events` may hold some about the pod's claims."""
    scheduled = condition(pod, "PodScheduled")
    since = turned(pod, "PodScheduled")
    if scheduled is None:
        unseen = not pod.get("spec", {}).get("nodeName") and seconds(since, now) >= UNSEEN
        words = f"no scheduler has looked at pod {pod_name(pod)} for {seconds(since, now):.0f} s"
        return Problem("NotScheduled", words, since=since) if unseen else None
    if scheduled.get("status") != "False":
        return None
    said = scheduled.get("message", "")
    if scheduled.get("reason") == "SchedulingGated":
        gates = ", ".join(gate["name"] for gate in pod.get("spec", {}).get("schedulingGates", []))
        return Problem("SchedulingGated", f"pod {pod_name(pod)} is held back by {gates or said}", since=since)
    shown = clip(in_order(said, resource))
    short = set(_INSUFFICIENT.findall(said))
    lacks = tuple(Lack("Resource", name) for name in sorted(short))
    if reason := first(_VOLUMES, said):
        return _volume(pod, reason, shown, since, events)
    if resource in short:
        asked = f"pod {pod_name(pod)} asks for {_asked(pod, resource)} {resource}"
        words = f"{asked} and no node has that many free ({shown})"
        return Problem("InsufficientGPU", words, lacks, since)
    reason = first(_ELSEWHERE, said) if not short else None
    return Problem(reason or "Unschedulable", f"pod {pod_name(pod)} fits no node: {shown}", lacks, since)


def _volume(pod: Json, reason: str, shown: str, since: datetime | None, events: Sequence[Json]) -> Problem:
    names = claims(pod)
    latest = [(name, found[0]["message"]) for name in names if (found := warnings(events, _claim(name)))]
    told = "".join(f"; claim {name}: {clip(message, 300)}" for name, message in latest)
    lacks = tuple(Lack("Volume", name) for name in names) if reason == "VolumeInUse" else ()
    where = f" ({', '.join(names)})" if names and not latest and names[0] not in shown else ""
    return Problem(reason, f"pod {pod_name(pod)} fits no node: {shown}{where}{told}", lacks, since)


def in_order(said: str, resource: str) -> str:
    """The scheduler's message with what matters first: it may list dozens of taints, sorted as text."""
    head, colon, rest = _PREEMPTION.sub("", said).partition(": ")
    if not colon or "nodes are available" not in head:
        return said
    clauses = _COUNTED.split(rest.rstrip("."))
    return f"{head}: {', '.join(sorted(clauses, key=lambda clause: _rank(clause, resource)))}"


def _rank(clause: str, resource: str) -> int:
    """Sorting is stable, so clauses of one kind keep the scheduler's order."""
    order = (f"Insufficient {resource}", "Insufficient", "volume", "selector", "affinity", "topology")
    found = next((rank for rank, words in enumerate(order) if words in clause), len(order))
    return len(order) + 1 if "taint" in clause else found


def _asked(pod: Json, resource: str) -> int:
    containers = pod.get("spec", {}).get("containers", [])
    return sum(int(c.get("resources", {}).get("limits", {}).get(resource, 0)) for c in containers)


def claims(pod: Json) -> list[str]:
    """The names of the claims that the pod mounts."""
    volumes = pod.get("spec", {}).get("volumes") or []
    return [v["persistentVolumeClaim"]["claimName"] for v in volumes if v.get("persistentVolumeClaim")]


def _claim(name: str) -> Json:
    return {"kind": "PersistentVolumeClaim", "metadata": {"name": name}}
