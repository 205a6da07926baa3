"""What the operator takes for its own: never an object because of its name or its labels."""

from __future__ import annotations

from typing import Any

import pytest
from localcluster.cluster import Cluster, Object
from sheaf_e2e.deployed import LABEL, Deployed, is_ready, manifest

pytestmark = pytest.mark.cluster
SERVICE = "serving.kserve.io/v1beta1"
ROUND = 60  # seconds in which an operator that waits looks twice


def apply(cluster: Cluster, name: str, namespace: str, **spec: Any) -> Deployed:
    resource = manifest(name, namespace, "pvc://absent", 512, pod={"image": "nowhere/nothing:1"}, **spec)
    return Deployed(cluster, resource)


def foreign_service(name: str, namespace: str) -> Object:
    annotations = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "external",
    }
    container = {"name": "kserve-container", "image": "nowhere/nothing:1"}
    return {
        "apiVersion": SERVICE,
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"predictor": {"containers": [container], "labels": {LABEL: name}}},
    }


def test_the_deployment_of_a_foreign_service_is_neither_scaled_nor_counted(
    operator: Cluster, namespace: str
) -> None:
    """Not even when its pods carry our label."""
    operator.api.apply(foreign_service("taken", namespace))
    operator.api.wait_for(
        "apps/v1",
        "Deployment",
        bool,
        namespace=namespace,
        name="taken-predictor",
        timeout=30,
        describe="made",
    )
    taken = apply(operator, "taken", namespace, autoscaling={"minReplicas": 3, "maxReplicas": 5})
    with taken.replica_counts() as counts:
        taken.wait_condition("Stalled", "True", "NameConflict")
        taken.wait_counted("observations", 2, ROUND)
    assert counts == [1]
    status = taken.get()["status"]
    assert (status["replicas"], status["readyReplicas"]) == (0, 0)


def test_a_pod_with_our_labels_is_no_replica(operator: Cluster, namespace: str) -> None:
    """As `kubectl debug --copy-to --keep-labels` leaves one, ready while no replica is."""
    model = apply(operator, "copied", namespace)
    model.wait_condition("Ready", "False", "VolumeNotFound")
    replica = model.pods()[0]
    kept = {k: v for k, v in replica["metadata"]["labels"].items() if k not in ("app", "pod-template-hash")}
    sleeper = {
        "name": "kserve-container",
        "image": "sheaf/tool:1",
        "args": ["-c", "import time; time.sleep(3600)"],
    }
    copy = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "copy", "namespace": namespace, "labels": kept},
        "spec": {"containers": [sleeper], "terminationGracePeriodSeconds": 0},
    }
    operator.api.apply(copy)
    model.wait_pod("copy", is_ready, "it is ready")
    model.wait_looked_at()
    status = model.get()["status"]
    assert (status["replicas"], status["readyReplicas"]) == (1, 0)


def test_a_deployment_that_lost_its_service_is_not_scaled_and_that_is_said(
    operator: Cluster, namespace: str
) -> None:
    """KServe takes it for its own by its name, and does not give it its owner back as long as it need not."""
    model = apply(operator, "lost", namespace, autoscaling={"minReplicas": 1, "maxReplicas": 5})
    model.wait_deployment()
    model.wait_looked_at()
    service = (SERVICE, "InferenceService", "lost", namespace)
    before = operator.api.get(*service)["metadata"]["uid"]
    operator.kubectl("delete", "inferenceservice", "lost", "-n", namespace, "--cascade=orphan")
    told = model.wait_condition("Ready", "False", "DeploymentOrphaned")
    for words in ("lost-predictor", "neither counted nor scaled", "rollout.restartedAt"):
        assert words in told["message"]
    assert operator.api.get(*service)["metadata"]["uid"] != before
    with model.replica_counts() as counts:
        model.patch({"autoscaling": {"minReplicas": 3}})
        model.wait(lambda s: s["observedGeneration"] == 2, "the change is seen")
        model.wait_looked_at()
    assert counts == [1]
    assert model.get()["status"]["replicas"] == 0
    # What the message says helps.
    model.patch({"rollout": {"restartedAt": "2026-01-01T00:00:00Z"}})
    model.wait_count(3)
    model.wait_condition("Ready", "False", "VolumeNotFound")
