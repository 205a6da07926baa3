"""What the chart installs, over a matrix of values."""

from __future__ import annotations

import itertools
from typing import Any

import chart
import pytest
from helm_python import HelmRenderError
from sheaf_operator.api import names
from sheaf_operator.settings import Settings

# kubernetes-validate leaves its schema files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

POD = {
    "image": {"repository": "registry.example:5000/team/operator", "digest": "sha256:" + "a" * 64},
    "runtimeImage": {"tag": "1.2.3-cuda"},
    "imagePullSecrets": [{"name": "pull"}],
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "2"}},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "infra", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]
            }
        }
    },
    "priorityClassName": "system-cluster-critical",
    "podLabels": {"team": "serving"},
    "podAnnotations": {"example.com/note": "yes: really"},
    "podSecurityContext": {"runAsUser": 1000, "fsGroup": 1000, "supplementalGroups": [1]},
    "operator": {"logLevel": "debug", "autoscaleInterval": 0.5, "apiRequests": 16},
}
PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
GUARDED = {
    "replicas": 2,
    "networkPolicy": {
        "enabled": True,
        "scrapers": [PEER],
        "callers": [PEER],
        "modelNamespaces": ["ml", "nlp"],
    },
    "metrics": {"dashboards": {"enabled": True, "annotations": {"grafana_folder": "Sheaf"}}},
}
BARE = {
    "podAnnotations": {"prometheus.io/scrape": None, "prometheus.io/port": None},
    "resources": {"requests": None, "limits": None},
    "nodeSelector": {},
}
MATRIX = [
    {
        "watch": {"namespaces": namespaces},
        "servingRuntime": {"create": runtime},
        "crds": {"install": crds},
        "userRoles": {"create": roles},
        **pod,
        "metrics": {
            **pod.get("metrics", {}),
            "service": {"enabled": metrics > 0},
            "prometheusOperator": {"enabled": metrics > 1},
        },
    }
    for namespaces, runtime, crds, roles, metrics, pod in itertools.product(
        ([], ["ml", "nlp"]),
        ("Auto", "Always", "Never"),
        (True, False),
        (True, False),
        (0, 1, 2),
        ({}, POD, BARE, GUARDED),
    )
]


def test_every_combination_is_valid_kubernetes() -> None:
    for values in MATRIX:
        objects = chart.render(values)
        identities = [chart.identity(o) for o in objects]
        assert len(set(identities)) == len(identities), values
        for obj in objects:
            chart.validate(obj)
            assert obj["metadata"].get("labels"), obj
            assert ("namespace" in obj["metadata"]) == (obj["kind"] not in chart.CLUSTER_SCOPED), obj


def test_defaults_are_the_operators_own() -> None:
    env = {e["name"]: e["value"] for e in _container(chart.render())["env"] if "value" in e}
    assert Settings.from_env({**env, "POD_NAME": "x"}) == Settings(identity="x")
    # Each setting has a value, but for those that the pod itself or the Service decides.
    names = {"SHEAF_" + f.upper() for f in Settings.__dataclass_fields__}
    others = {"NAMESPACE", "IDENTITY", "HTTP_PORT", "WATCH_NAMESPACES", "WATCH_CLASS"}
    assert set(env) == names - {"SHEAF_" + name for name in others}


def test_values_reach_the_pod() -> None:
    objects = chart.render(POD)
    deployment = chart.only(objects, "Deployment")
    pod, container = deployment["spec"]["template"]["spec"], _container(objects)
    assert container["image"] == "registry.example:5000/team/operator@sha256:" + "a" * 64
    env = {e["name"]: e.get("value") for e in container["env"]}
    assert env["SHEAF_RUNTIME_IMAGE"] == "ghcr.io/sheaf-dev/sheaf/runtime:1.2.3-cuda"
    assert (env["SHEAF_LOG_LEVEL"], env["SHEAF_AUTOSCALE_INTERVAL"]) == ("debug", "0.5")
    assert container["resources"]["requests"] == {"cpu": 1, "memory": "1Gi"}
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "512Mi"}
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod[key] == POD[key]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["runAsNonRoot"] is True
    template = deployment["spec"]["template"]["metadata"]
    assert template["labels"]["team"] == "serving"
    assert template["annotations"]["example.com/note"] == "yes: really"


def test_selectors_match_and_keep_releases_apart() -> None:
    releases = [chart.render(name=name) for name in ("sheaf", "other")]
    for index, objects in enumerate(releases):
        selectors = [
            chart.only(objects, "Deployment")["spec"]["selector"]["matchLabels"],
            chart.only(objects, "Service")["spec"]["selector"],
        ]
        for other, pods in enumerate(releases):
            labels = chart.only(pods, "Deployment")["spec"]["template"]["metadata"]["labels"]
            for selector in selectors:
                assert (selector.items() <= labels.items()) == (index == other)


def test_a_release_name_of_full_length_fits() -> None:
    objects = chart.render(name="r" * 53)
    assert all(len(o["metadata"]["name"]) <= 63 for o in objects if o["kind"] in ("Service", "Deployment"))


@pytest.mark.parametrize("namespace", ["1234", "3240286e-210077", "0x10", "1e3", "null"])
def test_names_that_yaml_takes_for_something_else(namespace: str) -> None:
    """bitnami/charts#3856, localstack/helm-charts#59, istio#60239: a namespace of digits is a name."""
    values = {**GUARDED, "watch": {"namespaces": [namespace]}, "priorityClassName": "123"}
    values["networkPolicy"] = {**GUARDED["networkPolicy"], "modelNamespaces": [namespace]}
    values["servingRuntime"] = {"create": "Always", "name": "123"}
    for obj in chart.render(values, name="null", namespace=namespace):
        chart.validate(obj)
        assert obj["metadata"].get("namespace", namespace) == namespace
        assert all(isinstance(label, str) for label in obj["metadata"]["labels"].values())
        assert isinstance(obj["metadata"]["name"], str)


@pytest.mark.parametrize("name", ["1sheaf", "sheaf-1.2", "34abfbaea5a54ce2"])
def test_a_release_whose_service_would_be_refused_is_refused_at_once(name: str) -> None:
    """harbor-helm#621, streamnative/charts#48: half of the release was there when the Service failed."""
    with pytest.raises(HelmRenderError, match="it must begin with a letter"):
        chart.render(name=name)
    chart.render({"metrics": {"service": {"enabled": False}}}, name=name)


def test_an_empty_effect_means_every_effect() -> None:
    toleration = {"key": "gpu", "operator": "Exists", "effect": ""}
    deployment = chart.only(chart.render({"tolerations": [toleration]}), "Deployment")
    assert deployment["spec"]["template"]["spec"]["tolerations"] == [toleration]


def test_the_lease_is_the_one_that_the_operator_takes() -> None:
    """Two releases in one namespace have two Leases, so that both work."""
    for name in ("sheaf", "other"):
        objects = chart.render(name=name)
        role = chart.only(objects, "Role", f"{name}-operator-lease")
        env = {e["name"]: e.get("value") for e in _container(objects)["env"]}
        assert role["rules"][1]["resourceNames"] == [env["SHEAF_LEASE_NAME"]] == [f"{name}-operator"]
        assert role["metadata"]["namespace"] == "sheaf-system"


def test_the_pod_fits_the_restricted_standard() -> None:
    pod = chart.only(chart.render(), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert _container(chart.render())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


# Two replicas


def test_one_replica_is_replaced_and_has_no_budget() -> None:
    """A budget for a single pod would block the drain of its node for ever."""
    objects = chart.render()
    spec = chart.only(objects, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert "affinity" not in spec["template"]["spec"]
    assert not [o for o in objects if o["kind"] == "PodDisruptionBudget"]


def test_two_replicas_stand_apart_and_one_is_always_left() -> None:
    objects = chart.render({"replicas": 2})
    spec = chart.only(objects, "Deployment")["spec"]
    labels = spec["selector"]["matchLabels"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    affinity = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
    (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"] == {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": labels},
    }
    budget = chart.only(objects, "PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget  # the API server takes one of the two
    own = {"nodeAffinity": POD["affinity"]["nodeAffinity"]}
    given = chart.only(chart.render({"replicas": 2, "affinity": own}), "Deployment")
    assert given["spec"]["template"]["spec"]["affinity"] == own


# Who may connect


def test_network_policies_select_the_pods_and_name_their_ports() -> None:
    objects = chart.render(GUARDED)
    operator = chart.only(objects, "NetworkPolicy", "sheaf-operator")["spec"]
    labels = chart.only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert operator["podSelector"]["matchLabels"].items() <= labels.items()
    assert operator["policyTypes"] == ["Ingress"]
    assert operator["ingress"] == [{"from": [PEER], "ports": [{"port": "http"}]}]
    (port,) = _container(objects)["ports"]
    assert port["name"] == "http"
    models = [o for o in objects if o["metadata"]["name"] == "sheaf-models" and o["kind"] == "NetworkPolicy"]
    assert [o["metadata"]["namespace"] for o in models] == ["ml", "nlp"]
    (rule,) = models[0]["spec"]["ingress"]
    assert rule["ports"] == [{"port": names.PORT}]
    itself, *others = rule["from"]
    assert itself["podSelector"]["matchLabels"].items() <= labels.items()
    assert itself["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "sheaf-system"}
    assert others == [PEER, PEER]
    (expression,) = models[0]["spec"]["podSelector"]["matchExpressions"]
    assert expression == {"key": names.LABEL_DEPLOYMENT, "operator": "Exists"}


def test_monitors_behind_a_policy_need_a_scraper_that_may_pass() -> None:
    values = {"networkPolicy": {"enabled": True}, "metrics": {"prometheusOperator": {"enabled": True}}}
    with pytest.raises(HelmRenderError, match=r"needs networkPolicy\.scrapers"):
        chart.render(values)


def test_large_numbers_stay_whole() -> None:
    """User ids of OpenShift have ten digits, which Helm's numbers can turn into 1.00065e+09."""
    objects = chart.render({"podSecurityContext": {"runAsUser": 1000650000}})
    pod = chart.only(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 1000650000


def test_nobody_named_means_nobody_but_the_operator() -> None:
    values = {"networkPolicy": {"enabled": True, "modelNamespaces": ["ml"]}}
    objects = chart.render(values)
    assert chart.only(objects, "NetworkPolicy", "sheaf-operator")["spec"]["ingress"] == []
    (rule,) = chart.only(objects, "NetworkPolicy", "sheaf-models")["spec"]["ingress"]
    assert len(rule["from"]) == 1  # an empty list would let everybody in


# Scope


def test_one_namespace_gets_a_role_there() -> None:
    whole = chart.render()
    objects = chart.render({"watch": {"namespaces": ["ml"]}})
    role = chart.only(objects, "Role", "sheaf-operator")
    binding = chart.only(objects, "RoleBinding", "sheaf-operator")
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "ml"
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": "sheaf-operator",
    }
    assert binding["subjects"][0]["namespace"] == "sheaf-system"
    cluster_wide = chart.only(whole, "ClusterRole", "sheaf-operator")["rules"]
    assert role["rules"] == [r for r in cluster_wide if r["apiGroups"] != ["apiextensions.k8s.io"]]
    env = {e["name"]: e.get("value") for e in _container(objects)["env"]}
    assert env["SHEAF_WATCH_NAMESPACES"] == "ml"
    assert "SHEAF_WATCH_NAMESPACES" not in {e["name"] for e in _container(whole)["env"]}


def test_several_namespaces_get_a_role_each() -> None:
    objects = chart.render({"watch": {"namespaces": ["ml", "nlp"]}})
    for kind in ("Role", "RoleBinding"):
        found = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, "sheaf-operator")]
        assert [o["metadata"]["namespace"] for o in found] == ["ml", "nlp"]
    assert not [
        o for o in objects if o["kind"].startswith("ClusterRole") and "operator" in o["metadata"]["name"]
    ]
    env = {e["name"]: e["value"] for e in _container(objects)["env"] if "value" in e}
    assert Settings.from_env(env).watch_namespaces == ("ml", "nlp")


def test_a_class_reaches_the_operator_and_the_first_model() -> None:
    values = {"watch": {"class": "blue"}}
    env = {e["name"]: e["value"] for e in _container(chart.render(values))["env"] if "value" in e}
    assert Settings.from_env(env).watch_class == "blue"
    assert f'labels: {{{names.LABEL_CLASS}: "blue"}}' in chart.notes(values)


def test_without_any_cluster_scoped_object() -> None:
    values = {
        "watch": {"namespaces": ["ml"]},
        "crds": {"install": False},
        "userRoles": {"create": False},
        "servingRuntime": {"create": "Never"},
    }
    kinds = {o["kind"] for o in chart.render(values)}
    assert kinds == {"ServiceAccount", "Role", "RoleBinding", "Deployment", "Service"}


def test_a_second_release_for_one_namespace_shares_nothing() -> None:
    values = {
        "watch": {"namespaces": ["ml"]},
        "crds": {"install": False},
        "userRoles": {"create": False},
        "servingRuntime": {"create": "Never"},
    }
    second = chart.render(values, name="team", namespace="team-system")
    first = chart.render({"servingRuntime": {"create": "Always"}})
    assert not {chart.identity(o) for o in first} & {chart.identity(o) for o in second}


def test_the_operator_has_no_right_that_reaches_too_far() -> None:
    rules = chart.only(chart.render(), "ClusterRole", "sheaf-operator")["rules"]
    for rule in rules:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert not {"secrets", "configmaps", "roles", "clusterroles"} & set(rule["resources"])
    deletable = [rule["resources"] for rule in rules if "delete" in rule["verbs"]]
    assert sorted(deletable) == [["poddisruptionbudgets"], ["servingruntimes"]]
    owners = [r for r in rules if r["resources"] == ["llmdeployments"]]
    assert [r["verbs"] for r in owners] == [["list", "watch"]]


def test_user_roles_join_the_clusters_own() -> None:
    objects = chart.render()
    view = chart.only(objects, "ClusterRole", "sheaf-llmdeployments-view")
    edit = chart.only(objects, "ClusterRole", "sheaf-llmdeployments-edit")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {k for k in view["metadata"]["labels"] if k.startswith(prefix)} == {prefix + "view"}
    assert {k for k in edit["metadata"]["labels"] if k.startswith(prefix)} == {
        prefix + "edit",
        prefix + "admin",
    }
    assert {v for r in view["rules"] for v in r["verbs"]} == {"get", "list", "watch"}
    # The status is the operator's.
    assert not any("llmdeployments/status" in r["resources"] for r in edit["rules"])


# Parts that can be left out


def test_the_crd_is_the_generated_one_and_survives_the_release() -> None:
    crd = chart.only(chart.render(), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not [o for o in chart.render({"crds": {"install": False}}) if o["kind"] == crd["kind"]]


@pytest.mark.parametrize(("create", "made"), [("Auto", False), ("Always", True), ("Never", False)])
def test_serving_runtime_where_kserve_is_unknown(create: str, made: bool) -> None:
    objects = chart.render({"servingRuntime": {"create": create}})
    assert any(o["kind"] == "ClusterServingRuntime" for o in objects) == made


def test_monitors_select_what_there_is() -> None:
    values = {"metrics": {"prometheusOperator": {"enabled": True, "labels": {"release": "prom"}}}}
    objects = chart.render(values)
    service, monitor = chart.only(objects, "Service"), chart.only(objects, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert chart.only(objects, "PodMonitor")["spec"]["namespaceSelector"] == {"any": True}
    plain, tls = chart.only(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (plain["port"], tls["port"], tls["scheme"]) == (names.scheme(False), names.scheme(True), "https")
    namespaced = chart.only(chart.render({**values, "watch": {"namespaces": ["ml"]}}), "PodMonitor")
    assert namespaced["spec"]["namespaceSelector"] == {"matchNames": ["ml"]}


def test_a_service_monitor_needs_the_service() -> None:
    values = {"metrics": {"service": {"enabled": False}, "prometheusOperator": {"enabled": True}}}
    with pytest.raises(HelmRenderError, match=r"needs metrics\.service\.enabled"):
        chart.render(values)


def _container(objects: list[chart.Object]) -> dict[str, Any]:
    (container,) = chart.only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)
