"""Least rights, by the API server's own record: what the operator may do it does, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from localcluster.cluster import Cluster, LocalCluster, Object, wait_until
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.deployed import Deployed, manifest
from sheaf_e2e.release import OPERATOR, OPERATOR_NAMESPACE

pytestmark = pytest.mark.cluster
ACCOUNT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}"
Right = tuple[str, str, str]  # group, resource, verb


def granted() -> set[Right]:
    documents = yaml.safe_load_all((CHECKOUT / "manifests" / "rbac.yaml").read_text())
    rules = [rule for d in documents if d["kind"] in ("ClusterRole", "Role") for rule in d.get("rules", [])]
    return {
        (group, resource, verb)
        for rule in rules
        if not rule.get("aggregate")
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(cluster: LocalCluster) -> set[Right]:
    """Of all requests so far; those about no object (discovery) need no right."""
    events = [event for event in cluster.asked_by(ACCOUNT) if event.get("objectRef")]
    assert events, "the API server records what the operator asks"
    # Not by the answer's code: a write into a namespace that is being deleted is a 403 as well.
    decided: dict[str, set[tuple[Right, str]]] = {"allow": set(), "forbid": set()}
    for event in events:
        target = event["objectRef"]
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        right = target.get("apiGroup", ""), resource, event["verb"]
        where = target.get("namespace", "")
        decided[event["annotations"]["authorization.k8s.io/decision"]].add((right, where))
    # An API server that has just started does not know its Roles: it refuses what it allows a second later.
    assert decided["forbid"] - decided["allow"] == set()
    found = {right for right, _ in decided["allow"]}
    # Applying an object that is not there yet is checked as a creation too, and recorded as the patch it is.
    kinds = ("inferenceservices", "servingruntimes", "poddisruptionbudgets")
    applied = {right for right in found if right[1] in kinds and right[2] == "patch"}
    return found | {(group, resource, "create") for group, resource, _ in applied}


def unbound_claim(name: str, namespace: str) -> Object:
    """A claim for which there is no volume."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def test_every_right_is_used_and_no_other_is_asked_for(
    operator: Cluster, local_cluster: LocalCluster, namespace: str, tiny_model: Path
) -> None:
    """One model is made, scaled down among ready pods, changed until history is dropped, kept to one replica;
    another is stuck.
    """
    operator.model_volume("tiny", tiny_model, namespace)
    operator.api.apply(unbound_claim("unbound", namespace))
    Deployed(operator, manifest("stuck", namespace, "pvc://unbound", 512))  # whose Events are asked for
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    scaling = {"minReplicas": 2, "maxReplicas": 2, "behavior": behavior}
    arguments = ("--kv-cache-memory", "16MiB")
    model = Deployed(
        operator, manifest("life", namespace, "pvc://tiny", 4096, *arguments, autoscaling=scaling)
    )
    model.wait_ready(2)
    model.patch({"autoscaling": {"minReplicas": 1}})
    model.wait_count(1, 60)
    for length in (1024, 1025, 1026, 1027):
        generation = model.patch({"engine": {"maxModelLen": length}})
        model.wait(lambda s, g=generation: s["observedGeneration"] == g, "the change is seen")  # type: ignore[misc]
    model.patch({"autoscaling": {"maxReplicas": 1}})
    with suppress(TimeoutError):
        wait_until(lambda: used(local_cluster) >= granted(), 60, "every right is used", every=1.0)
    assert granted() - used(local_cluster) == set(), "granted and never used"
    assert used(local_cluster) - granted() == set(), "asked for and not granted"
