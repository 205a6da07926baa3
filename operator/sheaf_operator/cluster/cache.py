"""What the operator knows of the cluster, and what of it belongs to one LLMDeployment. No I/O.

Belonging follows the owner references, from the resource to its pods: a label or a name can be anybody's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from sheaf_operator.api import names
from sheaf_operator.api.spec import KIND
from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.kinds import Kind
from sheaf_operator.cluster.observed import Observed, controlled_by
from sheaf_operator.cluster.selector import selects
from sheaf_operator.cluster.store import EVERYWHERE, Json, Name, Store, name_of
from sheaf_operator.cluster.trim import trim


class Cache:
    """A store per kind. Objects in it are replaced and never changed: whoever holds one may go on reading."""

    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        """`namespaces` are those that are looked after; none given means all."""
        self.scopes = tuple(namespaces) or (EVERYWHERE,)
        self._stores = {kind: _store(kind) for kind in kinds.ALL}
        self._missing: set[Kind] = set()
        self._unlisted = {(kind, scope) for kind in kinds.ALL for scope in self.scopes}

    @property
    def complete(self) -> bool:
        """Whether every kind has been listed once or is known to be missing: before, nothing is judged."""
        return all(kind in self._missing for kind, _ in self._unlisted)

    @property
    def missing(self) -> frozenset[Kind]:
        """Kinds that the API server does not know."""
        return frozenset(self._missing)

    @property
    def keys(self) -> list[Name]:
        """Every known LLMDeployment."""
        return self._stores[kinds.MODELS].names()

    def holds(self, kind: Kind, scope: str) -> bool:
        """Whether any object of this kind is known there."""
        return any(scope in (EVERYWHERE, namespace) for namespace, _ in self._stores[kind].names())

    def get(self, kind: Kind, name: Name) -> Json | None:
        return self._stores[kind].get(name)

    def put(self, kind: Kind, obj: Json) -> set[Name]:
        """A state was seen, by a watch or in the answer to a write. Returns the keys for which it is news."""
        before, now = self.get(kind, name_of(obj)), trim(kind, obj)
        if not self._stores[kind].put(now):
            return set()
        if kind == kinds.MODELS and before is not None and _wanted(before) == _wanted(now):
            emptied = "status" in before and "status" not in now  # by a backup's or a migration's tool
            return self._concerned(kind, now) if emptied else set()  # else it is our own writing
        if kind == kinds.BUDGETS and before is not None and before["spec"] == now["spec"]:
            return set()  # how many pods may go just now
        return self._concerned(kind, before, now)

    def remove(self, kind: Kind, obj: Json) -> set[Name]:
        """An end was seen."""
        before = self.get(kind, name_of(obj))
        return self._concerned(kind, before) if self._stores[kind].remove(obj) else set()

    def newest(self, kind: Kind, namespace: str) -> int:
        """The latest version that was seen of a kind."""
        return self._stores[kind].newest(namespace)

    def replace(
        self,
        kind: Kind,
        objects: Iterable[Json],
        version: int,
        namespace: str = EVERYWHERE,
        newest: int = -1,
    ) -> set[Name]:
        """All that there is of a kind, with what `newest` was when that was asked for. Returns the keys about
        which that is news.
        """
        trimmed = [trim(kind, obj) for obj in objects]
        news = self._stores[kind].replace(trimmed, version, namespace, newest)
        self._unlisted.discard((kind, namespace))
        if kind in self._missing:
            self._missing.discard(kind)
            return set(self.keys)
        return self._concerned(kind, *news)

    def lacks(self, kind: Kind) -> set[Name]:
        """The API server does not know this kind. Returns the keys for which that is news."""
        if kind in self._missing:
            return set()
        self._missing.add(kind)
        self._stores[kind] = _store(kind)
        return set(self.keys)

    def observe(self, namespace: str, name: str) -> Observed | None:
        """Everything about one LLMDeployment; None if there is none."""
        owner = self.get(kinds.MODELS, (namespace, name))
        if owner is None:
            return None
        found = Observed(owner, kserve=not self._missing)
        service = self.get(kinds.SERVICES, (namespace, name))
        of_owner = self._of(kinds.RUNTIMES, found.uid)
        orphans = self._of(kinds.RUNTIMES, (namespace, name))
        runtimes = {r["metadata"]["name"]: r for r in of_owner + orphans if found.owns(r)}
        chain = self._chain(service) if service is not None and found.owns(service) else (None, (), ())
        deployment, replica_sets, pods = chain
        place = self.get(kinds.DEPLOYMENTS, (namespace, names.predictor_deployment(name)))
        return Observed(
            owner,
            found.kserve,
            service,
            tuple(runtimes[name] for name in sorted(runtimes)),
            deployment,
            pods,
            replica_sets,
            budget=self._budget(found),
            stray=place if deployment is None else None,
            guarded=self._guarded(found, pods),
        )

    def _budget(self, found: Observed) -> Json | None:
        budget = self.get(kinds.BUDGETS, (found.namespace, names.budget(found.name)))
        return budget if budget is not None and found.owns(budget) else None

    def _guarded(self, found: Observed, pods: tuple[Json, ...]) -> bool:
        """Whether a budget of somebody else selects our pods."""
        others = [b for b in self._of(kinds.BUDGETS, found.namespace) if not found.owns(b)]
        labels = [pod["metadata"].get("labels", {}) for pod in pods]
        return any(selects(other["spec"].get("selector"), of) for other in others for of in labels)

    def _chain(self, service: Json) -> tuple[Json | None, tuple[Json, ...], tuple[Json, ...]]:
        """InferenceService → Deployment → ReplicaSets → pods."""
        wanted = names.predictor_deployment(service["metadata"]["name"])
        deployments = [
            d for d in self._controlled(kinds.DEPLOYMENTS, service) if d["metadata"]["name"] == wanted
        ]
        if not deployments:
            return None, (), ()
        replica_sets = self._controlled(kinds.REPLICA_SETS, deployments[0])
        pods = [pod for owner in replica_sets for pod in self._controlled(kinds.PODS, owner)]
        return deployments[0], tuple(replica_sets), tuple(pods)

    def _controlled(self, kind: Kind, owner: Json) -> list[Json]:
        uid = owner["metadata"]["uid"]
        return [obj for obj in self._of(kind, uid) if controlled_by(obj, uid)]

    def _of(self, kind: Kind, facet: Hashable) -> list[Json]:
        return self._stores[kind].of(facet)

    def _concerned(self, kind: Kind, *states: Json | None) -> set[Name]:
        """The LLMDeployments that may look different now; one too many costs a look."""
        found = set()
        for obj in states:
            if obj is None:
                continue
            namespace, name = name_of(obj)
            if kind in (kinds.MODELS, kinds.SERVICES):
                found.add((namespace, name))
            if label := obj["metadata"].get("labels", {}).get(names.LABEL_DEPLOYMENT):
                found.add((namespace, label))
            references = obj["metadata"].get("ownerReferences", [])
            found |= {(namespace, r["name"]) for r in references if r.get("kind") == KIND}
            if kind == kinds.BUDGETS and not _of_a_model(obj):
                found |= {key for key in self.keys if key[0] == namespace}
        return found


def _store(kind: Kind) -> Store:
    return Store(_budget_facets if kind == kinds.BUDGETS else _facets)


def _budget_facets(budget: Json) -> Iterable[Hashable]:
    """The namespace of other people's; ours are found by name."""
    if not _of_a_model(budget):
        yield budget["metadata"]["namespace"]


def _of_a_model(obj: Json) -> bool:
    return any(reference.get("kind") == KIND for reference in obj["metadata"].get("ownerReferences", []))


def _facets(obj: Json) -> Iterable[Hashable]:
    """The uids of an object's owners, and the key that its label names."""
    metadata = obj["metadata"]
    for reference in metadata.get("ownerReferences", []):
        yield reference["uid"]
    if label := metadata.get("labels", {}).get(names.LABEL_DEPLOYMENT):
        yield metadata["namespace"], label


def _wanted(model: Json) -> tuple[Json | None, ...]:
    return tuple(model["metadata"].get(field) for field in ("uid", "generation", "deletionTimestamp"))
