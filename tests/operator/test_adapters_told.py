"""LoRA adapters of a model: what pods are told, what they answer, and what the status says of it.

Each case that a public report has come from says which.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import kube_objects as k
from hypothesis import given
from hypothesis import strategies as st
from operator_world import World, reading
from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.errors import ApiError
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.cluster.reading import MOST_ADAPTERS, AdapterReading, Reading, parse
from sheaf_operator.desired import adapters as desired
from sheaf_operator.status import adapters as status

LOAD = "vllm:num_requests_waiting 0\nvllm:num_requests_running 0\nvllm:kv_cache_usage_perc 0\n"


def spec(*wanted: str, **fields: Any) -> LLMDeploymentSpec:
    entries = [{"name": name, "path": f"/a/{name}"} for name in wanted]
    model = {"uri": "pvc://claim/m", "adapters": entries}
    return k.spec(**{"model": model, "engine": {"maxLoras": 2}, **fields})


def settled(given: LLMDeploymentSpec, replicas: int = 1, **more: Any) -> Observed:
    observed = k.settled(given, replicas=replicas, ready=replicas, **more)
    for pod in observed.pods:
        pod["spec"]["volumes"] = k.revision(given).runtime["volumes"]
    return observed


def answer(**adapters: str) -> Reading:
    """Of a pod: each adapter with its failure, or nothing where it is loaded."""
    found = {name: AdapterReading(f"/a/{name}", not words, words) for name, words in adapters.items()}
    return replace(reading(), adapters=found)


def said(given: LLMDeploymentSpec, observed: Observed, **readings: Reading | str) -> dict[str, str]:
    return {a["name"]: a["reason"] for a in status.build(given, observed, readings)}


# What reaches the pods


def test_a_change_of_the_adapters_is_no_new_revision() -> None:
    """A list in the pod template would replace every pod for each adapter."""
    assert k.revision(spec("a")).hash == k.revision(spec("a", "b")).hash == k.revision(spec()).hash
    assert k.revision(spec("a")).serves(spec("b"))
    assert k.revision(spec()).hash != k.revision(spec(engine={"maxLoras": 3})).hash


def test_pods_start_with_room_and_read_their_annotation() -> None:
    made = k.revision(spec("a", engine={"maxLoras": 2, "maxLoraRank": 8})).runtime
    [container] = made["containers"]
    args = container["args"]
    assert args[args.index("--max-loras") + 1] == "2"
    assert args[args.index("--max-lora-rank") + 1] == "8"
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    [volume] = [v for v in made["volumes"] if v["name"] == names.ADAPTERS_VOLUME]
    [item] = volume["downwardAPI"]["items"]
    assert args[args.index("--adapters-file") + 1] == f"{mounts[names.ADAPTERS_VOLUME]}/{item['path']}"
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{names.ANNOTATION_ADAPTERS}']"


def test_without_max_loras_a_pod_is_as_it_was() -> None:
    made = k.revision(k.spec()).runtime
    assert "--enable-lora" not in made["containers"][0]["args"]
    assert names.ADAPTERS_VOLUME not in {v["name"] for v in made["volumes"]}


# What pods are told


async def test_each_pod_is_told_once() -> None:
    wanted = spec("a", autoscaling={"mode": "Disabled"})
    world = World(wanted, settled(wanted, 2))
    text = '{"a":"/a/a"}'
    assert await world.run() == [("adapters", "p0", text), ("adapters", "p1", text)]
    for pod in world.cluster.observed.pods:  # type: ignore[union-attr]
        pod["metadata"]["annotations"] = {names.ANNOTATION_ADAPTERS: text}
    world.change()
    assert await world.run(5) == []


async def test_a_pod_that_comes_later_is_told_before_it_is_ready() -> None:
    """aibrix#236: adapters were lost with a pod."""
    observed = k.settled(spec("a"), replicas=2, ready=1)
    for pod in observed.pods:
        pod["spec"]["volumes"] = k.revision(spec()).runtime["volumes"]
    told = [pod["metadata"]["name"] for pod in desired.untold(spec("a"), observed)]
    assert told == ["p0", "p1"]


def test_pods_that_cannot_have_adapters_are_left_alone() -> None:
    """Of a revision from before engine.maxLoras was set, or one that was rolled back to."""
    assert desired.untold(spec("a"), k.settled(k.spec())) == []


def test_no_adapters_any_more_is_told_too() -> None:
    observed = settled(spec())
    assert desired.untold(spec(), observed) == []
    observed.pods[0]["metadata"]["annotations"] = {names.ANNOTATION_ADAPTERS: '{"a":"/a/a"}'}
    assert len(desired.untold(spec(), observed)) == 1
    assert desired.wanted(spec()) is None


async def test_a_pod_that_has_gone_is_no_failure() -> None:
    """aibrix#239: an adapter could not be made anew, because its pod was not in a cache any more."""
    world = World(spec("a"), settled(spec("a")))

    async def gone(pod: dict[str, Any], text: str | None) -> None:
        raise ApiError(404, "NotFound", "pods p0 not found")

    world.cluster.set_adapters = gone  # type: ignore[method-assign]
    await world.run()
    assert world.cluster.status["readyReplicas"] == 1


@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=5))
def test_whatever_was_told_before_pods_end_up_with_the_last_wish(history: list[set[str]]) -> None:
    observed = settled(spec(), 3)
    for wish in history:
        wanted = spec(*sorted(wish))
        for pod in desired.untold(wanted, observed):
            pod["metadata"]["annotations"] = {names.ANNOTATION_ADAPTERS: desired.wanted(wanted)}
        assert desired.untold(wanted, observed) == []
    for pod in observed.pods:
        text = pod["metadata"].get("annotations", {}).get(names.ANNOTATION_ADAPTERS)
        assert (set(json.loads(text)) if text else set()) == history[-1]


# What pods answer


def test_states_are_read_from_the_metrics() -> None:
    text = (
        LOAD + 'sheaf:adapter_info{model_name="m",adapter="a",path="/a/a",state="ready",message=""} 1\n'
        'sheaf:adapter_info{adapter="b",path="/a/b",state="failed",message="\\"r\\"} \\\\"} 1\n'
        'sheaf:adapter_info{model_name="m",state="ready"} 1\n'
    )
    assert parse(text).adapters == {
        "a": AdapterReading("/a/a", True),
        "b": AdapterReading("/a/b", False, '"r"} \\'),
    }
    assert parse(LOAD).adapters == {}


def test_a_pod_that_names_very_many_is_not_believed() -> None:
    lines = (f'sheaf:adapter_info{{adapter="{i}",path="/a",state="ready"}} 1\n' for i in range(1000))
    assert len(parse(LOAD + "".join(lines)).adapters) == MOST_ADAPTERS


# What the status says


def test_a_broken_one_fails_and_says_why_and_the_others_do_not() -> None:
    """aibrix#1860 and #235: retried for ever without Failed, or said to run while it did not."""
    wanted = spec("a", "b", "c")
    given = status.build(wanted, settled(wanted), {"p0": answer(a="", b="use_dora is not supported")})
    assert [(e["name"], e["state"]) for e in given] == [("a", "Ready"), ("b", "Failed"), ("c", "Loading")]
    assert given[1]["message"] == "1 of 1 ready replicas cannot have it: use_dora is not supported"


def test_it_is_ready_only_where_every_ready_replica_has_it() -> None:
    """kubeai#347: a pod that had the adapter was never marked so."""
    wanted = spec("a")
    assert said(wanted, settled(wanted, 2), p0=answer(a=""), p1=answer()) == {"a": "Loading"}
    assert said(wanted, settled(wanted, 2), p0=answer(a=""), p1=answer(a="")) == {"a": "Loaded"}


def test_the_folder_before_does_not_count_under_the_same_name() -> None:
    moved = k.spec(
        model={"uri": "pvc://c/m", "adapters": [{"name": "a", "path": "/a/2"}]}, engine={"maxLoras": 1}
    )
    assert said(moved, settled(moved), p0=answer(a="")) == {"a": "Loading"}


def test_without_a_ready_replica() -> None:
    wanted = spec("a")
    assert said(wanted, k.settled(wanted, ready=0)) == {"a": "NoReadyReplica"}


def test_a_pod_that_does_not_answer_once_changes_nothing() -> None:
    wanted = spec("a")
    known = {"name": "a", "state": "Ready", "reason": "Loaded", "message": "", "readyReplicas": 1}
    owner = k.owner(status={"observedGeneration": 1, "adapters": [known]})
    assert said(wanted, settled(wanted, owner=owner), p0="no answer") == {"a": "Loaded"}
    newer = k.owner(generation=2, status={"observedGeneration": 1, "adapters": [known]})
    assert said(wanted, settled(wanted, owner=newer), p0="no answer") == {"a": "Loading"}


def test_the_status_stays_small() -> None:
    wanted = spec(*(f"{i:03}" + "x" * 125 for i in range(32)))
    broken = answer(**{a.name: "w" * 5000 for a in wanted.model.adapters})
    assert len(json.dumps(status.build(wanted, settled(wanted), {"p0": broken}))) < 16_384


async def test_a_model_with_a_broken_adapter_is_ready() -> None:
    world = World(spec("a"), settled(spec("a")))
    world.scraper.load = {"p0": answer(a="No adapter found")}
    await world.run()
    ready = next(c for c in world.cluster.status["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "True"
    assert world.cluster.status["adapters"][0]["state"] == "Failed"


async def test_they_are_looked_at_also_while_nothing_is_scaled() -> None:
    """A failure after the first success is seen."""
    wanted = spec("a", autoscaling={"mode": "Disabled"})
    world = World(wanted, settled(wanted))
    for pod in world.cluster.observed.pods:  # type: ignore[union-attr]
        pod["metadata"]["annotations"] = {names.ANNOTATION_ADAPTERS: desired.wanted(wanted)}
    world.scraper.load = {"p0": answer(a="")}
    await world.run()
    await world.run(5)
    assert world.again is not None
    world.scraper.load = {"p0": answer(a="gone")}
    await world.run(5)
    assert world.cluster.status["adapters"][0]["reason"] == "LoadFailed"
