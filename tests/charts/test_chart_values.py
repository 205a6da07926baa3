"""Lint, the schema of the values, and what a user reads after an install."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import chart
import pytest
import yaml
from helm_python import Chart, HelmValuesError, lint
from helm_python.chart import expand
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.settings import VERSION, Settings

SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((chart.CHART / "values.yaml").read_text())
ALWAYS = {"servingRuntime": {"create": "Always"}}


@pytest.mark.parametrize("kubernetes", chart.KUBERNETES)
@pytest.mark.parametrize("values", [{}, ALWAYS, {"watch": {"namespaces": ["ml"]}}])
def test_lint(values: dict[str, Any], kubernetes: str) -> None:
    report = lint(chart.CHART, values, strict=True, kube_version=f"v{kubernetes}.0")
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"]] == ["icon is recommended"]


def test_versions_are_the_projects() -> None:
    version = tomllib.loads((chart.ROOT / "pyproject.toml").read_text())["project"]["version"]
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == VERSION == version


def test_the_archive_is_whole(tmp_path: Path) -> None:
    with Chart.load(chart.CHART) as source:
        archive = source.save(tmp_path)
        expected = source.render(ALWAYS, name="sheaf", namespace="x")
    expand(tmp_path, archive)
    with Chart.load(tmp_path / "sheaf") as unpacked:
        assert unpacked.render(ALWAYS, name="sheaf", namespace="x") == expected


WRONG = [
    # values, and what the message must name
    ({"replicaCount": 2}, "additional properties 'replicaCount' not allowed"),
    ({"replicas": 0}, "'/replicas': minimum: got 0, want 1"),
    ({"replicas": "2"}, "'/replicas': got string, want integer"),
    ({"image": {"tagg": "1"}}, "'/image': additional properties 'tagg' not allowed"),
    ({"image": {"tag": 1.0}}, "'/image/tag': got number, want string"),
    ({"image": {"digest": "sha256:short"}}, "'/image/digest': 'sha256:short' does not match"),
    ({"image": {"repository": "sheaf/operator:0.1.0"}}, "'/image/repository'"),
    ({"image": {"pullPolicy": "Sometimes"}}, "'/image/pullPolicy': value must be one of"),
    ({"runtimeImage": {"pullPolicy": "Always"}}, "'/runtimeImage': additional properties 'pullPolicy'"),
    ({"imagePullSecrets": ["pull"]}, "'/imagePullSecrets/0': got string, want object"),
    ({"watch": {"namespace": "a"}}, "'/watch': additional properties 'namespace'"),
    ({"watch": {"namespaces": ["Not_A_Name"]}}, "'/watch/namespaces/0': 'Not_A_Name' does not match"),
    ({"watch": {"namespaces": ["a", "a"]}}, "'/watch/namespaces': items at 0 and 1 are equal"),
    ({"watch": {"class": "-blue"}}, "'/watch/class': '-blue' does not match"),
    ({"crds": {"install": "yes"}}, "'/crds/install': got string, want boolean"),
    (
        {"servingRuntime": {"create": True}},
        "'/servingRuntime/create': value must be one of 'Auto', 'Always', 'Never'",
    ),
    ({"operator": {"apiRequests": 0}}, "'/operator/apiRequests': minimum: got 0, want 1"),
    ({"operator": {"apiRequests": 1.5}}, "'/operator/apiRequests': got number, want integer"),
    ({"operator": {"autoscaleInterval": "5s"}}, "'/operator/autoscaleInterval': got string, want number"),
    ({"operator": {"retryBase": 0}}, "'/operator/retryBase': exclusiveMinimum"),
    ({"operator": {"logLevel": "trace"}}, "'/operator/logLevel': value must be one of"),
    ({"operator": {"httpPort": 80}}, "'/operator': additional properties 'httpPort'"),
    ({"operator": {"victimWait": 0}}, "'/operator/victimWait': exclusiveMinimum"),
    ({"operator": {"resyncInterval": -1}}, "'/operator/resyncInterval': exclusiveMinimum"),
    ({"networkPolicy": {"callers": [{}]}}, "'/networkPolicy/callers/0': minProperties"),
    ({"networkPolicy": {"modelNamespaces": [""]}}, "'/networkPolicy/modelNamespaces/0': '' does not match"),
    ({"metrics": {"dashboards": {"labels": {"grafana_dashboard": 1}}}}, "grafana_dashboard': got number"),
    ({"metrics": {"prometheusOperator": {"interval": "15"}}}, "'/metrics/prometheusOperator/interval'"),
    ({"resources": {"request": {"cpu": 1}}}, "'/resources': additional properties 'request'"),
    ({"resources": {"requests": {"cpu": True}}}, "'/resources/requests/cpu'"),
    ({"nodeSelector": {"gpu": True}}, "'/nodeSelector/gpu': got boolean, want string"),
    ({"tolerations": [{"effect": "NoRun"}]}, "'/tolerations/0/effect'"),
    ({"affinity": {"nodeAfinity": {}}}, "'/affinity': additional properties 'nodeAfinity'"),
    ({"podLabels": {"app.kubernetes.io/name": "mine"}}, "'/podLabels/app.kubernetes.io~1name'"),
    ({"podSecurityContext": {"runAsUser": "1000"}}, "'/podSecurityContext/runAsUser': got string"),
    ({"securityContext": {"readOnlyRootFileSystem": True}}, "additional properties 'readOnlyRootFileSystem'"),
]


# For which argo-helm#1114 and cilium#18115 had "nil pointer evaluating interface": a part set to null, or an
# upgrade with --reuse-values to a release that has more parts.
MISSING = [
    *(
        (part,)
        for part in ("image", "runtimeImage", "watch", "crds", "userRoles", "servingRuntime", "metrics")
    ),
    ("image", "repository"),
    ("runtimeImage", "repository"),
    ("watch", "namespaces"),
    ("crds", "install"),
    ("userRoles", "create"),
    ("servingRuntime", "create"),
    ("servingRuntime", "name"),
    ("metrics", "service"),
    ("metrics", "service", "enabled"),
]
WRONG += [
    (reduce(lambda value, key: {key: value}, reversed(path), None), f"missing property '{path[-1]}'")
    for path in MISSING
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_values_are_refused_with_the_field_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmValuesError) as refusal:
        chart.render(values)
    assert message in str(refusal.value)


def _accepted(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that this part of the schema accepts, its bounds among them."""
    if "$ref" in schema:
        return _accepted(SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "integer":
        bounds = schema["minimum"], schema["maximum"]
        return st.sampled_from(bounds) | st.integers(*bounds)
    if schema["type"] == "number":
        above = "exclusiveMinimum" in schema
        least = schema["exclusiveMinimum" if above else "minimum"]
        numbers = st.floats(least, schema["maximum"], exclude_min=above, allow_subnormal=False)
        return st.sampled_from([schema["maximum"], 0.001, 1]) | numbers
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(
            lambda t: len(t) <= schema["maxLength"]
        )
    raise NotImplementedError(schema)


OPERATOR = {key: _accepted(part) for key, part in SCHEMA["properties"]["operator"]["properties"].items()}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=OPERATOR))
def test_what_the_schema_accepts_the_operator_starts_with(values: dict[str, Any]) -> None:
    """A value that only the operator refuses would be an operator that restarts for ever."""
    deployment = chart.only(chart.render({"operator": values}), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given_ = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    started = Settings.from_env({**given_, "POD_NAME": "x"})
    for key, value in values.items():
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower()
        assert getattr(started, name) == value


def test_the_chart_can_be_a_dependency() -> None:
    assert chart.render({"global": {"imageRegistry": "registry.example"}}) == chart.render()


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from _objects(value, f"{path}/{key}")


def test_the_schema_leaves_nothing_open() -> None:
    open_ended = {
        path for path, schema in _objects(SCHEMA) if schema.get("additionalProperties", True) is True
    }
    assert open_ended == {"/properties/global", "/definitions/kubernetes"}


def test_every_value_is_in_the_schema_and_every_field_among_the_values() -> None:
    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        # Lists, maps of the user's own keys and parts of Kubernetes' API have no default to show.
        known = schema.get("properties", {}).keys() - {"global"}
        if path in ("/affinity", "/podSecurityContext", "/securityContext"):
            assert values.keys() <= known
            return
        if "properties" in schema:
            assert values.keys() == known, path
        for key, value in values.items():
            if isinstance(value, dict) and key in known:
                compare(schema["properties"][key], value, f"{path}/{key}")

    compare(SCHEMA, VALUES, "")


@pytest.mark.parametrize("namespace", ["", "ml"])
def test_notes_name_the_next_command(namespace: str) -> None:
    text = chart.notes(
        {**ALWAYS, "watch": {"namespaces": [namespace] if namespace else []}},
        name="llm",
        namespace="platform",
    )
    assert "kubectl -n platform rollout status deployment/llm-operator" in text
    assert f"kubectl -n {namespace or 'default'} get llmd smollm2 -w" in text
    assert "runtime: sheaf" in text
    document = text.split("<<EOF\n")[1].split("  EOF\n")[0]
    model = yaml.safe_load(document)
    assert (model["apiVersion"], model["kind"]) == ("sheaf.dev/v1alpha1", "LLMDeployment")
    assert model["metadata"]["namespace"] == (namespace or "default")
    LLMDeploymentSpec.model_validate(model["spec"])


def test_notes_say_that_kserve_is_missing() -> None:
    text = chart.notes()
    assert "KServe is not installed" in text
    assert "`helm upgrade sheaf` adds the ClusterServingRuntime" in text
