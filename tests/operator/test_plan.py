import copy
from dataclasses import replace
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired.actions import Apply, Delete, Plan, Scale
from sheaf_operator.desired.history import HISTORY
from sheaf_operator.desired.plan import plan

NEW_IMAGE = "sheaf/runtime:next"


def run(given: Any, observed: Observed, image: str = k.IMAGE, **more: Any) -> Plan:
    return plan(given, observed, image, k.NOW, **more)


def applied(result: Plan, kind: str) -> dict[str, Any] | None:
    found = [a.obj for a in result.actions if isinstance(a, Apply) and a.obj["kind"] == kind]
    assert len(found) <= 1
    return found[0] if found else None


def test_the_first_time_makes_runtime_then_service() -> None:
    result = run(k.spec(), Observed(k.owner()))
    assert [a.obj["kind"] for a in result.actions if isinstance(a, Apply)] == [
        "ServingRuntime",
        "InferenceService",
    ]
    assert all(isinstance(a, Apply) and a.create for a in result.actions)


def test_nothing_changed_writes_nothing() -> None:
    assert run(k.spec(), k.settled(k.spec())).actions == ()


def test_what_servers_and_webhooks_add_is_no_drift() -> None:
    observed = k.settled(k.spec(resources={"cpu": "1000m", "memory": "2048Mi"}))
    service = copy.deepcopy(observed.inference_service)
    assert service is not None
    model = service["spec"]["predictor"]["model"]
    model["resources"]["requests"] |= {"cpu": "1", "memory": "2Gi"}
    model |= {"protocolVersion": "v1", "name": ""}
    service["metadata"]["annotations"]["serving.kserve.io/model-format"] = "sheaf"
    service["metadata"]["ownerReferences"].append({"uid": "another"})
    given = k.spec(resources={"cpu": "1000m", "memory": "2048Mi"})
    assert run(given, replace(observed, inference_service=service)).actions == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "predictor", "model", "storageUri"), "pvc://other"),
        (("spec", "predictor", "model", "runtime"), "m-00000000"),
        (("spec", "predictor", "terminationGracePeriodSeconds"), 1),
        (("spec", "predictor", "labels"), {}),
        (("metadata", "annotations", "serving.kserve.io/stop"), "true"),
        (("metadata", "labels"), {}),
    ],
)
def test_drift_of_the_service_is_repaired(path: tuple[str, ...], value: Any) -> None:
    observed = k.settled(k.spec())
    service = copy.deepcopy(observed.inference_service)
    assert service is not None
    node = service
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    result = run(k.spec(), replace(observed, inference_service=service))
    assert applied(result, "InferenceService") is not None
    assert not any(isinstance(a, Apply) and a.create for a in result.actions)


def test_drift_of_the_runtime_is_repaired_from_the_record() -> None:
    observed = k.settled(k.spec())
    runtime = copy.deepcopy(observed.runtimes[0])
    runtime["spec"]["containers"][0]["image"] = "evil"
    result = run(k.spec(), replace(observed, runtimes=(runtime,)))
    repaired = applied(result, "ServingRuntime")
    assert repaired is not None
    assert repaired["spec"]["containers"][0]["image"] == k.IMAGE


def test_a_newer_operator_restarts_no_pod() -> None:
    result = run(k.spec(), k.settled(k.spec()), image=NEW_IMAGE)
    assert result.actions == ()
    assert result.revision is not None
    assert result.revision.image == k.IMAGE


def test_a_changed_spec_flips_runtime_and_arguments_in_one_write() -> None:
    changed = k.spec(engine={"maxModelLen": 99})
    result = run(changed, k.settled(k.spec()), image=NEW_IMAGE)
    runtime, service = applied(result, "ServingRuntime"), applied(result, "InferenceService")
    assert runtime is not None
    assert service is not None
    assert runtime["metadata"]["name"] != k.settled(k.spec()).runtimes[0]["metadata"]["name"]
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    assert runtime["spec"]["containers"][0]["image"] == NEW_IMAGE


def test_going_back_finds_the_old_runtime() -> None:
    old, new = k.revision(k.spec()), k.revision(k.spec(engine={"maxModelLen": 99}))
    observed = k.settled(
        k.spec(), inference_service=k.service(new), runtimes=(k.runtime(old), k.runtime(new))
    )
    result = run(k.spec(), observed, image=NEW_IMAGE)
    assert applied(result, "ServingRuntime") is None
    service = applied(result, "InferenceService")
    assert service is not None
    assert service["spec"]["predictor"]["model"]["runtime"] == f"m-{old.hash}"


def test_a_paused_rollout_keeps_the_revision() -> None:
    given = k.spec(engine={"maxModelLen": 99}, rollout={"paused": True})
    assert run(given, k.settled(k.spec())).actions == ()


def test_history_is_bounded_and_keeps_what_is_in_use() -> None:
    revisions = [k.revision(k.spec(engine={"maxModelLen": n + 1})) for n in range(6)]
    runtimes = tuple(k.runtime(r, created=f"2026-01-01T00:00:0{n}Z") for n, r in enumerate(revisions))
    in_use = revisions[0]
    observed = k.settled(k.spec(), inference_service=k.service(in_use), runtimes=runtimes)
    wanted = revisions[1]
    result = run(k.spec(engine={"maxModelLen": 2}), observed)
    deleted = {a.name for a in result.actions if isinstance(a, Delete)}
    kept = {r["metadata"]["name"] for r in runtimes} - deleted
    assert kept == {f"m-{in_use.hash}", f"m-{wanted.hash}", f"m-{revisions[5].hash}"}
    assert len(kept) == HISTORY


def test_runtimes_of_the_same_second_are_kept_in_the_order_they_were_made() -> None:
    revisions = [k.revision(k.spec(engine={"maxModelLen": n + 1})) for n in range(6)]
    runtimes = []
    for version, made in enumerate(revisions, start=98):  # 99 → 100: numbers, not text
        runtimes.append(k.runtime(made))
        runtimes[-1]["metadata"]["resourceVersion"] = str(version)
    observed = k.settled(
        k.spec(), inference_service=k.service(revisions[5]), runtimes=tuple(reversed(runtimes))
    )
    result = run(k.spec(engine={"maxModelLen": 6}), observed)
    deleted = {a.name for a in result.actions if isinstance(a, Delete)}
    assert deleted == {f"m-{r.hash}" for r in revisions[:3]}


@pytest.mark.parametrize(("name", "namespace"), [("m" * 48, "n" * 5), ("m", "n" * 63)])
def test_a_name_that_kserve_would_refuse_is_stalled_with_what_to_change(name: str, namespace: str) -> None:
    owner = k.owner()
    owner["metadata"] |= {"name": name, "namespace": namespace}
    result = run(k.spec(), Observed(owner))
    assert result.actions == ()
    assert result.problem is not None
    assert result.problem.reason == "NameTooLong"
    room = 63 - len("-predictor-") - len(namespace)
    assert (f"at most {room} characters" if room > 0 else "shorter namespace") in result.problem.message


def test_a_name_of_the_greatest_length_is_planned() -> None:
    owner = k.owner()
    owner["metadata"] |= {"name": "m" * 48, "namespace": "n" * 4}
    assert run(k.spec(), Observed(owner)).problem is None


def test_an_object_of_somebody_else_is_never_touched() -> None:
    foreign = k.service(k.revision(k.spec()))
    foreign["metadata"]["ownerReferences"] = []
    foreign["metadata"]["labels"] = {}
    result = run(k.spec(), k.settled(k.spec(), inference_service=foreign))
    assert result.actions == ()
    assert result.problem is not None
    assert result.problem.reason == "NameConflict"


def test_a_namesake_that_is_being_deleted_is_waited_for() -> None:
    old = k.service(k.revision(k.spec()))
    old["metadata"]["ownerReferences"][0]["uid"] = "an earlier one"
    result = run(k.spec(), k.settled(k.spec(), inference_service=old))
    assert result.actions == ()
    assert result.problem is not None
    assert result.problem.reason == "WaitingForDeletion"


def orphans(of: Any, **metadata: Any) -> Observed:
    """What `kubectl delete --cascade=orphan` leaves, and a new resource of the same name."""
    left = k.settled(of, owner=k.owner(uid="new", creationTimestamp="2026-01-02T00:00:00Z"))
    assert left.inference_service is not None
    for child in (left.inference_service, *left.runtimes):
        child["metadata"] |= {
            "ownerReferences": [],
            "managedFields": [{"manager": names.FIELD_MANAGER, "operation": "Apply"}],
            "creationTimestamp": "2026-01-01T00:00:01Z",
            **metadata,
        }
    return left


def test_orphans_are_taken_back_as_they_are() -> None:
    left = orphans(k.spec())
    old = k.revision(k.spec(engine={"maxModelLen": 99}))
    history = k.runtime(old)
    history["metadata"] |= {f: left.runtimes[0]["metadata"][f] for f in ("ownerReferences", "managedFields")}
    result = run(k.spec(), replace(left, runtimes=(*left.runtimes, history)), image=NEW_IMAGE)
    assert result.problem is None
    assert all(isinstance(a, Apply) and not a.create for a in result.actions)
    written = {a.obj["metadata"]["name"]: a.obj for a in result.actions if isinstance(a, Apply)}
    assert left.inference_service is not None
    for live in (left.inference_service, *left.runtimes, history):
        obj = written[live["metadata"]["name"]]
        assert obj["spec"] == live["spec"]
        assert obj["metadata"]["labels"] == live["metadata"]["labels"]
        assert obj["metadata"]["annotations"] == live["metadata"]["annotations"]
        assert [ref["uid"] for ref in obj["metadata"]["ownerReferences"]] == ["new"]


def test_pods_of_orphans_serve_on() -> None:
    assert len(orphans(k.spec()).ready_pods) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {}},
        {"managedFields": [{"manager": "kubectl", "operation": "Apply"}]},
        {"ownerReferences": [{"kind": "Other", "name": "m", "uid": "x", "controller": True}]},
    ],
    ids=["no label", "somebody else's field manager", "somebody else's child"],
)
def test_what_only_looks_like_an_orphan_is_a_name_conflict(metadata: dict[str, Any]) -> None:
    result = run(k.spec(), orphans(k.spec(), **metadata))
    assert result.actions == ()
    assert result.problem is not None
    assert result.problem.reason == "NameConflict"
    assert "delete it or choose another name" in result.problem.message


def test_kserve_missing_is_a_problem_and_not_an_error() -> None:
    result = run(k.spec(), Observed(k.owner(), kserve=False))
    assert result.actions == ()
    assert result.problem is not None
    assert result.problem.reason == "KServeMissing"


def test_a_resource_that_is_being_deleted_is_left_alone() -> None:
    owner = k.owner(deletionTimestamp="2026-01-01T00:00:00Z")
    assert run(k.spec(), Observed(owner)).actions == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"autoscaling": {"mode": "Disabled"}, "replicas": 3}, 3),
        ({"autoscaling": {"mode": "Advisory"}, "replicas": 0}, 0),
        ({"autoscaling": {"mode": "Disabled"}, "replicas": 1}, None),
        ({"autoscaling": {"mode": "Disabled"}}, None),
        ({"autoscaling": {"minReplicas": 2, "maxReplicas": 4}}, None),
        ({"autoscaling": {"mode": "Disabled"}, "replicas": 3, "suspend": True}, None),
    ],
)
def test_fixed_replicas_are_written_only_when_the_user_gave_them(
    fields: dict[str, Any], expected: int | None
) -> None:
    given = k.spec(**fields)
    scales = [a for a in run(given, k.settled(given)).actions if isinstance(a, Scale)]
    assert [a.replicas for a in scales] == ([] if expected is None else [expected])


def test_suspend_stops_through_kserve() -> None:
    result = run(k.spec(suspend=True), k.settled(k.spec()))
    service = applied(result, "InferenceService")
    assert service is not None
    assert service["metadata"]["annotations"]["serving.kserve.io/stop"] == "true"


@pytest.mark.parametrize("strategy", ["Surge", "Recreate"])
def test_a_given_strategy_is_used(strategy: str) -> None:
    result = run(k.spec(rollout={"strategy": strategy}), Observed(k.owner()))
    service = applied(result, "InferenceService")
    assert service is not None
    assert service["spec"]["predictor"]["deploymentStrategy"]["type"] == (
        "Recreate" if strategy == "Recreate" else "RollingUpdate"
    )
