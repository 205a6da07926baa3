"""Two LLMDeployments side by side: each follows its own load up and down, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from localcluster.cluster import Cluster, wait_until
from sheaf_e2e.deployed import Deployed, manifest, scaling
from sheaf_e2e.operator_faults import OperatorFaults
from sheaf_e2e.streams import Streams

pytestmark = [pytest.mark.cluster, pytest.mark.model]
INTERVAL = 5  # seconds between two readings of the metrics
WINDOW = 2 * INTERVAL  # that a scale-down waits here
BEHAVIOR = {"scaleDown": {"stabilizationWindowSeconds": WINDOW}}
KV_TARGET = 20
# 256 bytes of keys and values per token of the tiny model: 16800 tokens. A request of PROMPT and OUTPUT
# tokens therefore holds 13 to 18 % of a replica's pool all its life.
KV_POOL = "4200KiB"
PROMPT, OUTPUT = 2200, 800


@dataclass(frozen=True)
class Pair:
    """``queue``: the real model, two requests at a time. ``kv``: a tiny model with a tiny KV pool."""

    queue: Deployed
    kv: Deployed


@pytest.fixture(scope="module")
def pair(operator: Cluster, model_folder: Path, tiny_model: Path) -> Iterator[Pair]:
    with operator.new_namespace("scaling") as namespace:
        operator.model_volume("smollm2", model_folder, namespace)
        operator.model_volume("tiny", tiny_model, namespace)
        queue = manifest(
            "queue",
            namespace,
            "pvc://smollm2",
            512,
            *("--max-num-seqs", "2", "--kv-cache-memory", "64MiB"),
            autoscaling={
                "minReplicas": 1,
                "maxReplicas": 3,
                "metrics": [{"type": "QueueDepth", "target": 1}],
                "behavior": BEHAVIOR,
            },
        )
        kv = manifest(
            "kv",
            namespace,
            "pvc://tiny",
            16384,
            *("--max-num-seqs", "64", "--kv-cache-memory", KV_POOL),
            autoscaling={
                "minReplicas": 1,
                "maxReplicas": 3,
                "metrics": [
                    {"type": "QueueDepth", "target": 1},
                    {"type": "KVCacheUtilizationPercent", "target": KV_TARGET},
                ],
                "behavior": BEHAVIOR,
            },
        )
        made = Pair(Deployed(operator, queue), Deployed(operator, kv))
        made.kv.wait_ready(1)
        made.queue.wait_ready(1)
        yield made


def bounds(deployed: Deployed, minimum: int, maximum: int) -> None:
    deployed.patch({"autoscaling": {"minReplicas": minimum, "maxReplicas": maximum}})


def test_both_answer(pair: Pair) -> None:
    answers = {}
    for deployed in (pair.queue, pair.kv):
        with openai.OpenAI(base_url=f"{deployed.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [deployed.name]
            answer = client.completions.create(
                model=deployed.name, prompt="The capital of France is", max_tokens=4, temperature=0
            )
            answers[deployed.name] = answer.choices[0].text
    assert "Paris" in answers["queue"]
    assert answers["kv"] != answers["queue"]


def test_a_queue_brings_a_replica_and_says_why(pair: Pair) -> None:
    beside = pair.kv.deployment()
    with Streams(pair.queue.url, "queue", prompt_tokens=16, output_tokens=48, clients=4) as streams:
        told = pair.queue.wait(
            lambda s: (
                any(d["limiting"] == "QueueDepth" for d in scaling(s).get("decisions", [])) and scaling(s)
            ),
            "a decision for want of places in the queue",
        )
        pair.queue.wait_ready(2)
    decision = told["decisions"][0]
    assert (decision["from"], decision["to"]) == (1, 2)
    assert "2 requests waiting and 2 running on 1 replica" in decision["reason"]
    assert "2 replicas needed" in decision["reason"]
    assert not streams.failures
    # Nobody touched the other one.
    after = pair.kv.deployment()
    assert beside is not None
    assert after is not None
    assert after["metadata"]["generation"] == beside["metadata"]["generation"]


def test_kv_alone_brings_a_replica_and_a_killed_operator_goes_on_counting(
    pair: Pair, faults: OperatorFaults
) -> None:
    kv = pair.kv
    bounds(kv, 1, 3)
    url = kv.url
    load = {"prompt_tokens": PROMPT, "output_tokens": OUTPUT}
    with kv.replica_counts() as counts, Streams(url, "kv", clients=2, **load) as first:
        told = kv.wait(
            lambda s: scaling(s).get("desired") == 2 and scaling(s), "KV use asks for a second replica"
        )
        pod = faults.kill_operator()  # the second replica has yet to start
        signals = {metric["type"]: metric for metric in told["metrics"]}
        assert signals["QueueDepth"]["value"] == 0
        assert signals["KVCacheUtilizationPercent"]["value"] > KV_TARGET
        assert told["limiting"] == "KVCacheUtilizationPercent"
        assert "target 20%: 2 replicas needed" in told["decisions"][0]["reason"]
        with Streams(url, "kv", clients=2, seed=1, **load) as second:
            kv.wait(lambda s: scaling(s).get("desired") == 3, "more load brings a third", 90)
            restarts = pair.kv.cluster.api.get("v1", "Pod", pod, "sheaf-system")["status"]
            assert restarts["containerStatuses"][0]["restartCount"] >= 1
            kv.wait_ready(3)
        assert counts == [1, 2, 3]
    assert not first.failures + second.failures

    # The user's object holds the user's word and our status, nothing else.
    resource = kv.get()
    assert resource["metadata"].get("annotations") is None
    assert resource["metadata"].get("finalizers") is None
    assert resource["metadata"].get("labels") is None
    writers = {(m["manager"], m.get("subresource", "")) for m in resource["metadata"]["managedFields"]}
    assert {manager for manager, part in writers if part == "status"} == {"sheaf-operator"}
    assert "sheaf-operator" not in {manager for manager, part in writers if part != "status"}


@pytest.fixture
def two(pair: Pair) -> Deployed:
    """``kv`` with two replicas and no load: only minReplicas holds the second one."""
    bounds(pair.kv, 2, 2)
    pair.kv.wait_ready(2)
    return pair.kv


def test_a_cut_off_replica_is_no_reason_to_shrink(two: Deployed, faults: OperatorFaults) -> None:
    cut = two.pod_names()[-1]
    with two.replica_counts() as counts, faults.cut_pod(cut, two.namespace):
        told = two.wait_limiting("MissingSamples")
        assert "1 replica not answering" in told["reason"]
        bounds(two, 1, 2)
        # The kubelet calls it unready soon; what it does is as unknown as before.
        two.wait(lambda s: s["readyReplicas"] == 1, "it counts as unready")
        two.wait_counted("scrapes", WINDOW // INTERVAL + 2)  # of the other one: the window is over
        assert scaling(two.get()["status"])["desired"] == 2
        assert counts == [2]


def test_scale_down_waits_and_takes_the_replica_with_the_least_kv(two: Deployed) -> None:
    _, busy = two.pod_names()  # left alone, a ReplicaSet would take the younger one
    direct = two.cluster.pod_url(busy, 8000, two.namespace)
    with Streams(direct, "kv", prompt_tokens=1000, output_tokens=1500, clients=1) as streams:
        wait_until(lambda: streams.outcomes, 30, "the stream runs")
        bounds(two, 1, 2)
        told = two.wait_limiting("StabilizationWindow")
        assert f"2 replicas were needed in the last {WINDOW} s" in told["reason"]
        assert "nextChangeAfter" in told
        deployment = two.deployment()
        assert deployment is not None
        assert deployment["spec"]["replicas"] == 2
        two.wait(lambda s: scaling(s).get("desired") == 1, "the window is over")
        wait_until(lambda: len(two.pod_names()) == 1, 30, "one pod is told to go")
        assert two.pod_names() == [busy]
    assert not streams.failures


def test_deleting_one_leaves_nothing_of_it_and_all_of_the_other(pair: Pair) -> None:
    pods = pair.kv.pod_names()
    url = pair.kv.url
    with Streams(url, "kv", prompt_tokens=16, output_tokens=16, rate=2) as streams:
        pair.queue.cluster.kubectl("delete", "-n", pair.queue.namespace, "llmd/queue", "--timeout=30s")
        wait_until(lambda: not pair.queue.left(), 120, "nothing of it is left", every=0.5)
        streams.wait_answers(1)
    assert not streams.failures
    assert pair.kv.pod_names() == pods
