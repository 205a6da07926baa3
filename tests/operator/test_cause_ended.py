"""Pods that the node ended or refused, and pods that do not end."""

from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.status.conditions import conditions
from sheaf_operator.status.situation import Situation
from standstill import GPU, OURS, Json, after, found, said


def ends(name: str = "p1", **status: Any) -> Json:
    """A pod that the kubelet ended or refused."""
    pod = k.pod(name, OURS)
    pod["status"] = {"phase": "Failed", "startTime": "2026-01-01T00:59:00Z", **status}
    return pod


EVICTED = {
    "reason": "Evicted",
    "message": 'Usage of EmptyDir volume "kserve-provision-location" exceeds the limit "20Gi". ',
}
ENDED = {
    "kserve#3792": (EVICTED, "Evicted", "kserve-provision-location"),
    "LMCache#1399": (
        {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."},
        "Evicted",
        "ephemeral-storage",
    ),
    "k8s-device-plugin#231": (
        {
            "reason": "UnexpectedAdmissionError",
            "message": "Pod Allocate failed due to device plugin rpc failed: GPU is lost",
        },
        "UnexpectedAdmissionError",
        "GPU is lost",
    ),
    "instaslice-operator#140": (
        {
            "reason": "UnexpectedAdmissionError",
            "message": "Pod was rejected: Allocate failed due to no healthy devices present",
        },
        "UnexpectedAdmissionError",
        "no healthy devices",
    ),
    "OutOfcpu": (
        {"reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"},
        "NodeRefusedPod",
        "OutOfcpu",
    ),
    "OutOfgpu": (
        {"reason": f"OutOf{GPU}", "message": "Node didn't have enough"},
        "NodeRefusedPod",
        f"OutOf{GPU}",
    ),
    "NodeAffinity": (
        {"reason": "NodeAffinity", "message": "Predicate NodeAffinity failed"},
        "NodeRefusedPod",
        "Predicate NodeAffinity failed",
    ),
    "kubernetes#72593": (
        {"reason": "SysctlForbidden", "message": "forbidden sysctl"},
        "NodeRefusedPod",
        "sysctl",
    ),
    "topology": (
        {
            "reason": "TopologyAffinityError",
            "message": "Resources cannot be allocated with Topology locality",
        },
        "NodeRefusedPod",
        "Topology locality",
    ),
    "shutdown": (
        {"reason": "Terminated", "message": "Pod was terminated in response to imminent node shutdown."},
        "NodeShutdown",
        "imminent node shutdown",
    ),
    "preempted": (
        {
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "PreemptionByScheduler",
                    "message": "default-scheduler: preempting to accommodate a higher priority pod",
                    "lastTransitionTime": "2026-01-01T00:59:00Z",
                }
            ]
        },
        "Preempted",
        "higher priority",
    ),
    "critical": (
        {"reason": "Preempting", "message": "Preempted in order to admit critical pod"},
        "Preempted",
        "critical",
    ),
    "deadline": (
        {
            "reason": "DeadlineExceeded",
            "message": "Pod was active on the node longer than the specified deadline",
        },
        "DeadlineExceeded",
        "deadline",
    ),
    "anything": ({"message": "who knows"}, "PodFailed", "who knows"),
}


@pytest.mark.parametrize(("status", "reason", "part"), ENDED.values(), ids=ENDED)
def test_a_pod_that_ended_is_the_cause_if_none_serves(status: Json, reason: str, part: str) -> None:
    told = said(ends(**status))
    assert told["Ready"][:2] == ("False", reason)
    assert part in told["Ready"][2]
    if "reason" in status:
        assert status["reason"] in told["Ready"][2]
    lasting = reason not in ("NodeShutdown", "NodeLost")
    assert told["Stalled"][0] == ("True" if lasting else "False")


def test_pods_that_are_evicted_again_and_again_are_a_stall_though_the_next_one_starts() -> None:
    one, two, next_one = ends("p1", **EVICTED), ends("p2", **EVICTED), k.pod("p3", OURS)
    two["metadata"]["creationTimestamp"] = "2026-01-01T00:30:00Z"
    next_one["metadata"]["creationTimestamp"] = "2026-01-01T01:00:00Z"
    told = said(one, two, next_one)
    assert told["Stalled"][:2] == ("True", "Evicted")
    assert "2 pods in a row" in told["Ready"][2]


def test_what_ended_before_is_told_where_the_next_one_finds_no_place() -> None:
    """A node that evicts is tainted, one that lost its card has too few: both are worth knowing."""
    rejected = {"reason": "UnexpectedAdmissionError", "message": "Allocate failed: GPU is lost"}
    forgotten = ends("p2")
    forgotten["metadata"]["creationTimestamp"] = "2026-01-01T00:30:00Z"
    short = k.unschedulable(f"0/1 nodes are available: 1 Insufficient {GPU}.", OURS)
    told = said(ends("p1", **rejected), forgotten, short)
    assert told["Stalled"][:2] == ("True", "InsufficientGPU")
    assert "ended with UnexpectedAdmissionError (2 pods in a row): Allocate failed" in told["Stalled"][2]
    assert told["Stalled"][2].endswith("(docs/conditions.md#insufficientgpu)")


def test_one_that_ended_is_chance_while_its_successor_starts() -> None:
    next_one = k.pod("p2", OURS)
    next_one["metadata"]["creationTimestamp"] = "2026-01-01T00:59:30Z"
    told = said(ends("p1", **EVICTED), next_one)
    assert told["Ready"][:2] == ("False", "Evicted")
    assert told["Stalled"][0] == "False"


def test_what_ended_before_one_that_serves_is_history() -> None:
    serving = k.pod("p2", OURS, ready=True)
    serving["metadata"]["creationTimestamp"] = "2026-01-01T00:59:30Z"
    assert found(ends("p1", **EVICTED), serving) is None
    long_ago = ends("p1", startTime="2026-01-01T00:01:00Z", reason="Evicted", message="x")
    assert found(long_ago, k.pod("p2", OURS)) is None


def test_a_pod_that_hangs_in_its_end_is_named() -> None:
    pod = k.pod("p1", OURS, ready=True)
    pod["metadata"] |= {"deletionTimestamp": "2026-01-01T00:20:00Z", "finalizers": ["example.com/hold"]}
    pod["spec"]["nodeName"] = "lost-1"
    told = said(pod)
    assert told["Ready"][:2] == ("False", "PodStuckTerminating")
    assert "lost-1" in told["Ready"][2]
    assert "example.com/hold" in told["Ready"][2]
    given = k.spec(suspend=True)
    listed = conditions(Situation(given, k.settled(given, pods=(pod,)), OURS, after(3600)))
    assert {c["type"]: c["reason"] for c in listed}["Stalled"] == "PodStuckTerminating"
    assert found(pod, at=1195) is None


def test_a_row_of_ends_began_with_the_first_whatever_became_of_the_last() -> None:
    """Refused again and again, and now no node fits: Stalled does not turn False in between."""
    waits = k.unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint {a: b}.", OURS)
    waits["metadata"]["creationTimestamp"] = "2026-01-01T00:20:00Z"
    waits["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:59:59Z"
    problem = found(waits, ends("p1", **EVICTED), ends("p2", **EVICTED))
    assert problem is not None
    assert problem.reason == "Unschedulable"
    assert problem.since == after(0)
    alone = found(waits, ends("p1", **EVICTED))  # chance: a node may be on its way
    assert alone is not None
    assert alone.since == after(3589)


def _told(given: Any, *pods: Json, replicas: int) -> dict[str, tuple[str, str]]:
    observed = k.settled(given, replicas=replicas, pods=pods)
    listed = conditions(Situation(given, observed, OURS, after(3600)))
    return {c["type"]: (c["status"], c["reason"]) for c in listed}


def test_who_wants_no_pods_is_not_told_why_there_are_none() -> None:
    """kubernetes#91672: failed pods stay where they are, also when their Deployment is scaled to zero."""
    given = k.spec(replicas=0, autoscaling={"mode": "Disabled"})
    told = _told(given, ends("p1", **EVICTED), ends("p2", **EVICTED), replicas=0)
    assert told["Ready"] == ("False", "ScaledToZero")
    assert told["Stalled"] == ("False", "Healthy")
    assert told["Reconciling"] == ("False", "UpToDate")


def test_an_end_is_history_once_all_replicas_serve() -> None:
    """The third replica was evicted, and then two were enough: nothing keeps a further one from serving."""
    evicted = ends("p3", **EVICTED)
    evicted["metadata"]["creationTimestamp"] = "2026-01-01T00:58:00Z"
    serving = [k.pod(name, OURS, ready=True) for name in ("p1", "p2")]
    assert found(*serving, evicted, deployment=k.deployment(3)).reason == "Evicted"
    assert found(*serving, evicted, deployment=k.deployment(2)) is None
