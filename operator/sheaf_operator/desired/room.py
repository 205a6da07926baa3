"""Whether the end of an old pod would give the new one what it lacks. Pure.

Nodes are not read. That the new pod may run where the old one does follows from what both ask of a node;
where the scheduler's words leave a doubt, the answer is no.
"""

from __future__ import annotations

import re
from decimal import Decimal

from sheaf_operator.api import names, quantity
from sheaf_operator.cluster.observed import Json, condition
from sheaf_operator.desired.revision import Revision
from sheaf_operator.problems.problem import Lack
from sheaf_operator.problems.scheduling import claims
from sheaf_operator.problems.volumes import waits_for_node

# A node that takes no new pods: the old pod may run on it, and then its end helps nobody.
_CLOSED = re.compile(r"were unschedulable|node\.kubernetes\.io/(unschedulable|not-ready|unreachable)")


def would_free(old: Json, lacks: tuple[Lack, ...], wanted: Revision, holders: list[Json], said: str) -> bool:
    """Whether `old` holds all of `lacks`. `holders`: all live pods; `said`: the scheduler's words."""
    on_a_node = any(lack.kind == "Resource" for lack in lacks)
    if on_a_node and (_CLOSED.search(said) or not _same_places(old, wanted)):
        return False
    return all(_frees(old, lack, wanted, holders) for lack in lacks)


def _frees(old: Json, lack: Lack, wanted: Revision, holders: list[Json]) -> bool:
    if lack.kind == "Volume":
        return _holds(old, lack.name) and not any(_holds(p, lack.name) for p in holders if p is not old)
    kind, name = ("requests", lack.name) if lack.kind == "Resource" else _of_quota(lack.name)
    if name == "pods":
        return True
    needed = _amount(wanted.predictor["model"]["resources"], kind, name)
    held = _amount(_resources(old), kind, name)
    return 0 < needed <= held


def _of_quota(name: str) -> tuple[str, str]:
    """A quota's name for a resource: requests.nvidia.com/gpu, limits.memory, cpu, pods, count/pods."""
    if name in ("pods", "count/pods"):
        return "requests", "pods"
    for kind in ("requests", "limits"):
        if name.startswith(kind + "."):
            return kind, name.removeprefix(kind + ".")
    return "requests", name


def _resources(pod: Json) -> Json:
    """Of the model server's container, which is where revisions differ."""
    containers = pod.get("spec", {}).get("containers", [])
    found: Json = next((c.get("resources", {}) for c in containers if c["name"] == names.CONTAINER), {})
    return found


def _amount(resources: Json, kind: str, name: str) -> Decimal:
    limit = resources.get("limits", {}).get(name, "0")
    return quantity.value(str(resources.get(kind, {}).get(name, limit)))


def _holds(pod: Json, claim: str) -> bool:
    """Whether it has the claim's volume: one that waits for it, such as the new pod itself, does not."""
    scheduled = (condition(pod, "PodScheduled") or {}).get("status") == "True"
    return claim in claims(pod) and scheduled and not waits_for_node(pod)


def _same_places(old: Json, wanted: Revision) -> bool:
    """Whether the new pod may run wherever the old one might."""
    before, after = old.get("spec", {}), wanted.predictor
    selector: Json = before.get("nodeSelector", {})
    tolerated = [_toleration(t) for t in after.get("tolerations", [])]
    added = [_toleration(t) for t in before.get("tolerations", []) if not _by_admission(t)]
    return (
        all(selector.get(key) == value for key, value in after.get("nodeSelector", {}).items())
        and (not after.get("affinity") or after["affinity"] == before.get("affinity"))
        and all(toleration in tolerated for toleration in added)
        and after.get("runtimeClassName") in (None, before.get("runtimeClassName"))
    )


def _toleration(toleration: Json) -> tuple[str, ...]:
    return tuple(str(toleration.get(field, "")) for field in ("key", "operator", "value", "effect"))


def _by_admission(toleration: Json) -> bool:
    """The API server gives these to every pod."""
    return str(toleration.get("key", "")).startswith("node.kubernetes.io/")
