"""What the cluster holds for one LLMDeployment, and questions about it. Pure functions over plain JSON."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sheaf_operator.api import names
from sheaf_operator.api.spec import KIND

Json = dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """`owner` is the LLMDeployment; `kserve` is False while the API server knows no InferenceService kind.

    The InferenceService is whatever has our name, see `owns`; Deployment, ReplicaSets and pods are only those
    that descend from it if it is ours. `stray` is a Deployment in their place that does not. `events` are
    those of objects that stand still, read for the purpose. `guarded`: somebody else's PodDisruptionBudget
    selects our pods.
    """

    owner: Json
    kserve: bool = True
    inference_service: Json | None = None
    runtimes: tuple[Json, ...] = ()
    deployment: Json | None = None
    pods: tuple[Json, ...] = ()
    replica_sets: tuple[Json, ...] = ()
    events: tuple[Json, ...] = ()
    budget: Json | None = None
    stray: Json | None = None
    guarded: bool = False

    @property
    def name(self) -> str:
        return str(self.owner["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.owner["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.owner["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.owner["metadata"]["generation"])

    @property
    def status(self) -> Json:
        return self.owner.get("status") or {}

    def owns(self, child: Json) -> bool:
        """Whether this child is ours, or an orphan of ours to take back."""
        return owned_by(child, self.uid) or is_orphan(child, self.name)

    def there(self, child: Json) -> Json | None:
        """The object of its kind that is there under this child's name."""
        there = {
            "ServingRuntime": self.runtimes,
            "InferenceService": (self.inference_service,),
            "PodDisruptionBudget": (self.budget,),
        }[child["kind"]]
        name = child["metadata"]["name"]
        return next((o for o in there if o and o["metadata"]["name"] == name), None)

    def uid_of(self, child: Json) -> str | None:
        there = self.there(child)
        return str(there["metadata"]["uid"]) if there else None

    @cached_property
    def live_pods(self) -> list[Json]:
        """Pods that are not ending."""
        return [pod for pod in self.pods if not is_terminating(pod)]

    @cached_property
    def ready_pods(self) -> list[Json]:
        return [pod for pod in self.live_pods if is_ready(pod)]

    @cached_property
    def silent_pods(self) -> list[Json]:
        """Pods that served and do not now."""
        return [pod for pod in self.live_pods if fell_silent(pod)]

    @property
    def replicas(self) -> int | None:
        """The predictor Deployment's wanted count; None while there is no Deployment."""
        return None if self.deployment is None else int(self.deployment["spec"].get("replicas", 1))

    @property
    def rolling(self) -> bool:
        """Whether pods of several ReplicaSets are live, or the Deployment has yet to react to a change."""
        hashes = {p["metadata"].get("labels", {}).get("pod-template-hash") for p in self.live_pods}
        if self.deployment is None:
            return False
        seen = self.deployment.get("status", {}).get("observedGeneration", 0)
        return len(hashes) > 1 or seen < self.deployment["metadata"].get("generation", 0)


def owned_by(obj: Json, uid: str) -> bool:
    return any(ref.get("uid") == uid for ref in obj["metadata"].get("ownerReferences", []))


def controlled_by(obj: Json, uid: str) -> bool:
    """Owned, and by the one owner that manages it."""
    return any(
        ref.get("uid") == uid and ref.get("controller") for ref in obj["metadata"].get("ownerReferences", [])
    )


def is_orphan(obj: Json, name: str) -> bool:
    """Whether the operator made this for an LLMDeployment `name` that was deleted without its children.

    One whose owner is named but dead is none: the garbage collector is about to delete it.
    """
    metadata = obj["metadata"]
    return (
        metadata.get("labels", {}).get(names.LABEL_DEPLOYMENT) == name
        and any(m.get("manager") == names.FIELD_MANAGER for m in metadata.get("managedFields", []))
        and not any(
            ref.get("controller") or ref.get("kind") == KIND for ref in metadata.get("ownerReferences", [])
        )
    )


def pod_name(pod: Json) -> str:
    return str(pod["metadata"]["name"])


def is_terminating(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"] or pod.get("status", {}).get("phase") in (
        "Failed",
        "Succeeded",
    )


def condition(obj: Json, kind: str) -> Json | None:
    conditions: list[Json] = obj.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c.get("type") == kind), None)


def is_ready(pod: Json) -> bool:
    return (condition(pod, "Ready") or {}).get("status") == "True"


def fell_silent(pod: Json) -> bool:
    """Whether its present container has served and does not now: a cut-off, frozen or overloaded pod.

    A pod that has not been ready yet turned unready before its container started. Both times are whole
    seconds of the same kubelet's clock (RFC 3339, UTC: they compare as text).
    """
    ready = condition(pod, "Ready") or {}
    started = main_container(pod).get("state", {}).get("running", {}).get("startedAt")
    return bool(ready.get("status") == "False" and started and ready.get("lastTransitionTime", "") > started)


def revision_of(pod: Json) -> str | None:
    label: str | None = pod["metadata"].get("labels", {}).get(names.LABEL_REVISION)
    return label


def main_container(pod: Json) -> Json:
    """The status of the model server's container; empty before the kubelet reports it."""
    statuses: list[Json] = pod.get("status", {}).get("containerStatuses", [])
    return next((s for s in statuses if s.get("name") == names.CONTAINER), {})
