"""The models read what the API server lets through, and name fields as Kubernetes does."""

import inspect
import json
import random
import string
from typing import Any, get_args

import kube_objects as k
import pytest
from kubernetes import client
from pydantic import BaseModel
from sheaf_operator.api import affinity, env, placement, pod_rules, selectors
from sheaf_operator.api.fields import ApiModel
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.desired import containers
from sheaf_operator.desired import revision as revisions
from sheaf_runtime.server import options

PARTS = ["engine", "accelerator", "resources", "parallelism", "replicas", "autoscaling", "termination", "pod"]


@pytest.mark.parametrize("part", [*PARTS, "rollout", "suspend"])
def test_null_counts_as_left_out(part: str) -> None:
    assert k.spec(**{part: None}) == k.spec()


def test_null_counts_as_left_out_anywhere_inside() -> None:
    given: dict[str, Any] = {
        "engine": {"extraArgs": None, "dtype": None},
        "autoscaling": {"metrics": None, "behavior": {"scaleDown": None}},
        "pod": {
            "env": None,
            "tolerations": [{"key": None, "operator": "Exists"}],
            "affinity": {"podAffinity": None},
        },
    }
    tolerates_all = [{"operator": "Exists"}]
    assert k.spec(**given) == k.spec(pod={"tolerations": tolerates_all, "affinity": {}})


def test_an_empty_text_counts_as_left_out_where_a_pod_takes_it_so() -> None:
    """Another spelling of the same is no other revision: no pod is replaced for it."""
    empty = {
        "tolerations": [{"key": "a", "operator": "", "effect": ""}],
        "volumes": [{"name": "v", "emptyDir": {"medium": ""}}],
        "serviceAccountName": "",
        "priorityClassName": "",
        "runtimeClassName": "",
    }
    left_out = {"tolerations": [{"key": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}
    assert k.spec(pod=empty) == k.spec(pod=left_out)


# Our model → Kubernetes' own, whose fields it takes all; and those that it leaves out on purpose.
KUBERNETES: dict[type[ApiModel], tuple[Any, set[str]]] = {
    affinity.Affinity: (client.V1Affinity, set()),
    affinity.NodeAffinity: (client.V1NodeAffinity, set()),
    affinity.NodeSelector: (client.V1NodeSelector, set()),
    affinity.PreferredNodes: (client.V1PreferredSchedulingTerm, set()),
    affinity.PodAffinity: (client.V1PodAffinity, set()),
    affinity.PodAntiAffinity: (client.V1PodAntiAffinity, set()),
    affinity.PodAffinityTerm: (client.V1PodAffinityTerm, set()),
    affinity.PreferredPods: (client.V1WeightedPodAffinityTerm, set()),
    selectors.LabelSelector: (client.V1LabelSelector, set()),
    selectors.LabelRequirement: (client.V1LabelSelectorRequirement, set()),
    selectors.NodeSelectorTerm: (client.V1NodeSelectorTerm, set()),
    selectors.NodeRequirement: (client.V1NodeSelectorRequirement, set()),
    selectors.NodeField: (client.V1NodeSelectorRequirement, set()),
    env.EnvVar: (client.V1EnvVar, set()),
    env.EnvSource: (client.V1EnvVarSource, {"fileKeyRef"}),
    env.SecretKey: (client.V1SecretKeySelector, set()),
    env.ConfigMapKey: (client.V1ConfigMapKeySelector, set()),
    env.FieldRef: (client.V1ObjectFieldSelector, set()),
    env.ResourceFieldRef: (client.V1ResourceFieldSelector, set()),
    placement.Toleration: (client.V1Toleration, set()),
    placement.TopologySpread: (client.V1TopologySpreadConstraint, set()),
}


@pytest.mark.parametrize("model", KUBERNETES, ids=lambda m: m.__name__)
def test_what_is_passed_on_has_kubernetes_fields(model: type[ApiModel]) -> None:
    theirs, left_out = KUBERNETES[model]
    ours = {field.alias for field in model.model_fields.values()}
    assert ours | left_out == set(theirs.attribute_map.values())


def test_no_model_of_those_rooms_is_missing_here() -> None:
    for module in (affinity, selectors, env, placement):
        found = {
            m
            for _, m in inspect.getmembers(module, inspect.isclass)
            if issubclass(m, BaseModel) and m.__module__ == module.__name__
        }
        assert found <= set(KUBERNETES)


def test_no_field_takes_anything() -> None:
    """A field of any shape would pass misspelt names on to the API server, which answers them with 500."""

    def loose(model: type[BaseModel], seen: set[type[BaseModel]]) -> list[str]:
        if model in seen:
            return []
        seen.add(model)
        found = []
        for name, field in model.model_fields.items():
            todo = [field.annotation]
            while todo:
                kind = todo.pop()
                todo += get_args(kind)
                if kind is Any:
                    found.append(f"{model.__name__}.{name}")
                if inspect.isclass(kind) and issubclass(kind, BaseModel):
                    found += loose(kind, seen)
        return found

    assert loose(LLMDeploymentSpec, set()) == []


OVERRIDES = [
    ["--port", "1"],
    ["--port=1", "--served-model-name", "other", "one", "more"],
    ["--drain-timeout=1", "--seed=3"],
    ["--ssl-certfile", "/nowhere"],
]


@pytest.mark.parametrize("given", OVERRIDES, ids=" ".join)
def test_the_operators_flags_count_for_the_runtime_whatever_gets_past_the_schema(given: list[str]) -> None:
    spec = k.spec(
        engine={"extraArgs": given}, tls={"secretName": "t"}, termination={"drainTimeoutSeconds": 77}
    )
    engine, server = options.parse(containers.args("m", spec))
    assert (engine.model, server.port, server.served_model_name) == ("/mnt/models", 8000, ("m",))
    assert (server.drain_timeout, server.ssl_certfile) == (77, "/etc/sheaf/tls/tls.crt")


RANDOM = random.Random(1)  # text that hardly compresses, as certificates are
LARGE = [
    {"name": f"BUNDLE_{i}", "value": "".join(RANDOM.choices(string.printable, k=4096))}
    for i in range(pod_rules.MAX_TEXT // 4096)
]


def test_a_large_record_stays_within_an_annotation_and_is_read_back() -> None:
    made = k.revision(k.spec(pod={"env": LARGE}))
    assert len(made.annotation().encode()) < 200_000
    assert revisions.read(k.runtime(made)) == made


def test_a_record_as_an_earlier_operator_wrote_it_is_read_whatever_its_length() -> None:
    made = k.revision(k.spec(pod={"env": LARGE}))
    runtime = k.runtime(made)
    plain = json.dumps({"spec": made.spec, "runtime": made.runtime, "predictor": made.predictor})
    runtime["metadata"]["annotations"]["sheaf.dev/revision"] = plain
    assert revisions.read(runtime) == made
