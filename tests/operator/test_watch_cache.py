"""What belongs to an LLMDeployment: by owner references down the chain, and by nothing else."""

from __future__ import annotations

import copy
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.kinds import Kind
from sheaf_operator.cluster.observed import Observed

Json = dict[str, Any]
KEY = ("ns", "m")
SPEC = k.spec()
REVISION = k.revision(SPEC)


def meta(obj: Json, uid: str, owner: str | None = None, **more: Any) -> Json:
    """The object with its identity and the owner that controls it."""
    references = {"ownerReferences": [{"uid": owner, "controller": True}]} if owner else {}
    labels = {names.LABEL_DEPLOYMENT: "m", **obj["metadata"].get("labels", {})}
    metadata = {"namespace": "ns", "resourceVersion": "1", **obj["metadata"], "labels": labels, "uid": uid}
    return {**copy.deepcopy(obj), "metadata": {**metadata, **references, **more}}


def replica_set(uid: str, owner: str) -> Json:
    return meta({"metadata": {"name": uid}, "spec": {"replicas": 1}}, uid, owner)


def whole() -> dict[Kind, list[Json]]:
    return {
        kinds.MODELS: [k.owner()],
        kinds.SERVICES: [meta(k.service(REVISION), "service", None)],
        kinds.RUNTIMES: [meta(k.runtime(REVISION), "runtime", None)],
        kinds.DEPLOYMENTS: [meta(k.deployment(), "deployment", "service")],
        kinds.REPLICA_SETS: [replica_set("rs", "deployment")],
        kinds.PODS: [meta(k.pod("p1", REVISION, ready=True), "pod", "rs")],
    }


def cached(objects: dict[Kind, list[Json]], version: int = 1) -> Cache:
    cache = Cache()
    for kind in kinds.ALL:
        cache.replace(kind, objects.get(kind, []), version)
    return cache


def observed(objects: dict[Kind, list[Json]]) -> Observed:
    found = cached(objects).observe(*KEY)
    assert found is not None
    return found


def pod_names(found: Observed) -> list[str]:
    return [pod["metadata"]["name"] for pod in found.pods]


def test_the_whole_chain_is_found() -> None:
    found = observed(whole())
    assert found.inference_service is not None
    assert found.deployment is not None
    assert len(found.runtimes) == len(found.replica_sets) == 1
    assert pod_names(found) == ["p1"]


def test_of_a_foreign_service_of_our_name_nothing_is_read() -> None:
    """Its Deployment and pods even carry our label and name."""
    objects = whole()
    foreign = objects[kinds.SERVICES][0]
    foreign["metadata"]["ownerReferences"] = []
    found = observed(objects)
    assert found.inference_service is not None
    assert not found.owns(found.inference_service)
    assert found.deployment is None
    assert found.pods == found.replica_sets == ()


@pytest.mark.parametrize("owner", [None, "another-set"])
def test_a_debug_copy_with_kept_labels_is_no_replica(owner: str | None) -> None:
    objects = whole()
    objects[kinds.PODS].append(meta(k.pod("p1-debug", REVISION, ready=True), "copy", owner))
    assert pod_names(observed(objects)) == ["p1"]


def test_an_owner_that_does_not_control_makes_no_replica() -> None:
    objects = whole()
    objects[kinds.PODS].append(
        meta(k.pod("p2", REVISION), "p2", ownerReferences=[{"uid": "rs", "controller": False}])
    )
    assert pod_names(observed(objects)) == ["p1"]


def test_a_pod_older_than_its_owner_by_clock_skew_is_a_replica() -> None:
    objects = whole()
    objects[kinds.PODS][0]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    found = observed(objects)
    assert len(found.ready_pods) == 1


def test_pods_of_a_deleted_namesake_do_not_count_for_a_new_resource() -> None:
    """Deleted and applied again at once: the old pods serve until the garbage collector finds them."""
    objects = whole()
    objects[kinds.MODELS] = [k.owner(uid="new")]
    found = observed(objects)
    assert found.pods == ()
    assert found.deployment is None


def test_orphans_are_ours_with_all_that_descends_from_them() -> None:
    """As `kubectl delete --cascade=orphan` leaves them."""
    objects = whole()
    objects[kinds.MODELS] = [k.owner(uid="new")]
    for kind in (kinds.SERVICES, kinds.RUNTIMES):
        metadata = objects[kind][0]["metadata"]
        metadata["ownerReferences"] = []
        metadata["managedFields"] = [{"manager": names.FIELD_MANAGER, "fieldsV1": {"f:spec": {}}}]
    found = observed(objects)
    assert found.deployment is not None
    assert len(found.runtimes) == 1
    assert pod_names(found) == ["p1"]


def test_a_deployment_without_its_owner_is_a_stray() -> None:
    objects = whole()
    assert observed(objects).stray is None
    [deployment] = objects[kinds.DEPLOYMENTS]
    deployment["metadata"]["ownerReferences"] = []
    found = observed(objects)
    assert found.stray is not None
    assert (found.deployment, found.pods) == (None, ())


def test_a_child_that_lost_its_label_is_still_ours() -> None:
    objects = whole()
    for kind in (kinds.SERVICES, kinds.RUNTIMES):
        del objects[kind][0]["metadata"]["labels"]
    found = observed(objects)
    assert found.inference_service is not None
    assert found.owns(found.inference_service)
    assert len(found.runtimes) == 1


def test_a_second_deployment_of_the_service_is_not_the_predictor() -> None:
    objects = whole()
    worker = meta(k.deployment(), "worker", "service", name="m-predictor-worker")
    objects[kinds.DEPLOYMENTS].insert(0, worker)
    found = observed(objects)
    assert found.deployment is not None
    assert found.deployment["metadata"]["name"] == "m-predictor"


# News


def test_a_status_of_our_own_is_no_news_and_a_changed_spec_is() -> None:
    cache = cached(whole())
    written = k.owner(status={"replicas": 1}, resourceVersion="8")
    assert cache.put(kinds.MODELS, written) == set()
    assert cache.put(kinds.MODELS, k.owner(generation=2, resourceVersion="9")) == {KEY}
    assert cache.put(kinds.MODELS, k.owner(uid="new", resourceVersion="10")) == {KEY}
    assert cache.remove(kinds.MODELS, k.owner(uid="new", resourceVersion="11")) == {KEY}


def test_a_status_that_somebody_took_away_is_news() -> None:
    cache = cached(whole())
    cache.put(kinds.MODELS, k.owner(status={"replicas": 1}, resourceVersion="8"))
    assert cache.put(kinds.MODELS, k.owner(resourceVersion="9")) == {KEY}
    assert cache.put(kinds.MODELS, k.owner(resourceVersion="10")) == set()


def test_a_list_tells_of_what_a_watch_has_missed() -> None:
    cache = cached(whole())
    assert cache.replace(kinds.PODS, [], 50) == {KEY}
    assert cache.replace(kinds.PODS, [], 60) == set()
    late = meta(k.pod("p1", REVISION), "pod", "rs")
    assert cache.put(kinds.PODS, late) == set()


def test_nothing_is_judged_before_each_kind_has_been_listed_in_each_namespace() -> None:
    cache = Cache(["one", "two"])
    for kind in kinds.ALL:
        cache.replace(kind, [], 1, "one")
        assert not cache.complete
    for kind in kinds.ALL[:-1]:
        cache.replace(kind, [], 1, "two")
    assert not cache.complete
    cache.replace(kinds.ALL[-1], [], 1, "two")
    assert cache.complete


def test_kserve_may_be_missing_come_and_go() -> None:
    cache = Cache()
    for kind in kinds.ALL:
        if kind.group == "serving.kserve.io":
            cache.lacks(kind)
        else:
            cache.replace(kind, [k.owner()] if kind == kinds.MODELS else [], 1)
    assert cache.complete
    found = cache.observe(*KEY)
    assert found is not None
    assert not found.kserve
    cache.replace(kinds.RUNTIMES, [], 2)
    assert cache.replace(kinds.SERVICES, [], 2) == {KEY}
    found = cache.observe(*KEY)
    assert found is not None
    assert found.kserve
    assert cache.lacks(kinds.SERVICES) == {KEY}


# What is kept


def test_the_bulk_is_left_out_and_what_a_plan_compares_is_kept() -> None:
    fields = {"f:spec": {"f:replicas": {}, "f:template": {"f:x": {}}}}
    deployment = meta(k.deployment(), "deployment", "service")
    deployment["metadata"]["managedFields"] = [{"manager": "kubectl", "fieldsV1": fields}]
    deployment["spec"]["template"] = {"spec": {"containers": []}}
    pod = meta(k.pod(), "pod", "rs")
    pod["spec"]["containers"][0] |= {"env": [{"name": "A"}], "resources": {"limits": {"cpu": "1"}}}
    objects = whole() | {kinds.DEPLOYMENTS: [deployment], kinds.PODS: [pod]}
    found = observed(objects)
    assert found.deployment is not None
    assert found.deployment["spec"] == {"replicas": 1}
    (writer,) = found.deployment["metadata"]["managedFields"]
    assert writer == {"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    (container,) = found.pods[0]["spec"]["containers"]
    assert container == {"name": names.CONTAINER, "resources": {"limits": {"cpu": "1"}}}
    assert found.inference_service is not None
    assert found.inference_service["spec"] == k.service(REVISION)["spec"]
    assert deployment["spec"]["template"], "what was handed in is left as it is"


def foreign_budget(selector: Json | None, namespace: str = "ns", version: str = "1") -> Json:
    metadata = {"name": "theirs", "namespace": namespace, "uid": "b", "resourceVersion": version}
    spec = {"minAvailable": 1} | ({} if selector is None else {"selector": selector})
    return {"metadata": metadata, "spec": spec, "status": {"disruptionsAllowed": 1}}


LABEL = {names.LABEL_DEPLOYMENT: "m"}


@pytest.mark.parametrize(
    ("selector", "guarded"),
    [
        ({"matchLabels": LABEL}, True),
        ({"matchLabels": {**LABEL, "tier": "web"}}, False),
        ({}, True),  # every pod of the namespace
        (None, False),
        ({"matchExpressions": [{"key": names.LABEL_REVISION, "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": names.LABEL_DEPLOYMENT, "operator": "In", "values": ["m"]}]}, True),
        (
            {"matchExpressions": [{"key": names.LABEL_DEPLOYMENT, "operator": "NotIn", "values": ["m"]}]},
            False,
        ),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_somebody_elses_budget_is_known_by_whom_it_selects(selector: Json | None, guarded: bool) -> None:
    assert observed({**whole(), kinds.BUDGETS: [foreign_budget(selector)]}).guarded is guarded


def test_neither_our_own_budget_nor_one_of_another_namespace_is_somebody_elses() -> None:
    own = k.budget(k.spec(autoscaling={"maxReplicas": 3}))
    assert own is not None
    own["metadata"]["resourceVersion"] = "1"
    elsewhere = foreign_budget({"matchLabels": LABEL}, namespace="other")
    found = observed({**whole(), kinds.BUDGETS: [own, elsewhere]})
    assert found.budget is not None
    assert not found.guarded


def test_somebody_elses_budget_is_news_when_it_comes_changes_and_goes_but_not_when_it_counts() -> None:
    cache = cached(whole())
    budget = foreign_budget({"matchLabels": LABEL}, version="2")
    assert cache.put(kinds.BUDGETS, budget) == {KEY}
    counted = foreign_budget({"matchLabels": LABEL}, version="3") | {"status": {"disruptionsAllowed": 0}}
    assert cache.put(kinds.BUDGETS, counted) == set()
    assert cache.put(kinds.BUDGETS, foreign_budget({}, version="4")) == {KEY}
    assert cache.remove(kinds.BUDGETS, foreign_budget({}, version="5")) == {KEY}
