"""A folder as a claim, for clusters whose nodes see this machine's folders."""

from __future__ import annotations

from pathlib import Path

from localcluster.cluster.api import Object
from localcluster.cluster.folder_driver import DRIVER


def host_path_claim(name: str, path: Path, namespace: str) -> list[Object]:
    """A PersistentVolume of the folder and the claim ``name`` that is bound to it; many nodes may read it."""
    source = {"hostPath": {"path": str(path.resolve()), "type": "Directory"}}
    return _bound(name, namespace, "ReadOnlyMany", source)


def single_node_claim(name: str, path: Path, namespace: str) -> list[Object]:
    """The same, attached to one node at a time by the controller that does so on any cluster."""
    source = {"flexVolume": {"driver": DRIVER, "options": {"folder": str(path.resolve())}}}
    return _bound(name, namespace, "ReadWriteOnce", source)


def _bound(name: str, namespace: str, mode: str, source: Object) -> list[Object]:
    volume = f"{namespace}-{name}"
    common = {"accessModes": [mode], "storageClassName": ""}
    size = {"storage": "1Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **common,
                "capacity": size,
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"name": name, "namespace": namespace},
                **source,
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**common, "volumeName": volume, "resources": {"requests": size}},
        },
    ]
