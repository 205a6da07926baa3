"""Plain KServe: an ordinary InferenceService on Sheaf's runtime, without the operator."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
import yaml
from localcluster.cluster import Cluster, Object
from sheaf_e2e.checkout import CHECKOUT

pytestmark = pytest.mark.cluster
SERVICE = "serving.kserve.io/v1beta1"
RUNTIME = "serving.kserve.io/v1alpha1"
SAMPLE = CHECKOUT / "manifests" / "samples" / "inferenceservice.yaml"
NAME = "smollm2-kserve"


@pytest.fixture(scope="module")
def serving_runtime(cluster: Cluster) -> Iterator[Object]:
    """The ClusterServingRuntime of manifests/; one that Helm has made already stays Helm's."""
    there_before = cluster.api.find(RUNTIME, "ClusterServingRuntime", "sheaf")
    cluster.kubectl("apply", "--server-side", "-k", str(CHECKOUT / "manifests" / "serving-runtime"))
    yield cluster.api.get(RUNTIME, "ClusterServingRuntime", "sheaf")
    if there_before is None:
        cluster.api.delete(RUNTIME, "ClusterServingRuntime", "sheaf")


def predictor_pods(cluster: Cluster, namespace: str) -> list[Object]:
    label = f"serving.kserve.io/inferenceservice={NAME}"
    return cluster.api.list_objects("v1", "Pod", namespace, labels=label)


def wait_ready(cluster: Cluster, namespace: str) -> None:
    def ready(services: list[Object]) -> bool:
        conditions = [c for s in services for c in s.get("status", {}).get("conditions", [])]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    cluster.api.wait_for(
        SERVICE,
        "InferenceService",
        ready,
        namespace=namespace,
        name=NAME,
        timeout=180,
        describe="KServe reports the InferenceService Ready",
    )


def test_the_sample_answers_and_drains(
    cluster: Cluster, serving_runtime: Object, namespace: str, model_claim: str
) -> None:
    sample = yaml.safe_load(SAMPLE.read_text())
    sample["metadata"]["namespace"] = namespace
    cluster.api.apply(sample)
    wait_ready(cluster, namespace)

    # The pod is the runtime's container with the InferenceService's arguments after its own.
    (pod,) = predictor_pods(cluster, namespace)
    (container,) = pod["spec"]["containers"]
    (template,) = serving_runtime["spec"]["containers"]
    assert container["image"] == template["image"]
    own = [a.replace("{{.Name}}", NAME) for a in template["args"]]
    assert container["args"] == own + sample["spec"]["predictor"]["model"]["args"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 90
    assert not any(label.startswith("sheaf.dev/") for label in pod["metadata"]["labels"])

    base = cluster.url(f"{NAME}-predictor", namespace)
    with httpx.Client(base_url=base, timeout=120, trust_env=False) as client:
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == [NAME]
        question = [{"role": "user", "content": "What is the capital of France?"}]
        body = {"model": NAME, "messages": question, "max_tokens": 20, "temperature": 0}
        answer = client.post("/v1/chat/completions", json=body)
        assert "Paris" in answer.json()["choices"][0]["message"]["content"], answer.text

        # A pod that is deleted while it answers finishes the answer.
        text = {"model": NAME, "prompt": "Once upon a time", "max_tokens": 150, "temperature": 0}
        with client.stream(
            "POST", "/v1/completions", json={**text, "stream": True, "ignore_eos": True}
        ) as stream:
            lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line)
            first = json.loads(next(lines))
            assert first["choices"][0]["finish_reason"] is None
            cluster.api.delete("v1", "Pod", pod["metadata"]["name"], namespace)
            *rest, done = lines
        assert done == "[DONE]"
        assert json.loads(rest[-1])["choices"][0]["finish_reason"] == "length"
    wait_ready(cluster, namespace)


def test_without_a_name_kserve_selects_it(cluster: Cluster, serving_runtime: Object, namespace: str) -> None:
    """No other runtime for this format is installed here; KServe's own would come first by its priority."""
    sample = yaml.safe_load(SAMPLE.read_text())
    sample["metadata"]["namespace"] = namespace
    del sample["spec"]["predictor"]["model"]["runtime"]
    cluster.api.apply(sample)
    made = cluster.api.wait_for(
        "apps/v1",
        "Deployment",
        lambda found: found[0] if found else None,
        namespace=namespace,
        name=f"{NAME}-predictor",
        timeout=30,
        describe="KServe made the Deployment",
    )
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["image"] == serving_runtime["spec"]["containers"][0]["image"]
