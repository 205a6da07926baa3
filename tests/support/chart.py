"""The Helm chart rendered in process, as plain objects."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from helm_python import Chart

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "sheaf"
# The oldest that Chart.yaml allows, one between, and the newest that there are schemas for.
KUBERNETES = ("1.30", "1.34", "1.37")
# Kinds of other projects: there is no schema of them at hand, their own API servers judge them.
FOREIGN = {"ClusterServingRuntime", "ServiceMonitor", "PodMonitor", "PrometheusRule", "LLMDeployment"}
CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "ClusterServingRuntime"}


@cache
def _chart() -> Chart:
    return Chart.load(CHART)


def render(
    values: Object | None = None, name: str = "sheaf", namespace: str = "sheaf-system"
) -> list[Object]:
    """All objects of a release. Raises helm_python's HelmValuesError or HelmRenderError."""
    texts = _chart().render(values or {}, name=name, namespace=namespace)
    documents = (
        document
        for path, text in sorted(texts.items())
        if not path.endswith("NOTES.txt")
        for document in yaml.load_all(text, Loader=yaml.CSafeLoader)
    )
    return [document for document in documents if document]


def notes(values: Object | None = None, name: str = "sheaf", namespace: str = "sheaf-system") -> str:
    return _chart().render(values or {}, name=name, namespace=namespace)["sheaf/templates/NOTES.txt"]


def only(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of this kind (and name)."""
    (found,) = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found


def identity(obj: Object) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def validate(obj: Object) -> None:
    """Hold an object against the schemas of three Kubernetes versions, unknown fields refused."""
    if obj["kind"] not in FOREIGN:
        _validate(json.dumps(obj, sort_keys=True))


@cache
def _validate(text: str) -> None:
    for version in KUBERNETES:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
