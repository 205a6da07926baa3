"""GitOps: another manager applies a model again and again, and finds every time that nothing has changed."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from localcluster.cluster import Cluster, Object
from sheaf_e2e.operator_faults import OperatorFaults

pytestmark = pytest.mark.cluster
API = "sheaf.dev/v1alpha1"
MANAGER = "argocd-controller"
# What Argo CD and Flux put on what they apply, and look for to find what they may prune.
TRACKING = {
    "labels": {"app.kubernetes.io/instance": "models", "kustomize.toolkit.fluxcd.io/name": "models"},
    "annotations": {"argocd.argoproj.io/tracking-id": "models:sheaf.dev/LLMDeployment:ml/tracked"},
}


def manifest(namespace: str, max_model_len: int = 512) -> Object:
    return {
        "apiVersion": API,
        "kind": "LLMDeployment",
        "metadata": {"name": "tracked", "namespace": namespace, **TRACKING},
        "spec": {
            "model": {"uri": "pvc://smollm2"},
            "engine": {
                "maxModelLen": max_model_len,
                "extraArgs": ["--max-num-seqs", "1", "--kv-cache-memory", "64MiB"],
            },
            "accelerator": {"count": 0},
            "resources": {"cpu": "250m", "memory": "2Gi"},
            "autoscaling": {
                "maxReplicas": 2,
                "metrics": [{"type": "QueueDepth", "target": 1}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
            },
            "termination": {"drainTimeoutSeconds": 5},
        },
    }


def apply(cluster: Cluster, wanted: Object) -> Object:
    """Server-side apply that takes no field from anybody: a conflict is an error."""
    path = cluster.api.path(API, "LLMDeployment", wanted["metadata"]["namespace"], "tracked")
    answer = cluster.api.request(
        "PATCH",
        path,
        params={"fieldManager": MANAGER, "force": "false"},
        headers={"Content-Type": "application/apply-patch+yaml"},
        content=json.dumps(wanted),
    )
    return dict(answer.json())


def in_user_hands(obj: Object) -> Object:
    """All of the object but its status and what the API server counts."""
    kept = copy.deepcopy(obj)
    kept.pop("status", None)
    kept["metadata"].pop("resourceVersion")
    kept["metadata"]["managedFields"] = [
        entry for entry in kept["metadata"]["managedFields"] if entry.get("subresource") != "status"
    ]
    return kept


def test_applying_again_changes_nothing(
    operator: Cluster, faults: OperatorFaults, namespace: str, model_claim: str
) -> None:
    def wait(judge: Callable[[Object], Any], describe: str) -> Object:
        found: Object = operator.api.wait_for(
            API,
            "LLMDeployment",
            lambda seen: next((o for o in seen if o.get("status") and judge(o)), None),
            namespace=namespace,
            name="tracked",
            timeout=180,
            describe=describe,
        )
        return found

    def serving(obj: Object) -> bool:
        return any(
            (c["type"], c["status"]) == ("Ready", "True")
            and c.get("observedGeneration") == obj["metadata"]["generation"]
            for c in obj["status"].get("conditions", [])
        )

    def settled(obj: Object) -> bool:
        reconciling = [c["status"] for c in obj["status"]["conditions"] if c["type"] == "Reconciling"]
        return serving(obj) and reconciling == ["False"]

    def again(wanted: Object, first: Object) -> None:
        """Apply the same, and compare with what the first application gave."""
        applied = apply(operator, wanted)
        assert in_user_hands(applied) == in_user_hands(first)
        writers = {(e["manager"], e.get("subresource")) for e in applied["metadata"]["managedFields"]}
        assert writers == {(MANAGER, None), ("sheaf-operator", "status")}
        assert "finalizers" not in applied["metadata"]

    wanted = manifest(namespace)
    first = apply(operator, wanted)
    wait(serving, "the model serves")
    again(wanted, first)

    # A scale-up, by real load.
    url = operator.url("tracked-predictor", namespace) + "/v1/completions"
    body = {"model": "tracked", "prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True}
    codes: list[int] = []

    def ask() -> None:
        codes.append(httpx.post(url, json=body, timeout=300, trust_env=False).status_code)

    users = [threading.Thread(target=ask) for _ in range(5)]
    for user in users:
        user.start()
    try:
        wait(lambda o: o["status"].get("replicas") == 2, "a second replica was asked for")
        again(wanted, first)
        wait(lambda o: o["status"].get("readyReplicas") == 2, "the second replica serves")
    finally:
        for user in users:
            user.join()
    assert codes == [200] * len(users)
    again(wanted, first)

    # A restart of the operator.
    faults.kill_operator()
    operator.wait_deployment("sheaf-operator", "sheaf-system")
    wait(serving, "the model still serves")
    again(wanted, first)

    # A rollout, which is the manager's own change.
    old = operator.api.get(API, "LLMDeployment", "tracked", namespace)["status"]["revision"]
    wanted = manifest(namespace, max_model_len=256)
    first = apply(operator, wanted)
    again(wanted, first)
    wait(lambda o: settled(o) and o["status"]["revision"] != old, "the new revision serves")
    again(wanted, first)

    # Nothing that we made looks like something that the manager may prune.
    kinds = "inferenceservices,servingruntimes,deployments,replicasets,services,pods"
    children = json.loads(operator.kubectl("get", kinds, "-n", namespace, "-o", "json"))["items"]
    assert {"InferenceService", "ServingRuntime", "Deployment", "Pod"} <= {c["kind"] for c in children}
    for child in children:
        for kind, tracked in TRACKING.items():
            assert not tracked.keys() & child["metadata"].get(kind, {}).keys(), child["metadata"]["name"]
