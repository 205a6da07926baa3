"""Why a container of a pod that has a node does not run, or why the pod is not ready. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Json, condition, fell_silent, main_container, pod_name
from sheaf_operator.problems import crashes, downloads, images
from sheaf_operator.problems.evidence import seconds, turned, warnings
from sheaf_operator.problems.problem import Problem, clip, last_line

DOWNLOAD = "storage-initializer"  # KServe's init container that fetches the model
OURS = (names.CONTAINER, DOWNLOAD, *images.MODEL_CONTAINERS)
SETTLING = 60.0  # seconds in which the other containers of a pod may become ready
_CONFIG = "CreateContainerConfigError"
_ON_ITS_WAY = {"", "ContainerCreating", "PodInitializing"}
_BACK_OFF = "CrashLoopBackOff"
_START = {"CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"}
# KServe's name for the mount of a pvc:// address; the kubelet makes a sub-path that is missing, where it may.
_NO_PATH = re.compile(r'failed to (create|prepare) subPath .{0,20}volumeMount "kserve-pvc-source"')
_PLATFORM = re.compile(r"exec format error")


@dataclass(frozen=True)
class _Container:
    pod: Json
    entry: Json
    init: bool  # it ends before the model server starts, unlike a native sidecar
    since: datetime | None  # the pod has not been ready since

    @property
    def name(self) -> str:
        return str(self.entry.get("name"))

    @property
    def where(self) -> str:
        return f"container {self.name} of pod {pod_name(self.pod)}"

    @property
    def waiting(self) -> Json:
        found: Json = self.entry.get("state", {}).get("waiting") or {}
        return found

    @property
    def running(self) -> bool:
        return "running" in self.entry.get("state", {})

    @property
    def restarts(self) -> int:
        return int(self.entry.get("restartCount", 0))

    @property
    def ended(self) -> Json | None:
        state, last = self.entry.get("state", {}), self.entry.get("lastState", {})
        found: Json | None = state.get("terminated") or last.get("terminated")
        return found


def of_containers(pod: Json, now: datetime, events: Sequence[Json] = ()) -> Problem | None:
    since = turned(pod, "Ready")
    for container in _all(pod, since):
        if found := _waiting(container, events) or _ended(container):
            return found
    return _unready(pod, since, now)


def pulls_silently(pod: Json) -> bool:
    """Whether only the pod's Events tell why an image cannot be pulled."""
    return any(images.is_silent(*_reason(container.waiting)) for container in _all(pod, None))


def _reason(waiting: Json) -> tuple[str, str]:
    return waiting.get("reason", ""), waiting.get("message", "")


def _all(pod: Json, since: datetime | None) -> Iterator[_Container]:
    status = pod.get("status", {})
    specs = pod.get("spec", {}).get("initContainers") or []
    sidecars = {c["name"] for c in specs if c.get("restartPolicy") == "Always"}
    for entry in status.get("initContainerStatuses", []):
        yield _Container(pod, entry, entry.get("name") not in sidecars, since)
    for entry in status.get("containerStatuses", []):
        yield _Container(pod, entry, False, since)


def _waiting(container: _Container, events: Sequence[Json]) -> Problem | None:
    """What keeps it from being started at all."""
    reason, said = _reason(container.waiting)
    since = container.since
    if images.is_silent(reason, said):
        told = (event["message"] for event in warnings(events, container.pod, ("Failed",)))
        said = next((words for words in told if "pull image" in words), said)
    if reason in images.WAITING:
        found = images.of_pull(container.name, reason, said)
        whose = "" if container.name in OURS else f" of container {container.name}"
        words = f"image {container.entry.get('image')}{whose} cannot be pulled: {clip(said or reason)}"
        return Problem(found, words, since=since)
    if reason in _ON_ITS_WAY or (reason == _BACK_OFF and container.ended):
        return None
    if reason == _BACK_OFF:  # a kubelet that was started anew no longer knows how it ended
        return of_end(container.pod, container.entry, {}, since, container.init)
    return _not_started(
        container, reason, said if reason == _CONFIG or reason in _START else f"{reason}: {said}"
    )


def _not_started(container: _Container, reason: str, said: str) -> Problem:
    if _NO_PATH.search(said):
        return Problem("ModelNotFound", f"the claim has no such path ({clip(said)})", since=container.since)
    words = f"{container.where} cannot start: {clip(said)}"
    if _PLATFORM.search(said):
        return Problem("ImageWrongPlatform", words, since=container.since)
    if crashes.of_crash(said) == "DriverMissing":
        return Problem("DriverMissing", words, since=container.since)
    found = "ContainerConfigError" if reason == _CONFIG else "ContainerStartFailed"
    return Problem(found, words, since=container.since)


def _ended(container: _Container) -> Problem | None:
    """Why it ended, if it is not to and has not recovered."""
    ended = container.ended
    if ended is None or (container.running and container.entry.get("ready")):
        return None
    if container.init and container.entry.get("state", {}).get("terminated", {}).get("exitCode") == 0:
        return None
    if ended.get("exitCode", 0) == 0 and container.waiting.get("reason") != _BACK_OFF:
        return None
    if ended.get("reason") in _START:
        return _not_started(container, ended["reason"], ended.get("message", ""))
    return of_end(container.pod, container.entry, ended, _since(container), container.init)


def _since(container: _Container) -> datetime | None:
    """One that runs again after its first crash may well succeed."""
    return None if container.running and container.restarts <= 1 else container.since


def of_end(pod: Json, entry: Json, ended: Json, since: datetime | None, init: bool = False) -> Problem:
    """What the end of this container means."""
    name, code, text = str(entry.get("name")), int(ended.get("exitCode", -1)), ended.get("message") or ""
    restarts = int(entry.get("restartCount", 0))
    times = f" ({restarts} restarts so far)" if restarts else ""
    where = f"container {name} of pod {pod_name(pod)}"
    how = f"ended with exit code {code}" if code >= 0 else "ends again and again"
    words = f"{where} {how}{times}: {last_line(text) or crashes.of_code(code)}"
    if ended.get("reason") == "OOMKilled":
        whose = "" if name == names.CONTAINER else "; its limit is not the model server's"
        return Problem("OutOfMemory", f"{where} used more than its memory limit{times}{whose}", since=since)
    if name == DOWNLOAD:
        words = f"the model could not be fetched (exit code {code}){times}: {last_line(text)}"
        return Problem(downloads.of_download(text), words, since=since)
    if name not in OURS:
        return Problem("InitContainerFailed" if init else "SidecarFailed", words, since=since)
    return Problem(crashes.of_crash(text), words, since=since)


def _unready(pod: Json, since: datetime | None, now: datetime) -> Problem | None:
    """Why a pod whose containers run is not ready, where it is not the model that loads."""
    if fell_silent(pod):
        words = f"pod {pod_name(pod)} has served and does not answer any more"
        return Problem("NotAnswering", words, since=since)
    ready = condition(pod, "Ready") or {}
    if not main_container(pod).get("ready") or ready.get("status") == "True":
        return None
    if seconds(since, now) < SETTLING:
        return None
    unready = [c.name for c in _all(pod, since) if not c.entry.get("ready") and not c.init]
    if unready:
        words = f"container {', '.join(unready)} of pod {pod_name(pod)} runs and is not ready"
        return Problem("SidecarFailed", words, since=since)
    words = ready.get("message") or "its containers are ready and it is not"
    return Problem("NotAnswering", f"pod {pod_name(pod)}: {words}", since=since)
