"""What is shown of a model, from its objects and its pods' metrics. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sheaf_operator.cluster.reading import Reading

Json = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """`running` to `kv` are None where the pod gave no metrics, and `note` says why or what it waits for."""

    name: str
    state: str
    running: int | None = None
    waiting: int | None = None
    oldest_wait: float | None = None
    kv: float | None = None
    note: str = ""


@dataclass(frozen=True)
class View:
    name: str
    namespace: str
    url: str = ""
    image: str = ""
    revision: str = ""
    ready: int = 0
    replicas: int = 0
    desired: int | None = None
    bounds: tuple[int, int] | None = None
    mode: str = ""
    limiting: str = ""
    pods: list[Pod] = field(default_factory=list)
    decisions: list[Json] = field(default_factory=list)
    conditions: list[Json] = field(default_factory=list)
    timeline: list[Json] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(
    owner: Json, pods: list[Json], readings: Mapping[str, Reading | str], notes: list[str] | None = None
) -> View:
    """`notes` are what could not be read; one is added when the operator has not seen the newest spec."""
    metadata, spec, status = owner["metadata"], owner.get("spec") or {}, owner.get("status") or {}
    autoscaling, scaler = spec.get("autoscaling") or {}, status.get("autoscaling") or {}
    seen, generation = status.get("observedGeneration"), metadata.get("generation")
    notes = list(notes or [])
    if not status:
        notes.append(
            "no status yet: no operator has looked at it; does one run and look after this namespace?"
        )
    elif seen != generation:
        notes.append(f"what follows is about generation {seen} of the spec; the newest is {generation}")
    minimum, maximum = autoscaling.get("minReplicas"), autoscaling.get("maxReplicas")
    return View(
        name=metadata["name"],
        namespace=metadata["namespace"],
        url=status.get("url") or "",
        image=status.get("image") or "",
        revision=status.get("revision") or "",
        ready=status.get("readyReplicas") or 0,
        replicas=status.get("replicas") or 0,
        desired=scaler.get("desired", spec.get("replicas")),
        bounds=(minimum, maximum) if minimum is not None and maximum is not None else None,
        mode=autoscaling.get("mode") or "",
        limiting=scaler.get("limiting") or "",
        pods=[_pod(pod, readings.get(pod["metadata"]["name"], "")) for pod in sorted(pods, key=_age)],
        decisions=scaler.get("decisions") or [],
        conditions=status.get("conditions") or [],
        timeline=status.get("timeline") or [],
        notes=notes,
    )


def is_ready(pod: Json) -> bool:
    return state(pod) == "Ready"


def state(pod: Json) -> str:
    """In one word, as precise as the pod itself is."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return "Draining"
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    if conditions.get("Ready", {}).get("status") == "True":
        return "Ready"
    containers = (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return str(waiting["reason"])
    if status.get("phase") == "Running":
        return "Loading"
    if conditions.get("PodScheduled", {}).get("status") == "False":
        return str(conditions["PodScheduled"].get("reason") or "Unscheduled")
    return str(status.get("reason") or status.get("phase") or "Unknown")


def _pod(pod: Json, reading: Reading | str) -> Pod:
    name, word = pod["metadata"]["name"], state(pod)
    if isinstance(reading, str):
        conditions = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or []}
        return Pod(name, word, note=reading or conditions.get("PodScheduled", {}).get("message") or "")
    sample = reading.sample
    return Pod(name, word, sample.running, sample.waiting, sample.oldest_wait, sample.kv)


def _age(pod: Json) -> tuple[str, str]:
    return pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"]
