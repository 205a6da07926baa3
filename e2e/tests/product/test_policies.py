"""The example of an admission policy on the real API server: what it lets through, and how it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from localcluster.cluster import ApiError, Cluster, Object, wait_until
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.llmdeployments import API, KIND, resource

pytestmark = pytest.mark.cluster
POLICY = CHECKOUT / "manifests" / "policies" / "llmdeployments.yaml"


def secret(name: str) -> Object:
    return {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}


def helper(image: str, **more: Any) -> Object:
    return {"name": "helper", "image": image, **more}


FOREIGN = "docker.io/evil/miner"
OURS = "ghcr.io/sheaf-dev/sheaf/operator:0.1.0"
ACCEPTED: list[tuple[str, Object]] = [
    ("the least", {}),
    ("of the project", {"pod": {"image": "ghcr.io/sheaf-dev/sheaf/runtime:0.1.0"}}),
    ("of a known organisation", {"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}}),
    ("its own ServiceAccount", {"pod": {"serviceAccountName": "llm"}}),
    (
        "Secrets that are made for models",
        {
            "model": {"uri": "pvc://claim", "credentialsSecretRef": {"name": "llm-hub"}},
            "pod": {
                "env": [secret("llm-token")],
                "imagePullSecrets": [{"name": "llm-pull"}],
                "volumes": [{"name": "extra", "secret": {"secretName": "llm-extra"}}],
                "sidecars": [helper(OURS, env=[secret("llm-token")])],
            },
            "tls": {"secretName": "llm-cert"},
        },
    ),
]
REFUSED: list[tuple[str, Object, str]] = [
    (
        "image",
        {"pod": {"image": FOREIGN}},
        "images must begin with one of: ghcr.io/sheaf-dev/sheaf/",
    ),
    ("look-alike", {"pod": {"image": "ghcr.io/sheaf-dev/sheaf-evil/runtime:1"}}, "images must begin with"),
    (
        "source",
        {"model": {"uri": "hf://somebody/else"}},
        "spec.model.uri must begin with one of: hf://meta-llama/",
    ),
    ("account", {"pod": {"serviceAccountName": "admin"}}, "serviceAccountName must be one of: default llm"),
    (
        "credentials",
        {"model": {"uri": "pvc://claim", "credentialsSecretRef": {"name": "database"}}},
        "names of Secrets must begin with one of: llm-",
    ),
    ("variable", {"pod": {"env": [secret("database")]}}, "names of Secrets must begin with"),
    (
        "pull secret",
        {"pod": {"imagePullSecrets": [{"name": "database"}]}},
        "names of Secrets must begin with",
    ),
    ("init container", {"pod": {"initContainers": [helper(FOREIGN)]}}, "images must begin with"),
    ("sidecar", {"pod": {"sidecars": [helper(FOREIGN)]}}, "images must begin with"),
    (
        "sidecar's variable",
        {"pod": {"sidecars": [helper(OURS, env=[secret("database")])]}},
        "names of Secrets",
    ),
    (
        "volume",
        {"pod": {"volumes": [{"name": "v", "secret": {"secretName": "database"}}]}},
        "names of Secrets must begin with",
    ),
    ("certificate", {"tls": {"secretName": "database"}}, "names of Secrets must begin with"),
]


def judge(cluster: Cluster, namespace: str, spec: dict[str, Any]) -> None:
    """Raises ApiError with the API server's refusal."""
    path = cluster.api.path(API, KIND, namespace)
    cluster.api.request("POST", path, params={"dryRun": "All"}, json=resource("tried", **spec))


@pytest.fixture(scope="module")
def guarded(operator: Cluster) -> Iterator[tuple[Cluster, str]]:
    """The policy installed, and a namespace that it is for."""
    objects = list(yaml.safe_load_all(POLICY.read_text()))
    for obj in objects:
        operator.api.apply(obj)
    with operator.new_namespace("guarded") as namespace:
        label = {"metadata": {"labels": {"sheaf.dev/policy": "enforced"}}}
        operator.api.patch("v1", "Namespace", namespace, label)

        def enforced() -> bool:
            try:
                judge(operator, namespace, {"pod": {"image": FOREIGN}})
            except ApiError as error:
                return "images must begin with" in str(error)
            return False

        wait_until(enforced, 30, "the policy is enforced")
        yield operator, namespace
    for obj in reversed(objects):
        metadata = obj["metadata"]
        operator.api.delete(obj["apiVersion"], obj["kind"], metadata["name"], metadata.get("namespace"))


@pytest.mark.parametrize(("name", "spec"), ACCEPTED, ids=[name for name, _ in ACCEPTED])
def test_accepted(guarded: tuple[Cluster, str], name: str, spec: Object) -> None:
    judge(*guarded, spec)


@pytest.mark.parametrize(("name", "spec", "words"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_refused_with_what_is_allowed(
    guarded: tuple[Cluster, str], name: str, spec: Object, words: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        judge(*guarded, spec)
    assert words in str(refusal.value)
    assert refusal.value.code == 403


def test_other_namespaces_are_left_alone(guarded: tuple[Cluster, str], namespace: str) -> None:
    judge(guarded[0], namespace, {"pod": {"image": FOREIGN}})
