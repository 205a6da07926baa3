"""Rollouts that cannot finish end nothing that serves; others may decide the count; images come in turn."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from localcluster.cluster import Cluster, wait_until
from sheaf_e2e.deployed import Deployed, conditions, manifest, scaling
from sheaf_e2e.release import helm
from sheaf_e2e.streams import Streams

pytestmark = pytest.mark.cluster
LOAD = {"prompt_tokens": 32, "output_tokens": 100, "rate": 3.0}
QUICK = {"scaleDown": {"stabilizationWindowSeconds": 0}}


def serve(cluster: Cluster, name: str, namespace: str, tiny: Path, **spec: Any) -> Deployed:
    cluster.model_volume("tiny", tiny, namespace)
    return deploy(cluster, name, namespace, **spec)


def deploy(cluster: Cluster, name: str, namespace: str, **spec: Any) -> Deployed:
    spec = {"termination": {"drainTimeoutSeconds": 10}, "resources": {"cpu": "100m", "memory": "1Gi"}, **spec}
    return Deployed(
        cluster, manifest(name, namespace, "pvc://tiny", 4096, "--kv-cache-memory", "16MiB", **spec)
    )


@pytest.fixture
def model(operator: Cluster, namespace: str, tiny_model: Path) -> Deployed:
    made = serve(operator, "model", namespace, tiny_model)
    made.wait_ready(1)
    return made


def strategy(model: Deployed) -> Any:
    return model.wait_deployment()["spec"]["strategy"]


SURGE = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_a_misspelt_selector_ends_nothing(model: Deployed) -> None:
    (old,) = model.pod_names()
    with Streams(model.url, "model", **LOAD) as streams:
        model.patch({"pod": {"nodeSelector": {"pool": "nowhere"}}, "rollout": {"patienceSeconds": 0}})
        said = model.wait_condition("Reconciling", "True", "Unschedulable")
        assert "didn't match Pod's node affinity/selector" in said["message"]
        model.wait_condition("Ready", "True", "ServingPreviousRevision")
        model.wait_looked_at()
        streams.wait_answers(5)
        assert strategy(model) == SURGE
        assert old in model.pod_names()
        # Corrected, nothing has happened: the old revision is found again.
        model.patch({"pod": {"nodeSelector": None}})
        model.wait(lambda s: conditions(s)["Reconciling"]["reason"] == "UpToDate", "all is as it was")
    assert model.pod_names() == [old]
    assert streams.failures == []


def test_the_last_replica_is_kept_for_want_of_room_and_that_is_said(
    operator: Cluster, namespace: str, tiny_model: Path
) -> None:
    """The pod takes most of the node's CPU, so two of it never fit."""
    node = operator.api.list_objects("v1", "Node")[0]
    cores = int(node["status"]["allocatable"]["cpu"])
    model = serve(
        operator,
        "model",
        namespace,
        tiny_model,
        resources={"cpu": f"{cores * 550}m", "memory": "1Gi"},
        pod={
            "nodeSelector": {"kubernetes.io/hostname": node["metadata"]["labels"]["kubernetes.io/hostname"]}
        },
        rollout={"patienceSeconds": 0},
    )
    model.wait_ready(1)
    (old,) = model.pod_names()
    model.patch({"engine": {"maxModelLen": 2048}})
    said = model.wait_condition("Reconciling", "True", "NeedsCapacity")
    for words in ("Insufficient cpu", "add room for one more replica", "Recreate"):
        assert words in said["message"]
    model.wait_condition("Ready", "True", "ServingPreviousRevision")
    model.wait_looked_at()
    assert strategy(model) == SURGE
    assert old in model.pod_names()
    # The user's word: stop it first.
    model.patch({"rollout": {"strategy": "Recreate"}})
    model.wait_gone(old)
    model.wait_condition("Ready", "True", "Serving", timeout=120)


def test_a_revision_that_crashes_is_rolled_back_and_no_request_is_lost(model: Deployed) -> None:
    (old,) = model.pod_names()
    revision = model.get()["status"]["revision"]
    with Streams(model.url, "model", **LOAD) as streams:
        model.patch({"engine": {"extraArgs": ["--no-such-flag"]}, "rollout": {"deadlineSeconds": 30}})
        said = model.wait_condition("RolledBack", "True", timeout=180)
        assert "--no-such-flag" in said["message"]
        assert "restartedAt" in said["message"]
        model.wait_condition("Stalled", "True", "RolledBack")
        model.wait_condition("Ready", "True", "ServingPreviousRevision")
        model.wait(lambda s: s["revision"] == revision and s["replicas"] == 1, "only the old pod is left")
        model.wait_looked_at()
        assert model.pod_names() == [old]
        # Another spec is tried, and serves.
        model.patch({"engine": {"extraArgs": ["--kv-cache-memory", "16MiB", "--max-num-seqs", "32"]}})
        model.wait_gone(old)
        model.wait_condition("Stalled", "False")
        assert "RolledBack" not in conditions(model.get()["status"])
        streams.wait_answers(5)
    assert streams.failures == []


def test_restarted_at_replaces_every_pod_and_loses_no_request(model: Deployed) -> None:
    (old,) = model.pod_names()
    with Streams(model.url, "model", **LOAD) as streams:
        streams.wait_answers(3)
        model.patch({"rollout": {"restartedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}})
        model.wait_gone(old)
        streams.wait_answers(3)
    assert streams.failures == []
    model.wait_condition("Ready", "True", "Serving")


def test_a_horizontal_pod_autoscaler_decides_and_sheaf_drains(
    operator: Cluster, namespace: str, tiny_model: Path
) -> None:
    """The controller-manager's own HPA controller writes /scale. Its bounds move the count here: there is no
    metrics API on this cluster, so its arithmetic plays no part.
    """
    model = serve(
        operator,
        "model",
        namespace,
        tiny_model,
        replicas=1,
        autoscaling={"mode": "External", "minReplicas": 1, "maxReplicas": 2},
    )
    model.wait_ready(1)
    hpa: dict[str, Any] = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "model", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "sheaf.dev/v1alpha1", "kind": "LLMDeployment", "name": "model"},
            "minReplicas": 2,
            "maxReplicas": 5,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": "sheaf_operator_signal"},
                        "target": {"type": "AverageValue", "averageValue": "4"},
                    },
                }
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }
    with Streams(model.url, "model", **LOAD) as streams:
        operator.api.apply(hpa)
        model.wait_ready(2, timeout=120)
        assert scaling(model.get()["status"])["limiting"] == "External"
        # Beyond our bound it is not followed.
        hpa["spec"] |= {"minReplicas": 4}
        operator.api.apply(hpa)
        model.wait_limiting("MaxReplicas")
        assert model.wait_deployment()["spec"]["replicas"] == 2
        streams.wait_answers(3)
        hpa["spec"] |= {"minReplicas": 1, "maxReplicas": 1}
        operator.api.apply(hpa)
        model.wait(lambda s: s["replicas"] == 1, "one replica", 120)
        streams.wait_answers(3)
    assert streams.failures == []
    assert model.get()["spec"]["replicas"] == 1


def test_what_admission_adds_is_left_and_what_somebody_changes_is_repaired(
    model: Deployed, namespace: str
) -> None:
    api = model.cluster.api
    service = ("serving.kserve.io/v1beta1", "InferenceService", "model")
    own = api.get(*service, namespace)["spec"]["predictor"]["terminationGracePeriodSeconds"]
    note = {"metadata": {"annotations": {"internal.serving.kserve.io/checked": "yes"}}}
    api.patch(*service, note, namespace)
    model.wait_looked_at()
    assert "internal.serving.kserve.io/checked" in api.get(*service, namespace)["metadata"]["annotations"]
    api.patch(*service, {"spec": {"predictor": {"terminationGracePeriodSeconds": own + 1}}}, namespace)
    wait_until(
        lambda: api.get(*service, namespace)["spec"]["predictor"]["terminationGracePeriodSeconds"] == own,
        30,
        "the grace period is ours again",
    )


def test_a_fleet_takes_up_the_newer_image_one_after_another(
    operator: Cluster, namespace: str, tiny_model: Path
) -> None:
    models = [serve(operator, "one", namespace, tiny_model), deploy(operator, "two", namespace)]
    for model in models:
        model.wait_ready(1)
    pods = [model.pod_names() for model in models]
    try:
        with helm(operator) as release:
            release.deploy({"runtimeImage": {"tag": "next"}})
        for model in models:
            said = model.wait_condition("ImageCurrent", "False", "ImageOutdated")
            assert "runtime:next" in said["message"]
        assert [model.pod_names() for model in models] == pods
        with Streams(models[0].url, "one", **LOAD) as first, Streams(models[1].url, "two", **LOAD) as second:
            with helm(operator) as release:
                rolling = {"imageUpdates": "Rolling", "imageUpdatesInterval": 1}
                release.deploy({"runtimeImage": {"tag": "next"}, "operator": rolling})
            for model, (old,) in zip(models, pods, strict=True):
                model.wait_condition("ImageCurrent", "True", timeout=180)
                if model is models[0]:
                    assert models[1].pod_names() == pods[1]
                model.wait_gone(old, timeout=180)
            first.wait_answers(3)
            second.wait_answers(3)
        assert first.failures + second.failures == []
        for model in models:
            (pod,) = model.pods()
            assert pod["spec"]["containers"][0]["image"].endswith("runtime:next")
    finally:
        with helm(operator) as release:
            release.deploy()
