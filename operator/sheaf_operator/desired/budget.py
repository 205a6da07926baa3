"""The PodDisruptionBudget: how many replicas a drain of nodes may take at the same time. Pure."""

from __future__ import annotations

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.desired import render
from sheaf_operator.desired.actions import Action, Apply, Delete
from sheaf_operator.desired.drift import of_object


def actions(spec: LLMDeploymentSpec, observed: Observed) -> list[Action]:
    """None beside somebody else's: Kubernetes evicts no pod that two budgets select."""
    there = observed.budget
    if observed.guarded or not wanted(spec, observed.replicas or 0):
        if there is None:
            return []
        metadata = there["metadata"]
        return [Delete("PodDisruptionBudget", metadata["name"], metadata["uid"])]
    desired = pod_disruption_budget(spec, observed.name, observed.namespace, observed.uid)
    if there is not None and not of_object(there, desired):
        return []
    return [Apply(desired, create=there is None)]


def wanted(spec: LLMDeploymentSpec, replicas: int) -> bool:
    """With a single replica every budget is either idle or a node that can never be drained."""
    scaled = spec.autoscaling.max_replicas if spec.autoscaling.mode in ("Builtin", "External") else 0
    most = max(scaled, spec.replicas or 0, replicas)
    return spec.disruption_budget.mode == "Auto" and most > 1 and not spec.suspend


def pod_disruption_budget(spec: LLMDeploymentSpec, name: str, namespace: str, uid: str) -> Json:
    most = spec.disruption_budget.max_unavailable
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": names.budget(name),
            "namespace": namespace,
            "labels": names.owner_labels(name),
            "ownerReferences": [render.owner_reference(name, uid)],
        },
        "spec": {
            "maxUnavailable": most if most.endswith("%") else int(most),
            "selector": {"matchLabels": {names.LABEL_DEPLOYMENT: name}},
            # A pod that does not serve holds no drain up.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
