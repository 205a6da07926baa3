from datetime import UTC, datetime
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.api.status import CONDITION_TYPES
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.cluster.reading import Sample
from sheaf_operator.problems.problem import Problem
from sheaf_operator.scaling.decide import History, decide
from sheaf_operator.scaling.policy import Policy
from sheaf_operator.scaling.samples import Samples
from sheaf_operator.status.conditions import conditions
from sheaf_operator.status.situation import Situation

NOW = "2026-01-01T01:00:00Z"
LATER = datetime(2026, 1, 1, 1, tzinfo=UTC)
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not helpful"
NO_CPU = "0/1 nodes are available: 1 Insufficient cpu."
NO_CLAIM = 'persistentvolumeclaim "claim" not found'
REACHED_READY = {"timeline": [{"phase": "Ready"}]}


def judge(observed: Observed, given: Any = None, **more: Any) -> dict[str, tuple[str, str, str]]:
    """type → (status, reason, message)"""
    given = given or k.spec()
    revision = more.pop("revision", k.revision(given))
    now = more.pop("now", LATER)
    listed = conditions(Situation(given, observed, revision, now, **more))
    assert [c["type"] for c in listed] == list(CONDITION_TYPES[:5])
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in listed}


def with_pods(*pods: dict[str, Any], **more: Any) -> Observed:
    return k.settled(k.spec(), pods=pods, **more)


OURS = k.revision(k.spec())
UNREADY = k.pod("p1", OURS)


def image_pull() -> dict[str, Any]:
    pod = k.pod("p1", OURS)
    pod["status"]["containerStatuses"][0]["state"] = {
        "waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    }
    return pod


def no_sub_path() -> dict[str, Any]:
    pod = k.pod("p1", OURS)
    message = 'failed to create subPath directory for volumeMount "kserve-pvc-source" of container "x"'
    waiting = {"reason": "CreateContainerConfigError", "message": message}
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": waiting}
    return pod


def download_failed() -> dict[str, Any]:
    pod = k.pod("p1", OURS)
    pod["status"]["initContainerStatuses"] = [
        {
            "name": "storage-initializer",
            "state": {"terminated": {"exitCode": 1, "message": "Traceback\nHTTPError: 401 Unauthorized\n"}},
        }
    ]
    return pod


PROBLEMS = [
    (k.unschedulable(NO_GPU, OURS), "InsufficientGPU", "3 Insufficient nvidia.com/gpu"),
    (k.unschedulable(NO_CPU, OURS), "Unschedulable", "Insufficient cpu"),
    (k.unschedulable(NO_CLAIM, OURS), "VolumeNotFound", 'claim "claim" not found'.replace("claim ", "")),
    (image_pull(), "ImagePullFailed", "sheaf/runtime:test"),
    (no_sub_path(), "ModelNotFound", "spec.model.uri"),
    (download_failed(), "ModelAccessDenied", "401 Unauthorized"),
    (k.crashed("loading\nValueError: boom\n\n", of=OURS), "ContainerCrashing", "ValueError: boom"),
    (
        k.crashed("12:00:01 ERROR run: lower --max-model-len\n12:00:02 INFO run: exit status 2", of=OURS),
        "ContainerCrashing",
        "lower --max-model-len",
    ),
    (
        k.crashed(
            "engine: /mnt/models has no config.json: MODEL must be a Hugging Face model folder", of=OURS
        ),
        "ModelNotFound",
        "config.json",
    ),
    (k.crashed("", code=137, reason="OOMKilled", of=OURS), "OutOfMemory", "resources.memory"),
]


@pytest.mark.parametrize(("pod", "reason", "part"), PROBLEMS, ids=[p[2] for p in PROBLEMS])
def test_what_keeps_a_first_pod_from_serving_is_said(pod: dict[str, Any], reason: str, part: str) -> None:
    said = judge(with_pods(pod))
    for kind, status in (("Ready", "False"), ("Stalled", "True"), ("Reconciling", "False")):
        assert said[kind][:2] == (status, reason)
        assert part in said[kind][2]


@pytest.mark.parametrize(("pod", "reason", "part"), PROBLEMS, ids=[p[2] for p in PROBLEMS])
def test_a_further_replica_that_cannot_start_is_the_scalers_news(
    pod: dict[str, Any], reason: str, part: str
) -> None:
    """Neither Ready nor Stalled nor Reconciling follow the autoscaler."""
    said = judge(
        with_pods(k.pod("p0", OURS, ready=True), pod, deployment=k.deployment(2)),
        decision=decide(Policy(1, 3), Samples(1, (Sample(0, 0, 0.0),)), History(), 0.0),
    )
    assert said["Ready"][0] == "True"
    assert said["Stalled"][0] == "False"
    assert said["Reconciling"][0] == "False"
    assert said["AutoscalingActive"][:2] == ("False", reason)
    assert part in said["AutoscalingActive"][2]


def test_a_serving_deployment_is_ready_and_settled() -> None:
    said = judge(k.settled(k.spec(), replicas=2, ready=2))
    assert said["Ready"] == ("True", "Serving", "2 of 2 replicas ready")
    assert said["Reconciling"][:2] == ("False", "UpToDate")
    assert said["Stalled"][0] == "False"


def test_a_scale_up_that_loads_changes_nothing_but_the_count() -> None:
    said = judge(k.settled(k.spec(), replicas=3, ready=1))
    assert said["Ready"] == ("True", "Serving", "1 of 3 replicas ready")
    assert said["Reconciling"][0] == "False"


def test_loading_for_the_first_time_is_progress() -> None:
    said = judge(with_pods(UNREADY))
    assert said["Ready"] == ("False", "Progressing", "the model is being loaded")
    assert said["Reconciling"][:2] == ("True", "Progressing")
    assert said["Stalled"][0] == "False"


def test_a_pod_that_is_lost_later_is_no_rollout() -> None:
    status = {"revision": OURS.hash, **REACHED_READY}
    said = judge(with_pods(UNREADY, owner=k.owner(status=status)))
    assert said["Ready"][0] == "False"
    assert said["Reconciling"][0] == "False"


def test_during_a_rollout_the_old_revision_keeps_it_ready() -> None:
    old = k.revision(k.spec(engine={"maxModelLen": 9}))
    said = judge(with_pods(k.pod("a", old, ready=True), UNREADY))
    assert said["Ready"][:2] == ("True", "ServingPreviousRevision")
    assert said["Reconciling"][:2] == ("True", "RollingOut")


def test_a_broken_rollout_is_stalled_while_the_old_pods_serve() -> None:
    old = k.revision(k.spec(engine={"maxModelLen": 9}))
    said = judge(with_pods(k.pod("a", old, ready=True), k.crashed("boom", of=OURS)))
    assert said["Ready"][0] == "True"
    assert said["Stalled"][:2] == ("True", "ContainerCrashing")
    assert said["Reconciling"][0] == "False"


def test_terminating_pods_do_not_count() -> None:
    leaving = k.pod("a", OURS, ready=True)
    leaving["metadata"]["deletionTimestamp"] = NOW
    said = judge(with_pods(leaving, deployment=k.deployment(0)))
    assert said["Ready"][:2] == ("False", "ScaledToZero")


def test_a_write_that_is_still_due_is_reconciling() -> None:
    assert judge(k.settled(k.spec()), applied=False)["Reconciling"][0] == "True"


@pytest.mark.parametrize(
    ("problem", "stalled", "reconciling"),
    [
        (Problem("KServeMissing", "x"), "True", "False"),
        (Problem("NameConflict", "x"), "True", "False"),
        (Problem("Rejected", "x"), "True", "False"),
        (Problem("ApplyFailed", "x"), "False", "True"),
        (Problem("WaitingForDeletion", "x"), "False", "True"),
    ],
)
def test_a_problem_of_the_plan(problem: Problem, stalled: str, reconciling: str) -> None:
    said = judge(Observed(k.owner()), problem=problem, revision=None, applied=False)
    assert said["Ready"][:2] == ("False", problem.reason)
    assert said["Stalled"][0] == stalled
    assert said["Reconciling"][0] == reconciling


def test_suspended() -> None:
    given = k.spec(suspend=True)
    said = judge(k.settled(given, pods=(), deployment=None), given)
    assert said["Ready"][:2] == ("False", "Suspended")
    assert said["Reconciling"][:2] == ("False", "Suspended")
    assert said["Stalled"][0] == "False"
    stopping = judge(k.settled(given), given)
    assert stopping["Reconciling"][:2] == ("True", "Stopping")


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("Suspended", {"suspend": True}),
        ("ScaledToZero", {"replicas": 0, "autoscaling": {"mode": "Disabled"}}),
    ],
)
def test_what_serves_nobody_on_purpose_is_at_rest(reason: str, fields: dict[str, Any]) -> None:
    """What docs/using.md has GitOps tools wait for, whatever kept its pods from serving before."""
    given = k.spec(**fields)
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}
    refused = k.deployment(0, conditions=[failure] if given.suspend else [])
    said = judge(k.settled(given, pods=(), deployment=refused), given)
    assert said["Ready"][:2] == ("False", reason)
    assert said["Reconciling"][0] == "False"
    assert said["Stalled"][0] == "False"


def test_kserves_own_complaint_is_passed_on() -> None:
    service = k.service(OURS)
    service["status"] = {
        "conditions": [{"type": "Ready", "status": "False", "reason": "X", "message": "why"}]
    }
    said = judge(k.settled(k.spec(), inference_service=service, deployment=None, pods=()))
    assert "KServe: why" in said["Ready"][2]


def test_a_paused_rollout_says_so() -> None:
    given = k.spec(engine={"maxModelLen": 9}, rollout={"paused": True})
    said = judge(k.settled(k.spec()), given, revision=OURS)
    assert said["Reconciling"][:2] == ("False", "RolloutPaused")


GIB = 2**30


@pytest.mark.parametrize(
    ("fields", "capacity", "expected"),
    [
        ({}, None, ("Unknown", "NotMeasured")),
        ({}, {"weightsBytes": GIB, "kvCacheTokens": 5000}, ("True", "Measured")),
        (
            {"accelerator": {"memory": "1Gi"}},
            {"weightsBytes": 2 * GIB, "kvCacheTokens": 1},
            ("False", "WeightsExceedMemory"),
        ),
        (
            {"engine": {"maxModelLen": 8192}},
            {"weightsBytes": GIB, "kvCacheTokens": 5000},
            ("False", "KVCacheTooSmall"),
        ),
    ],
)
def test_fits(fields: dict[str, Any], capacity: dict[str, Any] | None, expected: tuple[str, str]) -> None:
    given = k.spec(**fields)
    assert judge(k.settled(given), given, capacity=capacity)["Fits"][:2] == expected


def test_transition_times_move_only_with_the_status() -> None:
    old = "2026-01-01T00:30:00Z"
    before = [
        {"type": "Ready", "status": "True", "reason": "Other", "message": "", "lastTransitionTime": old},
        {"type": "Stalled", "status": "True", "reason": "X", "message": "", "lastTransitionTime": old},
    ]
    observed = k.settled(k.spec(), owner=k.owner(status={"conditions": before}))
    listed = {c["type"]: c for c in conditions(Situation(k.spec(), observed, OURS, LATER))}
    assert listed["Ready"]["lastTransitionTime"] == old
    assert listed["Stalled"]["lastTransitionTime"] == NOW


def test_a_container_that_recovered_is_no_problem() -> None:
    pod = k.crashed("boom", of=OURS)
    entry = pod["status"]["containerStatuses"][0]
    entry |= {"state": {"running": {}}, "ready": True}
    pod["status"]["conditions"][1]["status"] = "True"
    assert judge(with_pods(pod))["Stalled"][0] == "False"
