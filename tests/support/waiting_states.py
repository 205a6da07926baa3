"""LLMDeployments in every state that a GitOps tool may find them in, and what it is to think of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import kube_objects as k
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.problems.problem import Problem
from sheaf_operator.status.conditions import conditions
from sheaf_operator.status.situation import Situation

OLD = k.revision(k.spec(engine={"maxModelLen": 9}))
NEW = k.revision(k.spec())


@dataclass(frozen=True)
class Case:
    """`argo`: the health that Argo CD is to show; `flux`: the status of Flux's health check."""

    name: str
    model: dict[str, Any]
    argo: str
    flux: str


def model(observed: Observed, generation: int = 1, **more: Any) -> dict[str, Any]:
    """The LLMDeployment with the conditions that the operator writes for what it observes."""
    given = more.pop("given", k.spec())
    revision = more.pop("revision", k.revision(given))
    listed = conditions(Situation(given, observed, revision, k.NOW, **more))
    return k.owner(generation=generation, status={"observedGeneration": 1, "conditions": listed})


def suspended(**more: Any) -> dict[str, Any]:
    given = k.spec(suspend=True)
    return model(k.settled(given, **more), given=given)


def scaled_to_zero() -> dict[str, Any]:
    given = k.spec(replicas=0, autoscaling={"mode": "Disabled"})
    return model(k.settled(given, pods=(), deployment=k.deployment(0)), given=given)


def waiting_for_a_node(since: str) -> dict[str, Any]:
    pod = k.unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", NEW)
    pod["status"]["conditions"][0]["lastTransitionTime"] = since
    return model(k.settled(k.spec(), pods=(pod,)))


def rolling_out(new: dict[str, Any]) -> dict[str, Any]:
    return model(k.settled(k.spec(), pods=(k.pod("a", OLD, ready=True), new)))


CASES = [
    Case("just applied", k.owner(), "Progressing", "InProgress"),
    Case("loading", model(k.settled(k.spec(), ready=0)), "Progressing", "InProgress"),
    Case("serving", model(k.settled(k.spec())), "Healthy", "Current"),
    Case("a scale-up loads", model(k.settled(k.spec(), replicas=3, ready=1)), "Healthy", "Current"),
    Case("changed since", model(k.settled(k.spec()), generation=2), "Progressing", "InProgress"),
    Case("rolling out", rolling_out(k.pod("b", NEW)), "Progressing", "InProgress"),
    Case("a rollout that fails", rolling_out(k.crashed("boom", of=NEW)), "Degraded", "Failed"),
    Case("its node is ordered", waiting_for_a_node("2026-01-01T00:59:00Z"), "Progressing", "InProgress"),
    Case("no node comes", waiting_for_a_node("2026-01-01T00:40:00Z"), "Degraded", "Failed"),
    Case("stopping", suspended(), "Progressing", "InProgress"),
    Case("suspended", suspended(pods=(), deployment=None), "Suspended", "Current"),
    Case("scaled to zero", scaled_to_zero(), "Suspended", "Current"),
    Case(
        "without KServe",
        model(Observed(k.owner()), problem=Problem("KServeMissing", "x"), revision=None, applied=False),
        "Degraded",
        "Failed",
    ),
]
