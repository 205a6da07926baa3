"""What others may add without being undone, and what is drift."""

import copy
from dataclasses import replace
from typing import Any

import kube_objects as k
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.desired.drift import covers, differences
from sheaf_operator.desired.plan import plan


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [{"x": 1, "added": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 1}]}, False),
        ({}, {"a": {}}, True),
        ({}, {"a": []}, True),
        ({}, {"a": ""}, True),
        ({}, {"a": False}, False),
        ({"a": "text"}, {"a": {"b": 1}}, False),
        ({"a": "text"}, {"a": ["b"]}, False),
        ({"resources": {"cpu": "1"}}, {"resources": {"cpu": "1000m"}}, True),
        ({"name": "1"}, {"name": "1000m"}, False),
        ({"args": ["--a", "--b"]}, {"args": ["--b", "--a"]}, False),
        ({"env": [{"name": "B"}, {"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "1"}]}, True),
        ({"env": [{"name": "A", "value": "2"}]}, {"env": [{"name": "A", "value": "1"}]}, False),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A"}, {"name": "A", "value": ""}]}, False),
        ({"env": [{"name": "B"}]}, {"env": [{"name": "A", "value": "1"}]}, False),
        ({"imagePullSecrets": [{"name": "x"}, {"name": "y"}]}, {"imagePullSecrets": [{"name": "y"}]}, True),
        ({"tolerations": [{"key": "a"}, {"key": "b"}]}, {"tolerations": [{"key": "b"}]}, True),
        ({"tolerations": [{"key": "b", "effect": "NoSchedule"}]}, {"tolerations": [{"key": "b"}]}, False),
        ({"matchExpressions": [{"key": "a"}, {"key": "b"}]}, {"matchExpressions": [{"key": "b"}]}, True),
    ],
)  # fmt: skip
def test_covers(live: Any, wanted: Any, expected: bool) -> None:
    assert covers(live, wanted) is expected


def test_a_difference_is_named_where_it_is() -> None:
    live = {"model": {"resources": {"requests": {"cpu": "2"}}, "env": [{"name": "A", "value": "1"}]}}
    wanted = {"model": {"resources": {"requests": {"cpu": "1"}}, "env": [{"name": "A", "value": "2"}]}}
    assert list(differences(live, wanted)) == ["model.resources.requests.cpu", "model.env.value"]


SPEC = k.spec(
    pod={
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "ours"}],
        "env": [{"name": "A", "value": "1"}],
        "annotations": {"a": "b"},
    }
)


def admitted(kind: str, *, first: bool) -> Any:
    """What other people's admission makes of an object of ours: more of everything, before ours or after."""
    at = 0 if first else 99
    observed = k.settled(SPEC)
    service, runtime = copy.deepcopy(observed.inference_service), copy.deepcopy(observed.runtimes[0])
    assert service is not None
    predictor, container = service["spec"]["predictor"], runtime["spec"]["containers"][0]
    match kind:
        case "toleration":
            predictor["tolerations"].insert(at, {"key": "pool", "operator": "Exists", "effect": "NoSchedule"})
        case "pull secret":
            predictor["imagePullSecrets"].insert(at, {"name": "registry"})
        case "environment":
            container["env"].insert(at, {"name": "HTTPS_PROXY", "value": "http://proxy"})
        case "annotation":
            service["metadata"]["annotations"]["policy"] = "checked"
            predictor["annotations"]["policy"] = "checked"
        case "sidecar":
            runtime["spec"]["containers"].insert(at, {"name": "agent", "image": "agent:1"})
        case "volume":
            runtime["spec"]["volumes"].insert(at, {"name": "certs", "configMap": {"name": "ca"}})
            container["volumeMounts"].insert(at, {"name": "certs", "mountPath": "/etc/certs"})
        case "default":
            predictor["model"]["env"] = []
            predictor["containers"] = None
            container["ports"][0]["hostPort"] = 0
    return replace(observed, inference_service=service, runtimes=(runtime,))


ADDED = ["toleration", "pull secret", "environment", "annotation", "sidecar", "volume", "default"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ADDED)
def test_what_admission_adds_is_no_drift(kind: str, first: bool) -> None:
    assert plan(SPEC, admitted(kind, first=first), k.IMAGE, k.NOW).actions == ()


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "env", "resources", "args"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(json)
def test_everything_covers_itself(value: Any) -> None:
    assert covers(copy.deepcopy(value), value)


@given(json, json)
def test_whatever_somebody_wrote_there_is_an_answer(live: Any, wanted: Any) -> None:
    assert covers(live, wanted) == (not list(differences(live, wanted)))
