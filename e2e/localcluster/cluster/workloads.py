"""The least that runs: a pod and a Deployment of one container, ``IMAGE``, that interprets Python."""

from __future__ import annotations

from typing import Any

from localcluster.cluster.api import Object

IMAGE = "sheaf/tool:1"


def deployment(name: str, namespace: str, args: list[str], replicas: int = 1, **container: Any) -> Object:
    labels = {"app": name}
    spec = {"containers": [{"name": "main", "image": IMAGE, "args": args, **container}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, **spec},
            },
        },
    }


def pod(name: str, namespace: str, args: list[str], **spec: Any) -> Object:
    container = {"name": "main", "image": IMAGE, "args": args}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }
