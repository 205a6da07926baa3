"""How volumes, further containers, limits, probes and TLS are rendered, and that nothing rolls by them."""

from __future__ import annotations

import json
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.desired import revision as revisions

LOGS = {"name": "logs", "emptyDir": {"sizeLimit": "1Gi"}}
BUNDLE = {"name": "bundle", "configMap": {"name": "company-ca", "items": [{"key": "a", "path": "ca.pem"}]}}
PREPARE = {"name": "prepare", "image": "tools:1", "command": ["sh", "-c"], "args": ["true"]}
SHIPPER = {
    "name": "shipper",
    "image": "logs:2",
    "env": [{"name": "A", "value": "b"}],
    "resources": {"cpu": "50m", "memory": "64Mi"},
    "volumeMounts": [{"name": "logs", "mountPath": "/logs", "readOnly": True}],
}


def made(**fields: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The runtime's container, the ServingRuntime's spec and the predictor."""
    revision = k.revision(k.spec(**fields))
    container: dict[str, Any] = revision.runtime["containers"][0]
    return container, revision.runtime, revision.predictor


def test_volumes_come_beside_our_own_and_are_mounted() -> None:
    mounts = [{"name": "bundle", "mountPath": "/etc/ssl/company", "readOnly": True}]
    container, runtime, _ = made(pod={"volumes": [LOGS, BUNDLE], "volumeMounts": mounts})
    assert [v["name"] for v in runtime["volumes"]] == ["shm", "tmp", "logs", "bundle"]
    assert runtime["volumes"][2:] == [LOGS, BUNDLE]
    assert container["volumeMounts"][-1] == mounts[0]


def test_init_containers_run_first_and_sidecars_are_not_waited_for() -> None:
    _, _, predictor = made(pod={"volumes": [LOGS], "initContainers": [PREPARE], "sidecars": [SHIPPER]})
    first, beside = predictor["initContainers"]
    assert first["name"] == "prepare"
    assert "restartPolicy" not in first
    assert (beside["name"], beside["restartPolicy"]) == ("shipper", "Always")
    assert beside["resources"] == {
        "requests": {"cpu": "50m", "memory": "64Mi"},
        "limits": {"memory": "64Mi"},
    }
    for container in (first, beside):  # the restricted Pod Security Standard holds for them too
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_users_and_groups_add_to_never_root() -> None:
    given = {"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch", "runAsUser": 1000}
    _, _, predictor = made(pod={"securityContext": given})
    assert predictor["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        **given,
    }


def test_limits_that_a_user_sets() -> None:
    resources = {
        "cpu": 2,
        "cpuLimit": 512,
        "memory": "8Gi",
        "sharedMemory": "2Gi",
        "ephemeralStorage": "20Gi",
    }
    _, runtime, predictor = made(resources=resources, accelerator={"count": 0})
    assert predictor["model"]["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "20Gi"},
        "limits": {"cpu": "512", "memory": "8Gi", "ephemeral-storage": "20Gi"},
    }
    assert runtime["volumes"][0] == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}


def test_patience_in_seconds_becomes_the_kubelets_counts() -> None:
    container, _, _ = made(pod={"probes": {"startupSeconds": 7201, "livenessSeconds": 300}})
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 7205
    assert liveness["periodSeconds"] * liveness["failureThreshold"] == 300


def test_tls_is_served_probed_and_told_in_the_url() -> None:
    container, runtime, _ = made(tls={"secretName": "m-tls"})
    at = container["args"].index("--ssl-certfile")
    assert container["args"][at : at + 4] == [
        "--ssl-certfile",
        "/etc/sheaf/tls/tls.crt",
        "--ssl-keyfile",
        "/etc/sheaf/tls/tls.key",
    ]
    assert {"name": "tls", "secret": {"secretName": "m-tls"}} in runtime["volumes"]
    # The folder and not a file of it, since only a folder follows a renewed Secret.
    assert {"name": "tls", "mountPath": "/etc/sheaf/tls", "readOnly": True} in container["volumeMounts"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
        assert container[probe]["httpGet"]["port"] == container["ports"][0]["name"]
    assert names.url("m", "ns", "corp.example", tls=True) == "https://m-predictor.ns.svc.corp.example:80"


NEW: list[dict[str, Any]] = [
    {"tls": {"secretName": "a"}},
    {"resources": {"cpuLimit": "9"}},
    {"resources": {"sharedMemory": "1Gi"}},
    {"resources": {"ephemeralStorage": "1Gi"}},
    {"pod": {"securityContext": {"fsGroup": 1}}},
    {"pod": {"probes": {"startupSeconds": 60}}},
    {"pod": {"volumes": [LOGS]}},
    {"pod": {"initContainers": [PREPARE]}},
    {"pod": {"sidecars": [SHIPPER]}},
]


@pytest.mark.parametrize("change", NEW, ids=json.dumps)
def test_each_makes_a_new_revision(change: dict[str, Any]) -> None:
    assert k.revision(k.spec(**change)).hash != k.revision(k.spec()).hash
    assert not k.revision(k.spec()).serves(k.spec(**change))


def test_a_revision_that_was_recorded_before_there_were_these_fields_goes_on() -> None:
    made = k.revision(k.spec())
    recorded = json.loads(made.annotation())
    recorded["spec"].pop("tls", None)
    for part, fields in {
        "resources": ("cpuLimit", "sharedMemory", "ephemeralStorage"),
        "pod": ("securityContext", "probes", "volumes", "volumeMounts", "initContainers", "sidecars"),
    }.items():
        for field in fields:
            recorded["spec"][part].pop(field, None)
    runtime = k.runtime(made)
    runtime["metadata"]["annotations"][names.ANNOTATION_REVISION] = json.dumps(recorded)
    read = revisions.read(runtime)
    assert read is not None
    assert read.serves(LLMDeploymentSpec.model_validate({"model": {"uri": "pvc://claim/m"}}))
