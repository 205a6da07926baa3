"""How far the way to the first answer is, while nothing is wrong. Pure."""

from __future__ import annotations

from sheaf_operator.cluster.observed import Json, Observed, main_container


def progress(observed: Observed) -> str:
    if observed.inference_service is None:
        return "creating the InferenceService"
    if observed.deployment is None:
        return "waiting for KServe to create the Deployment"
    pods = observed.live_pods
    if not pods:
        leaving = len(observed.pods)
        return f"waiting for {leaving} earlier pods to end" if leaving else "waiting for the first pod"
    if any("running" in main_container(pod).get("state", {}) for pod in pods):
        return "the model is being loaded"
    return next((words for pod in pods if (words := _preparing(pod))), "the pod is starting")


def _preparing(pod: Json) -> str | None:
    """What an init container that runs does."""
    for entry in pod.get("status", {}).get("initContainerStatuses", []):
        if "running" in entry.get("state", {}) and not entry.get("started"):
            fetches = entry.get("name") == "storage-initializer"
            return "the model is being fetched" if fetches else f"init container {entry.get('name')} runs"
    return None
