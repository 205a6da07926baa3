"""Why a pod does not serve, as a reason and a sentence that its user can act on. Pure."""

from __future__ import annotations

import re

from sheaf_operator.cluster.observed import Json, condition, pod_name
from sheaf_operator.problems.problem import Lack, Problem, clip, last_line

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_NO_MODEL = re.compile(
    r"model.{0,40}(not found|does not exist)|no such file|config\.json|not a (model )?(folder|directory)"
    r"|repository ?not ?found|no safetensors|404 client error|NoSuchKey",
    re.IGNORECASE,
)
# KServe's name for the mount of a pvc:// address; the kubelet makes a sub-path that is missing, where it may.
_NO_PATH = re.compile(r'failed to (create|prepare) subPath .{0,20}volumeMount "kserve-pvc-source"')
_INSUFFICIENT = re.compile(r"Insufficient ([\w.\-/]*\w)")


def of_pod(pod: Json, resource: str) -> Problem | None:
    """What keeps this pod from serving; None while it is on its way or serves.

    `resource` is the accelerator's resource name, such as nvidia.com/gpu.
    """
    return _scheduling(pod, resource) or _containers(pod)


def _scheduling(pod: Json, resource: str) -> Problem | None:
    scheduled = condition(pod, "PodScheduled")
    if scheduled is None or scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    said = scheduled.get("message", "")
    message = clip(said)
    short = _INSUFFICIENT.findall(said)
    lacks = tuple(Lack("Resource", name) for name in sorted(set(short)))
    if "persistentvolumeclaim" in message and "not found" in message:
        return Problem("VolumeNotFound", f"{message}")
    if resource in short:
        asked = _asked(pod, resource)
        return Problem(
            "InsufficientGPU",
            f"pod {pod_name(pod)} asks for {asked} {resource} and no node has that many free ({message})",
            lacks,
        )
    return Problem("Unschedulable", f"pod {pod_name(pod)} fits no node: {message}", lacks)


def _asked(pod: Json, resource: str) -> int:
    containers = pod.get("spec", {}).get("containers", [])
    return sum(int(c.get("resources", {}).get("limits", {}).get(resource, 0)) for c in containers)


def _containers(pod: Json) -> Problem | None:
    status = pod.get("status", {})
    for entry in status.get("initContainerStatuses", []):
        if problem := _container(pod, entry, download=True):
            return problem
    for entry in status.get("containerStatuses", []):
        if problem := _container(pod, entry, download=False):
            return problem
    return None


def _container(pod: Json, entry: Json, download: bool) -> Problem | None:
    waiting = entry.get("state", {}).get("waiting", {})
    reason = waiting.get("reason", "")
    where = f"container {entry.get('name')} of pod {pod_name(pod)}"
    if reason in _PULL:
        detail = clip(waiting.get("message", ""))
        words = f"image {entry.get('image')} cannot be pulled: {detail}"
        return Problem("ImagePullFailed", words)
    if reason in _CONFIG and _NO_PATH.search(waiting.get("message", "")):
        return Problem("ModelNotFound", f"the claim has no such path ({clip(waiting['message'])})")
    if reason in _CONFIG:
        said = clip(waiting.get("message", ""))
        return Problem("ContainerConfigError", f"{where} cannot start: {said}")
    ended = entry.get("state", {}).get("terminated") or entry.get("lastState", {}).get("terminated")
    running = "running" in entry.get("state", {})
    # A container that runs again after a crash is given the benefit of the doubt until it crashes once more.
    if not ended or (ended.get("exitCode", 0) == 0 and reason != "CrashLoopBackOff"):
        return None
    if running and entry.get("ready"):
        return None
    return _crash(where, ended, int(entry.get("restartCount", 0)), download)


def _crash(where: str, ended: Json, restarts: int, download: bool) -> Problem:
    text = ended.get("message", "")
    said = last_line(text)
    code = ended.get("exitCode")
    times = f" {restarts} restarts so far." if restarts else ""
    if ended.get("reason") == "OOMKilled":
        used = f"{where} used more than its memory limit..{times}"
        return Problem("OutOfMemory", used)
    if _NO_MODEL.search(text):
        where = f"{said} (exit code {code}).{times}"
        return Problem("ModelNotFound", where)
    if download:
        words = f"the model could not be fetched (exit code {code}): {said}"
        return Problem("ModelDownloadFailed", words)
    detail = said or "it left no message"
    return Problem("ContainerCrashing", f"{where} ended with exit code {code}: {detail}.{times}")


def worst(pods: list[Json], resource: str) -> Problem | None:
    """The problem to show when several pods have one: the newest pod's, as it has the present spec."""
    newest_first = sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp", "")), reverse=True)
    return next((found for pod in newest_first if (found := of_pod(pod, resource))), None)
