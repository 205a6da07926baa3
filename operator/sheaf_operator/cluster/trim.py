"""What of an object is kept in memory: all that anything here reads, without the bulk. Pure."""

from __future__ import annotations

from sheaf_operator.cluster.kinds import BUDGETS, DEPLOYMENTS, PODS, REPLICA_SETS, Kind
from sheaf_operator.cluster.store import Json

APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_BULK = ("env", "envFrom", "args", "command", "livenessProbe", "startupProbe", "lifecycle")


def trim(kind: Kind, obj: Json) -> Json:
    """A copy without what nobody reads. Nothing that a plan compares is left out."""
    metadata = dict(obj["metadata"])
    if "managedFields" in metadata:
        metadata["managedFields"] = [_manager(entry) for entry in metadata["managedFields"]]
    if APPLIED in metadata.get("annotations", {}):
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != APPLIED}
    trimmed = {**obj, "metadata": metadata}
    if kind in (DEPLOYMENTS, REPLICA_SETS):
        trimmed["spec"] = {k: v for k, v in obj["spec"].items() if k != "template"}
    elif kind == PODS:
        trimmed["spec"] = _pod(obj["spec"])
    elif kind == BUDGETS:
        trimmed.pop("status", None)
    return trimmed


def _manager(entry: Json) -> Json:
    """Who wrote, when, and of what it wrote only whether the count was among it."""
    kept = {k: v for k, v in entry.items() if k != "fieldsV1"}
    if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {}):
        kept["fieldsV1"] = {"f:spec": {"f:replicas": {}}}
    return kept


def _pod(spec: Json) -> Json:
    lists = ("containers", "initContainers")
    small = {
        key: [{k: v for k, v in container.items() if k not in _BULK} for container in spec[key]]
        for key in lists
        if key in spec
    }
    return {**spec, **small}
