"""Which old pod may stop before its successor serves: nothing that serves is ended for nothing."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import kube_objects as k
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired import render
from sheaf_operator.desired.actions import Apply
from sheaf_operator.desired.plan import plan
from sheaf_operator.desired.rollout import Rollout, choose_strategy

NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
NO_GPU_THERE = (
    "0/9 nodes are available: 3 Insufficient cpu, 3 Insufficient nvidia.com/gpu, 4 node(s) didn't match Pod's"
    " node affinity/selector, 2 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }."
    " preemption: 0/9 nodes are available: 9 No preemption victims found for incoming pod."
)
POOL = {"nodeSelector": {"pool": "a", "disk": "fast"}}
OLD = k.spec(resources={"cpu": "7", "memory": "28Gi"}, pod=POOL)
PATIENCE = timedelta(seconds=OLD.rollout.patience_seconds)


def changed(**fields: Any) -> Any:
    """The old spec with other fields, and a change that has no part in where the pod may run."""
    spec = OLD.model_dump(by_alias=True, exclude_none=True) | {"engine": {"maxModelLen": 99}}
    for key, value in fields.items():
        spec[key] = {**spec.get(key, {}), **value} if isinstance(value, dict) else value
    return k.spec(**spec)


def stuck(new: Any, message: str = NO_GPU, replicas: int = 2, **more: Any) -> Observed:
    """All replicas of the old revision serve; the first pod of the new one finds no place."""
    old = k.revision(OLD)
    pods = [k.pod(f"p{n}", old, ready=True) for n in range(replicas)]
    pods.append(k.unschedulable(message, k.revision(new)))
    return k.settled(new, **{"deployment": k.deployment(replicas), "pods": tuple(pods), **more})


def after(observed: Observed, new: Any, wait: timedelta = PATIENCE) -> Rollout:
    """The choice once that has lasted for so long."""
    first = choose_strategy(new, observed, k.revision(new), k.NOW)
    return choose_strategy(new, observed, k.revision(new), k.NOW + wait, first.want)


@pytest.mark.parametrize("message", [NO_GPU, NO_GPU_THERE])
def test_auto_gives_up_an_old_pod_for_the_device_that_it_holds(message: str) -> None:
    new = changed()
    observed = stuck(new, message)
    early = after(observed, new, PATIENCE - timedelta(seconds=5))
    assert (early.strategy, early.again) == ("Surge", 5)
    assert after(observed, new).strategy == "GiveUpFirst"


TERMS = [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": TERMS}}}
GPU, CPU = "Insufficient nvidia.com/gpu", "Insufficient cpu"
BOOTS = "node(s) had untolerated taint {node.kubernetes.io/not-ready: }"
SURGES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    (
        "a selector that no node has",
        {"pod": {"nodeSelector": {"pool": "aa"}}},
        ("node(s) didn't match Pod's node affinity/selector",),
    ),
    ("another pool, whose devices are taken", {"pod": {"nodeSelector": {"pool": "b"}}}, (GPU,)),
    (
        "a label that the old pod did not ask for",
        {"pod": {"nodeSelector": {**POOL["nodeSelector"], "zone": "x"}}},
        (GPU,),
    ),
    ("another affinity", {"pod": {"affinity": AFFINITY}}, (GPU,)),
    ("another runtime class", {"pod": {"runtimeClassName": "kata"}}, (GPU,)),
    (
        "a slice that no node offers",
        {"accelerator": {"resourceName": "nvidia.com/mig-1g.24gb"}},
        ("Insufficient nvidia.com/mig-1g.24gb",),
    ),
    (
        "more devices than the old pod has",
        {"accelerator": {"count": 2}, "parallelism": {"tensor": 2}},
        (GPU,),
    ),
    ("more CPU than the old pod has", {"resources": {"cpu": "12"}}, (CPU,)),
    ("more CPU beside the device", {"resources": {"cpu": "12"}}, (CPU, GPU)),
    ("more memory than the old pod has", {"resources": {"memory": "29Gi"}}, ("Insufficient memory",)),
    ("a taint", {}, ("node(s) had untolerated taint {nvidia.com/gpu: present}",)),
    ("too many pods", {}, ("Too many pods",)),
    ("a node that is closed", {}, (GPU, "node(s) were unschedulable")),
    ("a node that boots", {}, (GPU, BOOTS)),
    ("something else on that node", {}, ("Insufficient vendor.example/nic",)),
    ("a claim that is not there", {}, ('persistentvolumeclaim "claim" not found',)),
    ("nothing said", {}, ()),
]


def no_node(*why: str) -> str:
    return "0/3 nodes are available: " + ", ".join(f"1 {reason}" for reason in why) + "."


@pytest.mark.parametrize(("fields", "why"), [c[1:] for c in SURGES], ids=[c[0] for c in SURGES])
@pytest.mark.parametrize("replicas", [1, 2])
def test_auto_surges_where_the_end_of_an_old_pod_would_not_help(
    fields: dict[str, Any], why: tuple[str, ...], replicas: int
) -> None:
    new = changed(**fields)
    chosen = after(stuck(new, no_node(*why), replicas), new, timedelta(days=1))
    assert chosen.strategy == "Surge"
    assert chosen.waits is None


def test_a_wider_placement_is_no_other_place() -> None:
    new = changed(pod={"nodeSelector": {"pool": "a"}, "tolerations": [{"key": "x", "operator": "Exists"}]})
    assert after(stuck(new), new).strategy == "GiveUpFirst"


def test_a_toleration_that_the_new_pod_lacks_is_another_place() -> None:
    old = k.spec(pod={"tolerations": [{"key": "x", "operator": "Exists"}]})
    new = k.spec(engine={"maxModelLen": 99})
    observed = stuck(
        new, pods=(k.pod("a", k.revision(old), ready=True), k.unschedulable(NO_GPU, k.revision(new)))
    )
    assert after(observed, new).strategy == "Surge"


def test_with_one_replica_it_waits_and_says_what_is_missing() -> None:
    new = changed()
    chosen = after(stuck(new, replicas=1), new, timedelta(days=1))
    assert chosen.strategy == "Surge"
    assert chosen.waits is not None
    assert chosen.waits.reason == "NeedsCapacity"
    for words in ("nvidia.com/gpu", "1 Insufficient nvidia.com/gpu", "add room", "Recreate"):
        assert words in chosen.waits.message


def test_what_was_lacking_before_does_not_count() -> None:
    """A node that boots: first no node at all, then one whose device plugin is not there yet."""
    new = changed()
    first = stuck(new, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu, 1 Insufficient cpu.")
    want = choose_strategy(new, first, k.revision(new), k.NOW).want
    chosen = choose_strategy(new, stuck(new), k.revision(new), k.NOW + PATIENCE, want)
    assert (chosen.strategy, chosen.again) == ("Surge", PATIENCE.total_seconds())
    other = changed(engine={"maxModelLen": 100})
    chosen = choose_strategy(other, stuck(other), k.revision(other), k.NOW + PATIENCE, chosen.want)
    assert chosen.again == PATIENCE.total_seconds()


def test_patience_is_the_users() -> None:
    new = changed(rollout={"patienceSeconds": 0})
    assert choose_strategy(new, stuck(new), k.revision(new), k.NOW).strategy == "GiveUpFirst"


def test_once_begun_it_goes_on_until_no_old_pod_is_left() -> None:
    new = changed()
    of, old = k.revision(new), k.revision(OLD)
    going = stuck(new, inference_service=k.service(of, "GiveUpFirst"))
    assert choose_strategy(new, going, of, k.NOW).strategy == "GiveUpFirst"
    loading = replace(going, pods=(k.pod("a", old, ready=True), k.pod("b", of)))
    assert choose_strategy(new, loading, of, k.NOW).strategy == "GiveUpFirst"
    done = replace(going, pods=(k.pod("a", of, ready=True), k.pod("b", of)))
    assert choose_strategy(new, done, of, k.NOW).strategy == "Surge"


def test_it_stops_when_the_last_one_is_left() -> None:
    """The scaler's or the user's doing: with one replica wanted, the Deployment would keep none."""
    new = changed()
    going = stuck(new, replicas=1, inference_service=k.service(k.revision(new), "GiveUpFirst"))
    assert choose_strategy(new, going, k.revision(new), k.NOW).strategy == "Surge"


def silent(name: str, of: Any, seconds: float) -> Any:
    pod = k.pod(name, of)
    turned = (k.NOW - timedelta(seconds=seconds)).isoformat()
    pod["status"]["conditions"][1]["lastTransitionTime"] = turned
    return pod


@pytest.mark.parametrize(
    ("seconds", "strategy"), [(5, "Surge"), (PATIENCE.total_seconds() + 1, "GiveUpFirst")]
)
def test_a_single_old_pod_that_serves_nobody_is_given_up(seconds: float, strategy: str) -> None:
    """It crashes, and the correction finds its device taken: without this it would wait for ever."""
    new = changed(rollout={"patienceSeconds": 0})
    patient = changed()
    of = k.revision(patient)
    observed = stuck(
        patient, replicas=1, pods=(silent("a", k.revision(OLD), seconds), k.unschedulable(NO_GPU, of))
    )
    want = choose_strategy(patient, observed, of, k.NOW - PATIENCE).want
    assert choose_strategy(patient, observed, of, k.NOW, want).strategy == strategy
    assert choose_strategy(new, observed, of, k.NOW).strategy == "GiveUpFirst"


QUOTA = (
    'pods "m-1" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=1,'
    " used: requests.nvidia.com/gpu=2, limited: requests.nvidia.com/gpu=2"
)


def refused(message: str, replicas: int = 2) -> Any:
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:20Z",
    }
    return k.deployment(replicas, conditions=[failure])


@pytest.mark.parametrize(
    ("message", "strategy"),
    [
        (QUOTA, "GiveUpFirst"),
        (QUOTA.replace("requests.nvidia.com/gpu=1", "pods=1"), "GiveUpFirst"),
        (QUOTA.replace("requests.nvidia.com/gpu=1", "limits.memory=28Gi,requests.cpu=7"), "GiveUpFirst"),
        (QUOTA.replace("requests.nvidia.com/gpu=1", "requests.storage=1Gi"), "Surge"),
        ('pods "m-1" is forbidden: violates PodSecurity "restricted:latest"', "Surge"),
    ],
)
def test_a_quota_that_the_old_pod_takes_up(message: str, strategy: str) -> None:
    new = changed()
    old = tuple(k.pod(f"p{n}", k.revision(OLD), ready=True) for n in range(2))
    observed = stuck(new, deployment=refused(message), pods=old)
    assert after(observed, new).strategy == strategy
    one = stuck(new, deployment=refused(message, 1), pods=old[:1])
    waits = after(one, new).waits
    assert (waits is not None and waits.reason == "NeedsCapacity") == (strategy == "GiveUpFirst")


MULTI_ATTACH = 'Multi-Attach error for volume "pv" Volume is already used by pod(s) p0'


def waiting_for_volume(of: Any) -> tuple[Any, Any]:
    """A new pod on another node, and the Event about it."""
    pod = k.pod("p9", of)
    pod["status"]["conditions"].append({"type": "PodReadyToStartContainers", "status": "False"})
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    about = {"kind": "Pod", "name": "p9"}
    event = {"type": "Warning", "reason": "FailedAttachVolume", "message": MULTI_ATTACH}
    return pod, {**event, "involvedObject": about}


@pytest.mark.parametrize(
    ("ready", "replicas", "chosen"),
    [
        pytest.param((True,), 1, ("Surge", "NeedsCapacity"), id="the last one serves"),
        pytest.param((False,), 1, ("GiveUpFirst", None), id="it serves nobody"),
        pytest.param((True, True), 2, ("Surge", None), id="two hold it on one node"),
    ],
)
def test_a_claim_that_the_old_pod_holds(
    ready: tuple[bool, ...], replicas: int, chosen: tuple[str, str | None]
) -> None:
    new = changed()
    old = k.revision(OLD)
    waits, event = waiting_for_volume(k.revision(new))
    holders = [k.pod(f"p{n}", old, ready=serves) for n, serves in enumerate(ready)]
    observed = stuck(new, replicas=replicas, pods=(*holders, waits), events=(event,))
    found = after(observed, new)
    assert (found.strategy, found.waits and found.waits.reason) == chosen
    if found.waits:
        for words in ("claim claim", MULTI_ATTACH, "ReadWriteMany", "Recreate"):
            assert words in found.waits.message


@pytest.mark.parametrize("strategy", ["Surge", "Recreate"])
def test_a_strategy_of_the_users_is_kept(strategy: str) -> None:
    new = changed(rollout={"strategy": strategy})
    assert after(stuck(new), new, timedelta(days=1)).strategy == strategy


def test_the_plan_writes_the_strategy_once() -> None:
    new = changed(rollout={"patienceSeconds": 0})
    observed = stuck(new)
    result = plan(new, observed, k.IMAGE, k.NOW)
    services = [a.obj for a in result.actions if isinstance(a, Apply) and a.obj["kind"] == "InferenceService"]
    (written,) = [service["spec"]["predictor"]["deploymentStrategy"] for service in services]
    assert written == render.STRATEGIES["GiveUpFirst"]
    going = replace(observed, inference_service=k.service(k.revision(new), "GiveUpFirst"))
    kinds = [a.obj["kind"] for a in plan(new, going, k.IMAGE, k.NOW).actions if isinstance(a, Apply)]
    assert "InferenceService" not in kinds


reasons = st.sampled_from([GPU, CPU, "Insufficient memory", "Too many pods", "node(s) were unschedulable"])


@given(
    said=st.lists(st.tuples(st.integers(1, 9), reasons), max_size=4),
    cpu=st.integers(1, 12),
    replicas=st.integers(1, 3),
    ready=st.integers(0, 3),
    waited=st.integers(0, 10_000),
)
def test_the_last_replica_that_serves_is_never_given_up(
    said: list[tuple[int, str]], cpu: int, replicas: int, ready: int, waited: int
) -> None:
    """Whatever the scheduler says: giving up leaves all but one replica to be available."""
    new = changed(resources={"cpu": str(cpu)})
    message = "0/9 nodes are available: " + ", ".join(f"{n} {reason}" for n, reason in said) + "."
    old = k.revision(OLD)
    pods = tuple(k.pod(f"p{n}", old, ready=n < ready) for n in range(replicas))
    observed = stuck(new, replicas=replicas, pods=(*pods, k.unschedulable(message, k.revision(new))))
    chosen = after(observed, new, timedelta(seconds=waited))
    if chosen.strategy == "GiveUpFirst":
        assert replicas > 1 or ready == 0
        assert waited >= PATIENCE.total_seconds()
        assert cpu <= 7 or "cpu" not in message
