"""Admission that changes what is written, by a webhook that the API server really asks: it is not fought."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from localcluster.cluster import Cluster, LocalCluster, Object
from sheaf_e2e.admission import admission, webhook
from sheaf_e2e.deployed import Deployed, conditions, manifest
from sheaf_e2e.release import OPERATOR, OPERATOR_NAMESPACE

pytestmark = pytest.mark.cluster
ACCOUNT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}"
POD = {
    "tolerations": [{"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}],
    "imagePullSecrets": [{"name": "mirror"}],
}
MESH = {"name": "mesh", "image": "sheaf/tool:1", "args": ["-c", "import time; time.sleep(9999)"]}
LABEL = {"labels": {"team": "a"}}
APPENDED = {
    "Pod": {"metadata": LABEL, "spec": {**POD, "containers": [MESH]}},
    "Deployment": {"metadata": LABEL, "spec": {"template": {"metadata": LABEL, "spec": POD}}},
    "InferenceService": {"metadata": LABEL, "spec": {"predictor": POD}},
}
REPLACED = {"InferenceService": {"spec": {"predictor": {"terminationGracePeriodSeconds": 33}}}}
SERVICE = ("serving.kserve.io/v1beta1", "InferenceService", "m")


@pytest.fixture
def authority(operator: Cluster, namespace: str) -> Iterator[str]:
    """Of a webhook that runs in the test's namespace and changes nothing yet."""
    with webhook(operator, namespace, {"/append": APPENDED, "/replace": REPLACED}) as trusted:
        yield trusted


def written(cluster: LocalCluster, namespace: str) -> list[Object]:
    """What the operator has written in the namespace so far, Events aside."""
    return [
        event
        for event in cluster.asked_by(ACCOUNT)
        if event["verb"] in ("create", "update", "patch", "delete")
        and event["objectRef"].get("namespace") == namespace
        and event["objectRef"]["resource"] != "events"
    ]


def test_what_admission_appends_is_left_and_what_it_replaces_is_named(
    operator: Cluster, local_cluster: LocalCluster, namespace: str, tiny_model: Path, authority: str
) -> None:
    operator.model_volume("tiny", tiny_model, namespace)
    spec = {"resources": {"cpu": "100m", "memory": "1Gi"}, "autoscaling": {"mode": "Disabled"}}
    resource = manifest("m", namespace, "pvc://tiny", 4096, "--kv-cache-memory", "16MiB", **spec)
    with admission(operator, namespace, authority, "/append", tuple(APPENDED)):
        model = Deployed(operator, resource)
        model.wait_condition("Ready", "True", "Serving", timeout=90)
        model.wait_condition("Reconciling", "False", "UpToDate")
        model.wait(lambda s: "capacity" in s, "capacity was measured")

        [pod] = model.pods()
        assert {c["name"] for c in pod["spec"]["containers"]} == {"kserve-container", "mesh"}
        for owner in (pod["spec"], operator.api.get(*SERVICE, namespace)["spec"]["predictor"]):
            assert POD["tolerations"][0] in owner["tolerations"]
            assert owner["imagePullSecrets"] == POD["imagePullSecrets"]
        deployment = model.deployment()
        assert deployment is not None
        assert deployment["metadata"]["labels"]["team"] == "a"

        model.wait_looked_at()
        before = written(local_cluster, namespace)
        for _ in range(2):
            model.wait_looked_at()
        assert written(local_cluster, namespace) == before
        assert "Contested" not in conditions(model.get()["status"])
        assert model.wait_deployment()["metadata"]["generation"] == deployment["metadata"]["generation"]

    before = written(local_cluster, namespace)
    with admission(operator, namespace, authority, "/replace", tuple(REPLACED)):
        note = {"metadata": {"annotations": {"internal.serving.kserve.io/somebody": "was here"}}}
        operator.api.patch(*SERVICE, note, namespace)  # and so it goes through admission
        said = model.wait_condition("Contested", "True", "FieldsContested", timeout=90)
        for words in ("InferenceService m", "terminationGracePeriodSeconds", "admission (a mutating webhook"):
            assert words in said["message"]
        services = [e for e in written(local_cluster, namespace) if e not in before]
        services = [e for e in services if e["objectRef"]["resource"] == "inferenceservices"]
        assert len(services) <= 4
        assert conditions(model.get()["status"])["Ready"]["status"] == "True"
