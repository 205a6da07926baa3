"""Volumes: a folder of this machine is shown to pods and never changed by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from localcluster.cluster import LocalCluster, Object
from localcluster.cluster.workloads import pod

pytestmark = pytest.mark.cluster


def test_a_shown_folder_cannot_be_changed_and_a_missing_path_in_it_is_an_error(
    local_cluster: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("seven")
    local_cluster.model_volume("model", folder, namespace)
    volumes = [{"name": "model", "persistentVolumeClaim": {"claimName": "model"}}]
    write = "print(open('/model/weights').read()); open('/model/new', 'w')"
    for name, sub_path in (("writes", ""), ("asks", "nowhere/at/all")):
        manifest = pod(name, namespace, ["-c", write], volumes=volumes)
        mount = {"name": "model", "mountPath": "/model", "subPath": sub_path}
        manifest["spec"]["containers"][0]["volumeMounts"] = [mount]
        local_cluster.api.apply(manifest)

    def message(name: str, kind: str, reason: str) -> str:
        """Of the container, once it is in this state for this reason."""

        def judge(pods: list[Object]) -> Object | None:
            states = [
                s["state"].get(kind, {}) for p in pods for s in p["status"].get("containerStatuses", [])
            ]
            return next((state for state in states if state.get("reason") == reason), None)

        found: Object = local_cluster.api.wait_for(
            "v1", "Pod", judge, namespace=namespace, name=name, timeout=30, describe=f"{name}: {reason}"
        )
        return str(found.get("message", ""))

    message("writes", "terminated", "Error")
    logs = local_cluster.logs("writes", namespace)
    assert logs.startswith("seven\n")
    assert "Read-only file system: '/model/new'" in logs
    said = message("asks", "waiting", "CreateContainerConfigError")
    assert said == 'failed to create subPath directory for volumeMount "model" of container "main"'
    assert [path.name for path in folder.rglob("*")] == ["weights"]
