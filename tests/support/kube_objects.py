"""Kubernetes objects as the API server would hand them out, for tests of pure functions."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired import budget as budgets
from sheaf_operator.desired import render
from sheaf_operator.desired.actions import Apply, Delete, Plan
from sheaf_operator.desired.notes import Notes
from sheaf_operator.desired.revision import Revision

Json = dict[str, Any]
NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)  # an hour after everything began
UID = "11111111-2222-3333-4444-555555555555"
IMAGE = "sheaf/runtime:test"


def spec(**fields: Any) -> LLMDeploymentSpec:
    """A spec from the fields as the user writes them; the model is filled in."""
    return LLMDeploymentSpec.model_validate({"model": {"uri": "pvc://claim/m"}, **fields})


def cpu_spec(**fields: Any) -> LLMDeploymentSpec:
    return spec(accelerator={"count": 0}, **fields)


def owner(name: str = "m", generation: int = 1, status: Json | None = None, **metadata: Any) -> Json:
    meta = {
        "name": name,
        "namespace": "ns",
        "uid": UID,
        "generation": generation,
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        **metadata,
    }
    return {"metadata": meta, "spec": {}, **({"status": status} if status else {})}


def revision(given: LLMDeploymentSpec, name: str = "m") -> Revision:
    return render.revision(name, given, IMAGE)


def revision_with(given: LLMDeploymentSpec, image: str) -> Revision:
    """With another default image of the operator's."""
    return render.revision("m", given, image)


def runtime(
    of: Revision, created: str = "2026-01-01T00:00:01Z", name: str = "m", notes: Notes | None = None
) -> Json:
    annotations = (notes or Notes()).annotations()
    obj = copy.deepcopy(render.serving_runtime(name, "ns", UID, of, annotations))
    obj["metadata"] |= {"creationTimestamp": created, "uid": "runtime-" + of.hash}
    return obj


def service(
    of: Revision, strategy: render.Strategy = "Surge", suspend: bool = False, name: str = "m"
) -> Json:
    obj = copy.deepcopy(render.inference_service(name, "ns", UID, of, strategy, suspend))
    obj["metadata"] |= {"uid": "service-uid"}
    return obj


def budget(given: LLMDeploymentSpec, replicas: int = 1) -> Json | None:
    """The PodDisruptionBudget of `m`, if it is to have one."""
    if not budgets.wanted(given, replicas):
        return None
    obj = budgets.pod_disruption_budget(given, "m", "ns", UID)
    obj["metadata"] |= {"uid": "budget-uid"}
    return obj


def deployment(replicas: int = 1, **status: Any) -> Json:
    return {
        "metadata": {
            "name": "m-predictor",
            "namespace": "ns",
            "uid": "dep-uid",
            "generation": 1,
            "resourceVersion": "42",
        },
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": 1, "replicas": replicas, **status},
    }


def _pod_spec(of: Revision | None) -> Json:
    """What KServe and the API server make of a revision, as far as anybody here reads it."""
    if of is None:
        return {"containers": [{"name": names.CONTAINER}]}
    predictor = copy.deepcopy(of.predictor)
    uri = predictor["model"]["storageUri"]
    claim = uri.removeprefix("pvc://").split("/")[0] if uri.startswith("pvc://") else None
    admitted = [
        {
            "key": f"node.kubernetes.io/{key}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 300,
        }
        for key in ("not-ready", "unreachable")
    ]
    return {
        "containers": [{"name": names.CONTAINER, "resources": predictor["model"]["resources"]}],
        "volumes": [{"name": "model", "persistentVolumeClaim": {"claimName": claim}}] if claim else [],
        "tolerations": predictor.get("tolerations", []) + admitted,
        **{
            key: predictor[key]
            for key in ("nodeSelector", "affinity", "runtimeClassName")
            if key in predictor
        },
    }


def pod(
    name: str = "p1",
    of: Revision | None = None,
    ready: bool = False,
    created: str = "2026-01-01T00:00:10Z",
    template: str = "t1",
    ip: str = "10.0.0.1",
) -> Json:
    """A scheduled pod whose container runs, ready or not."""
    labels = {names.LABEL_DEPLOYMENT: "m", "pod-template-hash": template}
    if of is not None:
        labels[names.LABEL_REVISION] = of.hash
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": created},
        "spec": _pod_spec(of),
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:11Z"},
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "lastTransitionTime": f"2026-01-01T00:00:{31 if ready else 11}Z",
                },
            ],
            "containerStatuses": [
                {
                    "name": names.CONTAINER,
                    "image": IMAGE,
                    "ready": ready,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": "2026-01-01T00:00:13Z"}},
                }
            ],
        },
    }


def unschedulable(message: str, of: Revision | None = None, name: str = "p9") -> Json:
    obj = pod(name, of)
    obj["status"] = {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        ],
    }
    return obj


def crashed(
    message: str = "", code: int = 1, of: Revision | None = None, restarts: int = 1, reason: str = "Error"
) -> Json:
    obj = pod("p8", of)
    entry = obj["status"]["containerStatuses"][0]
    entry |= {
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": code, "reason": reason, "message": message}},
    }
    return obj


def settled(given: LLMDeploymentSpec, *, replicas: int = 1, ready: int = 1, **more: Any) -> Observed:
    """A deployment of `given` in which everything has been written and `ready` pods serve."""
    of = revision(given)
    pods = tuple(pod(f"p{i}", of, ready=i < ready, ip=f"10.0.0.{i}") for i in range(replicas))
    fields: Json = {
        "owner": owner(),
        "inference_service": service(of, suspend=given.suspend),
        "runtimes": (runtime(of),),
        "deployment": deployment(replicas),
        "pods": pods,
        "budget": budget(given, replicas),
    }
    return Observed(**{**fields, **more})


def carried_out(observed: Observed, result: Plan) -> Observed:
    """What the API server has after the plan; KServe's pods are the caller's."""
    runtimes = {r["metadata"]["name"]: r for r in observed.runtimes}
    service = observed.inference_service
    for action in result.actions:
        if isinstance(action, Delete):
            del runtimes[action.name]
        elif isinstance(action, Apply) and action.obj["kind"] == "ServingRuntime":
            name = action.obj["metadata"]["name"]
            made = (
                runtimes[name]["metadata"]
                if name in runtimes
                else {"creationTimestamp": "2026-01-01T00:09:00Z"}
            )
            kept = {key: made[key] for key in ("uid", "creationTimestamp") if key in made}
            obj = copy.deepcopy(action.obj)
            obj["metadata"] = {"uid": "runtime-" + name, **kept, **obj["metadata"]}
            runtimes[name] = obj
        elif isinstance(action, Apply):
            service = copy.deepcopy(action.obj)
            service["metadata"]["uid"] = "service-uid"
    return replace(observed, runtimes=tuple(runtimes.values()), inference_service=service)
