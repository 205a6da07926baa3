"""Pods without a node or a volume: the cause in the scheduler's words or an Event's, and when it stalls."""

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.problems.cause import Question, questions
from sheaf_operator.problems.problem import Lack, Problem
from standstill import GPU, OURS, Json, after, event, found, said

TAINTS = ", ".join(
    f"{n} node(s) had untolerated taint {{pool-{n}.example.com/dedicated: yes}}" for n in range(3, 60)
)
LONG = (
    f"0/600 nodes are available: 12 node(s) had untolerated taint {{a: b}}, {TAINTS}, 2 Insufficient {GPU}."
)
TYPO = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes"


def test_what_matters_in_a_long_message_is_found_and_shown_first() -> None:
    pod = k.unschedulable(LONG, OURS)
    pod["spec"]["containers"][0]["resources"] = {"limits": {GPU: "2"}}
    problem = found(pod)
    assert problem is not None
    assert problem.reason == "InsufficientGPU"
    assert f"asks for 2 {GPU}" in problem.said
    assert f"0/600 nodes are available: 2 Insufficient {GPU}, " in problem.said
    assert len(problem.said) < 800
    assert problem.lacks == (Lack("Resource", GPU),)


def test_what_preemption_and_claims_would_do_is_left_out() -> None:
    """As Kubernetes says it now that devices may be claims."""
    clauses = "1 node(s) had untolerated taint(s), 2 Insufficient cpu"
    tail = ". no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful."
    problem = found(k.unschedulable(f"0/3 nodes are available: {clauses}{tail}", OURS))
    assert problem is not None
    assert problem.said.endswith(": 2 Insufficient cpu, 1 node(s) had untolerated taint(s)")


@pytest.mark.parametrize(
    ("seconds", "stalled", "reconciling"),
    [(4, "False", "True"), (599, "False", "True"), (1800, "True", "False")],
)
def test_a_node_that_has_to_come_is_no_stall_before_the_patience_ends(
    seconds: float, stalled: str, reconciling: str
) -> None:
    told = said(k.unschedulable(TYPO, OURS), at=seconds)
    assert told["Ready"][:2] == ("False", "Unschedulable")
    assert told["Stalled"][0] == stalled
    assert told["Reconciling"][:2] == (reconciling, "Unschedulable")
    assert "didn't match Pod's node affinity/selector" in told["Reconciling"][2]
    assert "preemption" not in told["Reconciling"][2]


SCHEDULING = {
    "selector": (TYPO, "Unschedulable", ()),
    "cpu": ("0/1 nodes are available: 1 Insufficient cpu.", "Unschedulable", (Lack("Resource", "cpu"),)),
    "claim": ('0/1 nodes are available: persistentvolumeclaim "c" not found.', "VolumeNotFound", ()),
    "unbound": (
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        "VolumeNotBound",
        (),
    ),
    "zone": ("0/2 nodes are available: 2 node(s) had volume node affinity conflict.", "VolumeElsewhere", ()),
    "zone, in newer words": (
        "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity.",
        "VolumeElsewhere",
        (),
    ),
    "a volume that is not made in time": (
        'running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded',
        "VolumeNotBound",
        (),
    ),
    "zone and card": (
        f"0/2 nodes are available: 1 Insufficient {GPU}, 1 node(s) had volume node affinity conflict.",
        "InsufficientGPU",
        (Lack("Resource", GPU),),
    ),
    "one pod only": (
        "0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and"
        " ReadWriteOncePod access mode.",
        "VolumeInUse",
        (Lack("Volume", "model-store"),),
    ),
}


@pytest.mark.parametrize(("message", "reason", "lacks"), SCHEDULING.values(), ids=SCHEDULING)
def test_what_the_scheduler_says(message: str, reason: str, lacks: tuple[Lack, ...]) -> None:
    pod = k.unschedulable(message, OURS)
    pod["spec"]["volumes"] = [{"name": "m", "persistentVolumeClaim": {"claimName": "model-store"}}]
    problem = found(pod)
    assert problem is not None
    assert (problem.reason, problem.lacks) == (reason, lacks)


def test_a_pending_claim_tells_why_itself() -> None:
    pod = k.unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.", OURS)
    pod["spec"]["volumes"] = [{"name": "m", "persistentVolumeClaim": {"claimName": "store"}}]
    observed = k.settled(k.spec(), pods=(pod,))
    assert questions(observed, OURS.hash, after(5)) == [Question("PersistentVolumeClaim", "store")]
    why = event("PersistentVolumeClaim", "store", "ProvisioningFailed", 'storageclass "gp3" not found')
    problem = found(pod, events=(why,))
    assert problem is not None
    assert 'claim store: storageclass "gp3" not found' in problem.said


def test_however_long_the_words_are_what_to_do_is_not_cut_off() -> None:
    text = "terminate called after throwing an instance of std::bad_alloc " + "x" * 3000
    pod = k.crashed(text, of=OURS, restarts=7)
    pod["metadata"]["name"] = "p" * 253
    message = said(pod)["Ready"][2]
    assert len(message) <= 1000
    assert message.endswith("for one of spec.pod (docs/conditions.md#outofmemory)")


def test_gates_and_absent_schedulers() -> None:
    gated = k.unschedulable("Scheduling is blocked due to non-empty scheduling gates", OURS)
    gated["status"]["conditions"][0]["reason"] = "SchedulingGated"
    gated["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    told = said(gated)
    assert told["Ready"][:2] == ("False", "SchedulingGated")
    assert "kueue.x-k8s.io/admission" in told["Ready"][2]
    assert told["Stalled"][0] == "False"
    unseen = k.pod("p1", OURS)
    unseen["status"] = {"phase": "Pending"}
    assert found(unseen, at=30) is None
    assert (found(unseen) or Problem("Healthy", "")).reason == "NotScheduled"


def creating(claim: str | None = "model-store", told: bool = True) -> Json:
    """A pod that has a node and no sandbox yet."""
    pod = k.pod("p1", OURS)
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    pod["status"]["containerStatuses"] = [{"name": names.CONTAINER, "ready": False, "state": waiting}]
    if told:
        pod["status"]["conditions"].append({"type": "PodReadyToStartContainers", "status": "False"})
    volume = {"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": claim}}
    pod["spec"]["volumes"] = [volume] if claim else []
    return pod


def test_a_pod_that_waits_for_its_volume_says_so_after_a_while() -> None:
    assert found(creating(), at=60) is None
    told = said(creating(), at=300)
    assert told["Ready"][:2] == ("False", "VolumeNotMounted")
    assert "model-store" in told["Ready"][2]
    assert "ReadWriteMany" in told["Ready"][2]
    assert told["Stalled"][0] == "False"
    assert said(creating(), at=900)["Stalled"][:2] == ("True", "VolumeNotMounted")
    assert (found(creating(claim=None), at=300) or Problem("Healthy", "")).reason == "ContainersNotStarted"


def test_a_large_image_on_an_old_cluster_is_no_volume_that_waits() -> None:
    assert found(creating(told=False), at=3600) is None


VOLUMES = {
    "kubernetes#48968": (
        "FailedAttachVolume",
        'Multi-Attach error for volume "pvc-2558" Volume is already exclusively attached to one node',
        "VolumeInUse",
    ),
    "withings-sync#248": (
        "FailedAttachVolume",
        'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) old',
        "VolumeInUse",
    ),
    "kubernetes#82453": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "pvc-eb": Volume is already attached by pod default/old',
        "VolumeInUse",
    ),
    "kubernetes#54263": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "pvc-d3": rbd: image x is locked by other nodes',
        "VolumeInUse",
    ),
    "nfs": ("FailedMount", "mount failed: exit status 32: access denied by server", "VolumeNotMounted"),
    "driver": ("FailedMount", "driver name nfs.csi.k8s.io not found in the list", "VolumeNotMounted"),
    "network": ("FailedCreatePodSandBox", "plugin type=calico failed: no IPs", "SandboxFailed"),
}


def test_rook_7282_the_cause_is_told_once_and_its_consequence_again_and_again() -> None:
    held = event(
        "Pod", "p1", "FailedAttachVolume", "Multi-Attach error: Volume is already used by pod(s) old"
    )
    late = "Unable to attach or mount volumes: unmounted volumes=[m]: timed out waiting for the condition"
    events = (held, event("Pod", "p1", "FailedMount", late, at="2026-01-01T00:17:00Z"))
    problem = found(creating(), at=1200, events=events)
    assert problem is not None
    assert problem.reason == "VolumeInUse"


def test_kubernetes_53059_the_pod_of_a_lost_node_holds_what_the_new_one_lacks() -> None:
    old = k.pod("old", OURS)
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:05:00Z"
    old["spec"]["nodeName"] = "lost-1"
    held = event(
        "Pod", "p1", "FailedAttachVolume", "Multi-Attach error: Volume is already used by pod(s) old"
    )
    problem = found(creating(), old, at=1200, events=(held,))
    assert problem is not None
    assert problem.reason == "PodStuckTerminating"
    assert "lost-1" in problem.said
    assert "Multi-Attach" in problem.said


@pytest.mark.parametrize(("kind", "message", "reason"), VOLUMES.values(), ids=VOLUMES)
def test_the_pods_events_tell_what_its_status_does_not(kind: str, message: str, reason: str) -> None:
    observed = k.settled(k.spec(), pods=(creating(),))
    assert questions(observed, OURS.hash, after(5)) == []
    assert questions(observed, OURS.hash, after(30)) == [Question("Pod", "p1")]
    problem = found(creating(), at=30, events=(event("Pod", "p1", kind, message),))
    assert problem is not None
    assert problem.reason == reason
    assert message in problem.said
    assert problem.lacks == ((Lack("Volume", "model-store"),) if reason == "VolumeInUse" else ())


def test_blueking_paas_1414_an_event_may_lack_what_most_have() -> None:
    """Reason, message and times are optional in an Event; others write them too."""
    bare = {"involvedObject": {"kind": "Pod", "name": "p1"}, "type": "Warning"}
    told = event("Pod", "p1", "FailedMount", "mount failed: exit status 32")
    problem = found(
        creating(), at=30, events=({**bare, "reason": "FailedMount"}, {**bare, "message": "x"}, told)
    )
    assert problem is not None
    assert "exit status 32" in problem.said


def test_at_rest_nobody_is_asked() -> None:
    assert questions(k.settled(k.spec(), replicas=2, ready=2), OURS.hash, after(10**6)) == []
    assert questions(k.settled(k.spec(), replicas=2, ready=1), OURS.hash, after(10**6)) == []


def test_a_message_ends_with_what_to_do_and_where_to_read_more() -> None:
    told = said(k.unschedulable(TYPO, OURS))["Ready"][2]
    assert told.endswith("pod.affinity or pod.tolerations (docs/conditions.md#unschedulable)")
