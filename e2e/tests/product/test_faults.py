"""Things break: what clients see, who repairs it, and that nothing is decided on what is not known."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from localcluster.cluster import Cluster, Faults, Object, wait_until
from sheaf_e2e.deployed import Deployed, manifest, scaling
from sheaf_e2e.streams import Streams

pytestmark = pytest.mark.cluster
ISVC = ("serving.kserve.io/v1beta1", "InferenceService")
RUNTIME = ("serving.kserve.io/v1alpha1", "ServingRuntime")


@pytest.fixture(scope="module")
def model(operator: Cluster, tiny_model: Path) -> Iterator[Deployed]:
    with operator.new_namespace("faults") as namespace:
        operator.model_volume("tiny", tiny_model, namespace)
        resource = manifest(
            "model",
            namespace,
            "pvc://tiny",
            16384,
            *("--kv-cache-memory", "16MiB"),
            autoscaling={
                "maxReplicas": 2,
                "metrics": [{"type": "QueueDepth", "target": 4}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
        )
        made = Deployed(operator, resource)
        made.wait_ready(1)
        yield made


def ask(model: Deployed, url: str, max_tokens: int = 4) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        answer = client.completions.create(
            model=model.name, prompt="sheaf", max_tokens=max_tokens, extra_body={"ignore_eos": True}
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == max_tokens
    return answer.choices[0].text


def served(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def restarts(pod: Object) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


class Long(threading.Thread):
    """A streamed answer of many thousand tokens, read to its end whatever that is."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        self.chunks = 0
        self._url, self._name = url, name
        self._first = threading.Event()

    def run(self) -> None:
        client = openai.OpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=60)
        body: dict[str, Any] = {"model": self._name, "prompt": "sheaf", "max_tokens": 16000}
        try:
            with client:
                stream = client.completions.create(**body, extra_body={"ignore_eos": True}, stream=True)
                for _ in stream:
                    self.chunks += 1
                    self._first.set()
        except Exception as error:
            self.error = error
        self._first.set()

    def __enter__(self) -> Long:
        self.start()
        assert self._first.wait(60)
        assert self.error is None
        return self

    def __exit__(self, *_: object) -> None:
        self.join(60)
        assert not self.is_alive(), "the answer has no end"


def test_a_killed_engine_ends_its_requests_with_an_error_and_the_container(
    model: Deployed, faults: Faults
) -> None:
    (pod,) = model.pods()
    name, before = pod["metadata"]["name"], restarts(pod)
    url = model.url
    with Long(url, model.name) as answer:
        faults.signal_process(name, "sheaf_runtime.engine", signal.SIGKILL, model.namespace)
    assert isinstance(answer.error, openai.APIError), answer.error
    assert "the engine core has died" in str(answer.error)

    def back(pod: Object) -> Object | None:
        status: Object = pod["status"]["containerStatuses"][0]
        return status if status["restartCount"] > before and status["ready"] else None

    status = model.wait_pod(name, back, "its container serves again")
    assert status["lastState"]["terminated"]["exitCode"] == 1
    wait_until(lambda: served(url), 30, "the Service has its endpoint back")
    assert ask(model, url)
    assert model.pod_names() == [name]


def test_models_answer_without_the_control_plane_and_the_operator_catches_up(
    model: Deployed, faults: Faults
) -> None:
    url = model.url
    with Streams(url, model.name, prompt_tokens=16, output_tokens=16, rate=3) as streams:
        with faults.without("kube-apiserver"):
            streams.wait_answers(20)
        streams.wait_answers(1)
        generation = model.patch({"autoscaling": {"minReplicas": 2}})
        model.wait(lambda s: s["observedGeneration"] == generation, "the operator has seen the change")
        model.wait_ready(2)
    assert streams.failures == []


def test_a_frozen_pod_is_no_reason_to_shrink(model: Deployed, faults: Faults) -> None:
    model.patch({"autoscaling": {"minReplicas": 2}})
    model.wait_ready(2)
    frozen, _ = model.pod_names()
    with model.replica_counts() as counts, faults.frozen_pod(frozen, model.namespace):
        told = model.wait_limiting("MissingSamples")
        assert "1 replica not answering" in told["reason"]
        assert counts == [2]
        model.wait(lambda s: s["readyReplicas"] == 1, "the kubelet has noticed")
    model.wait_ready(2)


def test_a_spec_change_while_kserve_is_down(model: Deployed, faults: Faults) -> None:
    model.patch({"autoscaling": {"minReplicas": 1}})
    model.wait(lambda s: scaling(s).get("desired") == 1 == s["replicas"], "one replica", 90)
    revision = model.get()["status"]["revision"]
    with faults.without("kserve"):
        model.patch({"engine": {"maxModelLen": 8192}})
        told = model.wait(
            lambda s: s["conditions"] if s["revision"] == revision else None, "it keeps its revision"
        )
        assert any(c["type"] == "Ready" and c["status"] == "True" for c in told)
        assert ask(model, model.url)
    model.wait(lambda s: s["revision"] != revision, "the change has arrived", 90)

    def rolled_out() -> bool:
        pods = model.pods()
        return len(pods) == 1 and "8192" in pods[0]["spec"]["containers"][0]["args"]

    wait_until(rolled_out, 120, "only the new revision is left", every=0.5)


def test_what_others_change_is_repaired(model: Deployed) -> None:
    model.patch({"autoscaling": {"minReplicas": 1}})
    model.wait_ready(1)
    api, namespace = model.cluster.api, model.namespace
    pods = model.pod_names()
    written = api.get(*ISVC, model.name, namespace)["spec"]
    name = written["predictor"]["model"]["runtime"]
    runtime = api.get(*RUNTIME, name, namespace)["spec"]
    uri = {"predictor": {"model": {"storageUri": "pvc://tiny/elsewhere"}}}
    api.patch(*ISVC, model.name, {"spec": uri}, namespace)
    api.patch(*RUNTIME, name, {"spec": {"containers": []}}, namespace)
    wait_until(
        lambda: (
            api.get(*ISVC, model.name, namespace)["spec"] == written
            and api.get(*RUNTIME, name, namespace)["spec"] == runtime
        ),
        60,
        "InferenceService and ServingRuntime are as they were",
        every=0.5,
    )
    wait_until(lambda: model.pod_names() == pods, 60, "the pod that served is the only one", every=0.5)
    scale = {"spec": {"replicas": 4}}
    api.patch("apps/v1", "Deployment", f"{model.name}-predictor", scale, namespace, subresource="scale")
    model.wait(lambda s: s["replicas"] == 4, "somebody has scaled it up")
    model.wait(lambda s: s["replicas"] == 1 == s["readyReplicas"], "one replica again", 120)
    assert ask(model, model.url)
