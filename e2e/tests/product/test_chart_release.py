"""The Helm chart for real: installed, upgraded, rolled back, uninstalled; a model answers throughout."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from localcluster.cluster import Cluster, Object
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.release import (
    CHART,
    OPERATOR,
    OPERATOR_LABELS,
    OPERATOR_NAMESPACE,
    helm,
    install_operator,
)

pytestmark = pytest.mark.cluster
API = "sheaf.dev/v1alpha1"
CRD = "llmdeployments.sheaf.dev"


def model(name: str, namespace: str, **spec: Any) -> Object:
    return {
        "apiVersion": API,
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "pvc://smollm2"},
            "engine": {"maxModelLen": 512, "extraArgs": ["--kv-cache-memory", "64MiB"]},
            "accelerator": {"count": 0},
            "resources": {"cpu": "100m", "memory": "2Gi"},
            "autoscaling": {"maxReplicas": 1},
            "termination": {"drainTimeoutSeconds": 5},
            **spec,
        },
    }


def wait_condition(cluster: Cluster, obj: Object, kind: str, reason: str, timeout: float = 120) -> Object:
    """The LLMDeployment once its condition `kind` has this reason for the present spec."""

    def judge(seen: list[Object]) -> Object | None:
        for one in seen:
            for c in one.get("status", {}).get("conditions", []):
                current = c.get("observedGeneration") == one["metadata"]["generation"]
                if (c["type"], c["reason"]) == (kind, reason) and current:
                    return one
        return None

    metadata = obj["metadata"]
    found: Object = cluster.api.wait_for(
        API,
        "LLMDeployment",
        judge,
        namespace=metadata["namespace"],
        name=metadata["name"],
        timeout=timeout,
        describe=f"{metadata['name']} has {kind} {reason}",
    )
    return found


class Asking:
    """Asks the model again and again from a thread, each time on a new connection."""

    def __init__(self, url: str, name: str) -> None:
        self.answers: list[str] = []
        self._url, self._name = url, name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        body = {"model": self._name, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        while not self._stop.wait(0.2):
            try:
                answer = httpx.post(self._url + "/v1/completions", json=body, timeout=60, trust_env=False)
                self.answers.append(answer.json()["choices"][0]["text"])
            except Exception as error:  # whatever it is, it belongs among the answers that are judged
                self.answers.append(repr(error))

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int = 2, timeout: float = 120) -> None:
        """Return when that many more answers have come, none of which is wrong."""
        before, deadline = len(self.answers), time.monotonic() + timeout
        while len(self.answers) < before + count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(self.answers) >= before + count, "the model no longer answers"
        wrong = [a for a in self.answers if "Paris" not in a]
        assert not wrong, wrong


@contextmanager
def operator_restored(cluster: Cluster) -> Iterator[None]:
    """Whatever happens inside, other tests find the chart installed with its defaults."""
    try:
        yield
    finally:
        install_operator(cluster)


def environment(cluster: Cluster) -> dict[str, str]:
    found = cluster.wait_deployment(OPERATOR, OPERATOR_NAMESPACE)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    return {e["name"]: e.get("value", "") for e in container["env"]}


def columns(cluster: Cluster) -> list[str]:
    definition = cluster.api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", CRD)
    return [c["name"] for c in definition["spec"]["versions"][0]["additionalPrinterColumns"]]


def older_chart(folder: Path) -> Path:
    """The chart as an earlier version might have been: its CRD lacks a column."""
    older = shutil.copytree(CHART, folder / "sheaf")
    about = older / "Chart.yaml"
    about.write_text(about.read_text().replace("version: 0.1.0\nappV", "version: 0.0.9\nappV"))
    definition = yaml.safe_load((older / "files" / "crd.yaml").read_text())
    definition["spec"]["versions"][0]["additionalPrinterColumns"].pop(0)
    (older / "files" / "crd.yaml").write_text(yaml.safe_dump(definition))
    return older


def pods(cluster: Cluster, namespace: str) -> set[str]:
    return {p["metadata"]["uid"] for p in cluster.api.list_objects("v1", "Pod", namespace)}


def test_a_model_answers_through_upgrade_rollback_and_uninstall(
    operator: Cluster, namespace: str, model_claim: str, tmp_path: Path
) -> None:
    llm = operator.api.apply(model("steady", namespace))
    wait_condition(operator, llm, "Ready", "Serving")
    serving = pods(operator, namespace)
    url = operator.url("steady-predictor", namespace)
    with operator_restored(operator), helm(operator) as release, Asking(url, "steady") as asking:
        asking.more()
        now = columns(operator)

        release.deploy({"operator": {"apiRequests": 2}}, older_chart(tmp_path))
        assert environment(operator)["SHEAF_API_REQUESTS"] == "2"
        assert columns(operator) == now[1:]
        before = release.revisions()[-1]["revision"]

        release.deploy({"operator": {"apiRequests": 8}})
        assert environment(operator)["SHEAF_API_REQUESTS"] == "8"
        assert columns(operator) == now
        asking.more()

        release.rollback(before)
        assert environment(operator)["SHEAF_API_REQUESTS"] == "2"
        assert columns(operator) == now[1:]
        asking.more()

        release.uninstall()
        assert release.revisions() == []
        left = operator.kubectl(
            "get",
            "deployment,service,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,clusterservingruntime",
            *("-A", "-l", "app.kubernetes.io/part-of=sheaf", "-o", "name"),
        )
        assert left == ""
        # The CRD stays, and with it every model.
        assert (
            operator.api.get(API, "LLMDeployment", "steady", namespace)["metadata"]["uid"]
            == llm["metadata"]["uid"]
        )
        asking.more()

        release.deploy()
        assert columns(operator) == now
        operator.api.patch(API, "LLMDeployment", "steady", {"spec": {"rollout": {"paused": True}}}, namespace)
        wait_condition(operator, llm, "Ready", "Serving")  # judged anew, by the new operator
        asking.more()
    # Nothing of all this has touched the model's pod.
    assert pods(operator, namespace) == serving


def test_one_namespace_with_a_role_there(operator: Cluster, namespace: str) -> None:
    """The operator does its work without any right beyond that namespace, and nothing elsewhere.

    The claim with the model is missing on purpose: what is said about that shows who is looked after.
    """
    with (
        operator_restored(operator),
        helm(operator) as release,
        operator.new_namespace("elsewhere") as elsewhere,
    ):
        release.deploy({"watch": {"namespaces": [namespace]}, "servingRuntime": {"create": "Never"}})
        bound = operator.kubectl("get", "clusterrolebinding,clusterservingruntime", "-o", "name")
        assert "sheaf" not in bound
        other = operator.api.apply(model("other", elsewhere))
        mine = operator.api.apply(model("mine", namespace))
        wait_condition(operator, mine, "Ready", "VolumeNotFound")
        assert operator.api.find("serving.kserve.io/v1beta1", "InferenceService", "mine", namespace)
        assert "status" not in operator.api.get(API, "LLMDeployment", "other", elsewhere)
        (pod,) = operator.api.list_objects("v1", "Pod", OPERATOR_NAMESPACE, labels=OPERATOR_LABELS)
        log = operator.logs(pod["metadata"]["name"], OPERATOR_NAMESPACE)
        assert "orbidden" not in log, log
        # Once it may look everywhere, it does.
        release.deploy()
        wait_condition(operator, other, "Ready", "VolumeNotFound")


def test_the_plain_manifests_are_what_is_installed(operator: Cluster) -> None:
    """kustomize reads them, the API server accepts them, and no field is in dispute with Helm's."""
    for folder in ("manifests", "manifests/serving-runtime"):
        said = operator.kubectl("apply", "--server-side", "--dry-run=server", "-k", str(CHECKOUT / folder))
        assert "serverside-applied" in said
