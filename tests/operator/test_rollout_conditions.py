"""What the conditions tell of rollouts: waiting for room, rolled back, outdated, contested."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import kube_objects as k
from sheaf_operator.api.status import LLMDeploymentStatus
from sheaf_operator.desired.actions import Plan, Progress
from sheaf_operator.desired.notes import MAX_MESSAGE
from sheaf_operator.desired.plan import plan
from sheaf_operator.desired.rollout import Rollout
from sheaf_operator.problems.problem import Problem
from sheaf_operator.status.build import build_status
from sheaf_operator.status.situation import Situation

GOOD, BAD = k.spec(), k.spec(engine={"maxModelLen": 99})
A, B = k.revision(GOOD), k.revision(BAD)
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def told(spec: Any, observed: Any, result: Plan, **more: Any) -> dict[str, Any]:
    situation = Situation(spec, observed, result.revision, k.NOW, progress=result.progress, **more)
    status = build_status(situation, "cluster.local")
    LLMDeploymentStatus.model_validate(status)
    return status


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def rolling(*pods: Any) -> Any:
    start = k.settled(GOOD)
    begun = k.carried_out(start, plan(BAD, start, k.IMAGE, k.NOW))
    return replace(begun, pods=(k.pod("old", A, ready=True), *pods))


def test_at_rest_the_image_is_current_and_nothing_else_is_said() -> None:
    observed = k.settled(GOOD)
    said = conditions(told(GOOD, observed, plan(GOOD, observed, k.IMAGE, k.NOW)))
    assert said["ImageCurrent"] == ("True", "ImageCurrent")
    assert not {"RolledBack", "Contested"} & said.keys()


def test_an_outdated_image_is_no_fault_of_the_model() -> None:
    observed = k.settled(GOOD)
    status = told(GOOD, observed, plan(GOOD, observed, "sheaf/runtime:next", k.NOW))
    said = conditions(status)
    assert said["ImageCurrent"] == ("False", "ImageOutdated")
    assert (said["Ready"][0], said["Stalled"][0]) == ("True", "False")
    words = next(c["message"] for c in status["conditions"] if c["type"] == "ImageCurrent")
    for word in (k.IMAGE, "sheaf/runtime:next", "rollout.restartedAt"):
        assert word in words


def test_what_was_rolled_back_is_stalled_while_the_good_one_serves() -> None:
    observed = rolling(k.crashed("ValueError: boom", of=B, restarts=3))
    result = plan(BAD, observed, k.IMAGE, k.NOW)
    status = told(BAD, k.carried_out(observed, result), result)
    said = conditions(status)
    assert said["RolledBack"] == ("True", "RolledBack")
    assert said["Stalled"] == ("True", "RolledBack")
    assert said["Ready"] == ("True", "ServingPreviousRevision")
    assert said["Reconciling"] == ("False", "RolledBack")
    assert status["revision"] == A.hash
    words = next(c["message"] for c in status["conditions"] if c["type"] == "RolledBack")
    for word in (A.hash, B.hash, "ContainerCrashing", "ValueError: boom"):
        assert word in words


def test_waiting_for_room_is_in_progress_first_and_a_stall_after_the_patience() -> None:
    pod = k.unschedulable(NO_GPU, B)
    pod["status"]["conditions"][0]["lastTransitionTime"] = (k.NOW - timedelta(minutes=2)).isoformat()
    observed = rolling(pod)
    result = plan(BAD, observed, k.IMAGE, k.NOW)
    said = conditions(told(BAD, observed, result))
    assert said["Reconciling"] == ("True", "NeedsCapacity")
    assert said["Stalled"][0] == "False"
    assert said["Ready"] == ("True", "ServingPreviousRevision")
    said = conditions(told(BAD, observed, result, patience=timedelta(minutes=1)))
    assert said["Stalled"] == ("True", "NeedsCapacity")


def test_the_longest_of_all_stays_within_a_status() -> None:
    """Rolled back, outdated and contested at once, with a hundred pods that crash at length."""
    pods = []
    for n in range(100):
        pod = k.crashed("é" * 5000, of=A)
        pod["metadata"]["name"] = f"{'p' * 240}{n}"
        pods.append(pod)
    observed = k.settled(GOOD, replicas=100, pods=tuple(pods))
    failure = Problem("ContainerCrashing", "é" * MAX_MESSAGE)
    image = "registry.example/" + "i" * 200
    progress = Progress(Rollout("Surge"), (replace(B, runtime=A.runtime), failure), image)
    contested = Problem("FieldsContested", "w" * 400)
    status = told(BAD, observed, Plan(revision=A, progress=progress), contested=contested)
    entry = {
        "time": "2026-01-01T00:00:00Z",
        "from": 1,
        "to": 2,
        "limiting": "QueueDepth",
        "reason": "é" * 390,
    }
    status["autoscaling"] = {
        "desired": 1,
        "limiting": "QueueDepth",
        "reason": "é" * 390,
        "decisions": [entry] * 10,
    }
    assert len(status["conditions"]) == 8
    assert len(json.dumps(status, ensure_ascii=False).encode()) < 16 * 1024
