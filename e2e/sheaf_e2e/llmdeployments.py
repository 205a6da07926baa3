"""LLMDeployments as documents, and what the API server says to them."""

from __future__ import annotations

from typing import Any

from localcluster.cluster import Cluster, Object

API = "sheaf.dev/v1alpha1"
KIND = "LLMDeployment"


def resource(name: str = "m", **spec: Any) -> Object:
    """The least that is allowed, with these fields of the spec beside or instead."""
    merged = {"model": {"uri": "pvc://claim/m"}, **spec}
    return {"apiVersion": API, "kind": KIND, "metadata": {"name": name}, "spec": merged}


def judged(cluster: Cluster, obj: Object) -> Object:
    """As the API server would store it, unknown fields refused as kubectl does. Raises ApiError."""
    path = cluster.api.path(API, KIND, "default")
    parameters = {"dryRun": "All", "fieldValidation": "Strict"}
    return dict(cluster.api.request("POST", path, params=parameters, json=obj).json())
