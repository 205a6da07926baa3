"""How a change reaches the pods: which old pod may stop before its successor serves. Pure."""

from __future__ import annotations

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed, revision_of
from sheaf_operator.desired import render
from sheaf_operator.desired.drift import covers
from sheaf_operator.desired.revision import Revision
from sheaf_operator.problems import pod as problems


def choose_strategy(spec: LLMDeploymentSpec, observed: Observed, wanted: Revision) -> render.Strategy:
    """Auto surges; while a rollout is stuck for want of a device it gives up an old pod first.

    That choice stays until no old pod is left, so the strategy does not flap.
    """
    if spec.rollout.strategy != "Auto":
        return spec.rollout.strategy
    old = [pod for pod in observed.live_pods if revision_of(pod) != wanted.hash]
    if not old:
        return "Surge"
    new = [pod for pod in observed.live_pods if revision_of(pod) == wanted.hash]
    live: Json = (observed.inference_service or {}).get("spec", {}).get("predictor", {})
    already = covers(live.get("deploymentStrategy"), render.STRATEGIES["GiveUpFirst"])
    found = [problems.of_pod(pod, spec.accelerator.resource_name) for pod in new]
    stuck = any(p and p.reason in ("InsufficientGPU", "Unschedulable") for p in found)
    return "GiveUpFirst" if stuck or already else "Surge"
