"""A folder of the node as a claim: for clusters whose node sees this machine's folders."""

from __future__ import annotations

from pathlib import Path

from localcluster.cluster.api import Object


def host_path_claim(name: str, path: Path, namespace: str) -> list[Object]:
    """A PersistentVolume of the folder and the claim ``name`` that is bound to it; read-only."""
    volume = f"{namespace}-{name}"
    size = {"storage": "1Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadOnlyMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "hostPath": {"path": str(path.resolve()), "type": "Directory"},
                "claimRef": {"name": name, "namespace": namespace},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": volume,
                "resources": {"requests": size},
            },
        },
    ]
