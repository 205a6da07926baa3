"""Pods come and go under a steady stream of requests, and nobody notices.

Open loop through the Service, streaming, pooled keep-alive connections, no retries: each request must end
with its finish reason and ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from localcluster.cluster import Cluster
from sheaf_e2e.deployed import Deployed, evict, manifest, scaling
from sheaf_e2e.streams import Streams

pytestmark = pytest.mark.cluster
RATE = 5.0  # requests per second
# About a second each, so that some are under way at every moment.
LOAD = {"prompt_tokens": 32, "output_tokens": 250, "rate": RATE}


@pytest.fixture(scope="module")
def pages(operator: Cluster, tiny_model: Path) -> Iterator[Deployed]:
    """Two replicas that only minReplicas holds."""
    with operator.new_namespace("lossless") as namespace:
        operator.model_volume("tiny", tiny_model, namespace)
        autoscaling = {
            "minReplicas": 2,
            "maxReplicas": 2,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        }
        resource = manifest(
            "pages", namespace, "pvc://tiny", 4096, "--kv-cache-memory", "16MiB", autoscaling=autoscaling
        )
        made = Deployed(operator, resource)
        made.wait_ready(2)
        yield made


def test_eviction(pages: Deployed) -> None:
    victim, other = pages.pod_names()
    with Streams(pages.url, "pages", **LOAD) as streams:
        streams.wait_answers(5)
        evict(pages.cluster, victim, pages.namespace)
        pages.wait_gone(victim)
        streams.wait_answers(5)
    assert streams.failures == []
    pages.wait_ready(2)
    assert other in pages.pod_names()


def test_scale_down(pages: Deployed) -> None:
    before = pages.pod_names()
    with Streams(pages.url, "pages", seed=1, **LOAD) as streams:
        streams.wait_answers(5)
        pages.patch({"autoscaling": {"minReplicas": 1}})
        pages.wait(lambda s: scaling(s).get("desired") == 1 == s["replicas"], "one replica", 90)
        (stays,) = pages.pod_names()
        (goes,) = set(before) - {stays}
        pages.wait_gone(goes)
        streams.wait_answers(5)
    assert streams.failures == []


def test_rollout(pages: Deployed) -> None:
    """Of one replica, where the old one must serve until the new one does."""
    pages.patch({"autoscaling": {"minReplicas": 1}})
    pages.wait_ready(1)
    (old,) = pages.pod_names()
    revision = pages.get()["status"]["revision"]
    with Streams(pages.url, "pages", seed=2, **LOAD) as streams:
        streams.wait_answers(5)
        generation = pages.patch(
            {
                "engine": {
                    "maxModelLen": 2048,
                    "extraArgs": ["--kv-cache-memory", "16MiB", "--max-num-seqs", "32"],
                }
            }
        )
        pages.wait_gone(old)
        streams.wait_answers(5)
    assert streams.failures == []
    status = pages.get()["status"]
    assert status["observedGeneration"] == generation
    assert status["revision"] != revision
    (new,) = pages.pods()
    args = new["spec"]["containers"][0]["args"]
    assert args[args.index("--max-model-len") + 1] == "2048"
    assert args[args.index("--max-num-seqs") + 1] == "32"
