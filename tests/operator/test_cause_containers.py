"""Containers that are not started, end, or are not ready: ours, KServe's and other people's."""

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.problems.cause import Question, questions
from standstill import OURS, Json, after, event, found, said


def container(
    name: str, *, init: bool = False, code: int = 1, message: str = "", reason: str = "Error"
) -> Json:
    pod = k.pod("p1", OURS)
    ended = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    entry = {
        "name": name,
        "ready": False,
        "restartCount": 4,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": ended,
    }
    pod["status"]["initContainerStatuses" if init else "containerStatuses"] = [entry]
    return pod


def native_sidecar(name: str) -> Json:
    pod = container(name, init=True)
    pod["spec"]["initContainers"] = [{"name": name, "restartPolicy": "Always"}]
    return pod


CONTAINERS = {
    "init": (container("istio-init", init=True), "InitContainerFailed", "istio-init"),
    "sidecar": (container("istio-proxy"), "SidecarFailed", "istio-proxy"),
    "native sidecar": (native_sidecar("istio-proxy"), "SidecarFailed", "istio-proxy"),
    "download": (
        container("storage-initializer", init=True, message="HTTPError: 404 Client Error"),
        "ModelNotFound",
        "404",
    ),
    "download's memory": (
        container("storage-initializer", init=True, code=137, reason="OOMKilled"),
        "OutOfMemory",
        "storage-initializer",
    ),
    "killed": (container(names.CONTAINER, code=137), "ContainerCrashing", "liveness"),
    "ended well": (container(names.CONTAINER, code=0, reason="Completed"), "ContainerCrashing", "by itself"),
    "driver": (
        container(
            names.CONTAINER,
            code=128,
            reason="StartError",
            message="nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1",
        ),
        "DriverMissing",
        "initialization error",
    ),
    "entry point": (
        container(
            names.CONTAINER, code=128, reason="StartError", message='exec: "sheaf": not found in $PATH'
        ),
        "ContainerStartFailed",
        "$PATH",
    ),
    "platform": (
        container(names.CONTAINER, code=128, reason="StartError", message="exec /x: exec format error"),
        "ImageWrongPlatform",
        "format",
    ),
}


@pytest.mark.parametrize(("pod", "reason", "part"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_that_ends(pod: Json, reason: str, part: str) -> None:
    problem = found(pod)
    assert problem is not None
    assert problem.reason == reason
    assert part in problem.said


WAITING = {
    "secret": ("CreateContainerConfigError", 'secret "hf-token" not found', "ContainerConfigError"),
    "root": (
        "CreateContainerConfigError",
        "container has runAsNonRoot and image will run as root",
        "ContainerConfigError",
    ),
    "path": (
        "CreateContainerConfigError",
        'failed to prepare subPath for volumeMount "kserve-pvc-source" of container "kserve-container"',
        "ModelNotFound",
    ),
    "runtime": ("RunContainerError", "failed to create containerd task", "ContainerStartFailed"),
    "name": ("InvalidImageName", "couldn't parse image name", "ImageNameInvalid"),
    "never": (
        "ErrImageNeverPull",
        "Container image is not present with pull policy of Never",
        "ImagePullFailed",
    ),
}


@pytest.mark.parametrize(("waiting", "message", "reason"), WAITING.values(), ids=WAITING)
def test_a_container_that_is_not_started(waiting: str, message: str, reason: str) -> None:
    pod = k.pod("p1", OURS)
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": waiting, "message": message}}
    problem = found(pod)
    assert problem is not None
    assert problem.reason == reason
    assert message in problem.said


def test_an_init_container_that_has_done_its_work_is_no_problem() -> None:
    pod = k.pod("p1", OURS)
    done = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    failed = {"terminated": {"exitCode": 1, "message": "first try"}}
    pod["status"]["initContainerStatuses"] = [
        {"name": "storage-initializer", "ready": True, "state": done, "lastState": failed, "restartCount": 1}
    ]
    assert found(pod) is None


def test_after_one_crash_the_next_start_is_no_stall() -> None:
    pod = k.crashed("OSError: x", of=OURS)
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": "2026-01-01T00:59:00Z"}}
    told = said(pod)
    assert told["Ready"][:2] == ("False", "ContainerCrashing")
    assert told["Stalled"][0] == "False"
    pod["status"]["containerStatuses"][0]["restartCount"] = 3
    assert said(pod)["Stalled"][0] == "True"


def test_a_pod_that_has_served_and_is_silent_is_not_said_to_load() -> None:
    pod = k.pod("p1", OURS)
    pod["status"]["conditions"][1] = {
        "type": "Ready",
        "status": "False",
        "lastTransitionTime": "2026-01-01T00:50:00Z",
    }
    assert said(pod)["Ready"][:2] == ("False", "NotAnswering")


def test_a_sidecar_that_is_not_ready_is_named() -> None:
    pod = k.pod("p1", OURS)
    pod["status"]["containerStatuses"][0]["ready"] = True
    pod["status"]["containerStatuses"].append(
        {"name": "istio-proxy", "ready": False, "state": {"running": {}}}
    )
    problem = found(pod)
    assert problem is not None
    assert problem.reason == "SidecarFailed"
    assert "istio-proxy" in problem.said


def test_too_little_memory_for_the_download_is_raised_where_kserve_has_it() -> None:
    """kserve#5326: spec.resources.memory is another container's."""
    pod = container("storage-initializer", init=True, code=137, reason="OOMKilled")
    problem = found(pod)
    assert problem is not None
    assert "storageInitializer.memoryLimit in KServe's ConfigMap" in problem.message


def waits(reason: str, message: str = "", name: str = names.CONTAINER, restarts: int = 0) -> Json:
    pod = k.pod("p1", OURS)
    entry = {"name": name, "image": "r.example/x:1", "ready": False, "restartCount": restarts}
    waiting = {"reason": reason, "message": message}
    pod["status"]["containerStatuses"] = [{**entry, "state": {"waiting": waiting}}]
    pod["status"]["conditions"].append({"type": "PodReadyToStartContainers", "status": "True"})
    return pod


@pytest.mark.parametrize("reason", ["PostStartHookError", "SignatureValidationFailed", "OfANewerKubelet"])
def test_whatever_keeps_a_container_from_starting_is_told(reason: str) -> None:
    """Reasons differ by kubelet, runtime and version: what is not the usual wait is a problem."""
    problem = found(waits(reason, "the kubelet's words"))
    assert problem is not None
    assert problem.reason == "ContainerStartFailed"
    assert f"{reason}: the kubelet's words" in problem.said
    for usual in ("ContainerCreating", "PodInitializing"):
        assert found(waits(usual), at=60) is None


def test_a_crash_that_the_kubelet_has_forgotten_is_one() -> None:
    problem = found(waits("CrashLoopBackOff", "back-off 5m0s restarting failed container", restarts=7))
    assert problem is not None
    assert problem.reason == "ContainerCrashing"
    assert "ends again and again (7 restarts so far)" in problem.said


def test_why_an_image_is_not_pulled_is_told_in_between_as_well() -> None:
    """Before Kubernetes 1.32 the cause alternates with a bare back-off: the reason would flap with it."""
    pod = waits("ImagePullBackOff", 'Back-off pulling image "r.example/x:1"')
    observed = k.settled(k.spec(), pods=(pod,))
    assert questions(observed, OURS.hash, after(30)) == [Question("Pod", "p1")]
    why = event("Pod", "p1", "Failed", 'Failed to pull image "r.example/x:1": r.example/x:1: not found')
    other = event("Pod", "p1", "Failed", "Error: ImagePullBackOff", at="2026-01-01T00:11:00Z")
    problem = found(pod, events=(why, other))
    assert problem is not None
    assert problem.reason == "ImageNotFound"
    newer = waits("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: x: not found')
    assert questions(k.settled(k.spec(), pods=(newer,)), OURS.hash, after(30)) == []
