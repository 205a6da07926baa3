"""The real API server judges spec.pod: what a Pod would be refused for is refused where its user sees it."""

from __future__ import annotations

from typing import Any

import pytest
from localcluster.cluster import ApiError, Cluster, Object
from sheaf_e2e.deployed import Deployed, conditions
from sheaf_e2e.llmdeployments import judged, resource

pytestmark = pytest.mark.cluster
IN = {"operator": "In", "values": ["a"]}


def pod(**fields: Any) -> Object:
    return resource(pod=fields)


def spread(**fields: Any) -> Object:
    base = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    return pod(topologySpreadConstraints=[{**base, **fields}])


def nodes(**requirement: Any) -> Object:
    term = {"matchExpressions": [{"key": "zone", **requirement}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return pod(affinity={"nodeAffinity": required})


def near(**term: Any) -> Object:
    return pod(affinity={"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})


def env(**variable: Any) -> Object:
    return pod(env=[{"name": "A", **variable}])


def mount(name: str = "data", path: str = "/data") -> Object:
    return {"name": name, "mountPath": path}


def box(name: str = "box", **fields: Any) -> Object:
    return {"name": name, "image": "busybox:1", **fields}


VOLUME = {"name": "data", "emptyDir": {}}
TAKES_NONE = "In and NotIn need values, Exists and DoesNotExist take none"
TEXTS = [{"name": f"A{i}", "value": "x" * 4096} for i in range(64)]
REFUSED: list[tuple[str, Object, str]] = [
    ("KServe's label", pod(labels={"serving.kserve.io/x": "1"}), "belong to Sheaf and KServe"),
    ("our label", pod(labels={"sheaf.dev/deployment": "x"}), "belong to Sheaf and KServe"),
    ("app label", pod(labels={"app": "x"}), "belong to Sheaf and KServe"),
    ("our annotation", pod(annotations={"sheaf.dev/x": "1"}), "belong to Sheaf and KServe"),
    ("a model's name", pod(labels={"model": "meta-llama/Llama"}), "spec.pod.labels[model]"),
    ("a version", pod(labels={"helm.sh/chart": "m-0.3.0+2026"}), "spec.pod.labels[helm.sh/chart]"),
    ("a long value", pod(labels={"commit": "f" * 64}), "spec.pod.labels.commit: Too long"),
    (
        "a value with a dot at its end",
        pod(labels={"a": "b."}),
        "(no '/', '+' or blank: it is a label's value)",
    ),
    ("a key with a blank", pod(labels={"a b": "c"}), "keys must be at most 63 letters"),
    ("a key of two slashes", pod(annotations={"a/b/c": "d"}), "keys must be at most 63 letters"),
    ("a key that is too long", pod(labels={"k" * 64: "v"}), "keys must be at most 63 letters"),
    (
        "a product's name",
        pod(nodeSelector={"gpu.product": "NVIDIA A10G"}),
        "spec.pod.nodeSelector[gpu.product]",
    ),
    (
        "a node's label with a blank",
        pod(nodeSelector={"gpu product": "x"}),
        "keys must be at most 63 letters",
    ),
    ("PYTHONPATH", env(name="PYTHONPATH", value="x"), "must not set PYTHONPATH"),
    ("env template", env(value="{{x}}"), "expand it as a template"),
    (
        "env both",
        env(value="x", valueFrom={"fieldRef": {"fieldPath": "status.podIP"}}),
        "set either value or",
    ),
    ("env twice", pod(env=[{"name": "A"}, {"name": "A"}]), "Duplicate value"),
    ("env number", env(value=1), "spec.pod.env[0].value in body must be of type string"),
    ("env truth", env(value=True), "spec.pod.env[0].value in body must be of type string"),
    ("env beyond an annotation", pod(env=TEXTS), "put long texts into a ConfigMap"),
    (
        "env from a misspelt source",
        env(valueFrom={"secretRef": {"name": "s"}}),
        'unknown field "spec.pod.env[0].',
    ),
    ("env from nothing", env(valueFrom={}), "set one of secretKeyRef, configMapKeyRef"),
    (
        "env from a field that is none",
        env(valueFrom={"fieldRef": {"fieldPath": "status.ip"}}),
        "must be metadata.",
    ),
    ("image with a space", pod(image="a b"), "pod.image"),
    (
        "Exists with a value",
        pod(tolerations=[{"key": "a", "operator": "Exists", "value": "true"}]),
        "operator Exists takes no value",
    ),
    ("toleration of nothing", pod(tolerations=[{"effect": "NoSchedule"}]), "the operator must be Exists"),
    ("an empty key", pod(tolerations=[{"key": "", "operator": "Equal", "value": "a"}]), "must be Exists"),
    (
        "seconds without NoExecute",
        pod(tolerations=[{"key": "a", "operator": "Exists", "tolerationSeconds": 5}]),
        "tolerationSeconds needs effect NoExecute",
    ),
    ("a taint's key", pod(tolerations=[{"key": "a b", "operator": "Exists"}]), "must be a taint's key"),
    ("a taint's value", pod(tolerations=[{"key": "a", "value": "b c"}]), "spec.pod.tolerations[0].value"),
    ("domains with ScheduleAnyway", spread(minDomains=2), "minDomains needs whenUnsatisfiable DoNotSchedule"),
    (
        "a spread twice",
        pod(topologySpreadConstraints=[spread()["spec"]["pod"]["topologySpreadConstraints"][0]] * 2),
        "Duplicate value",
    ),
    ("a topology key", spread(topologyKey="a b"), "spec.pod.topologySpreadConstraints[0].topologyKey"),
    (
        "a misspelt selector",
        spread(labelSelector={"matchLabel": {}}),
        'unknown field "spec.pod.topologySpread',
    ),
    (
        "a misspelt term",
        pod(affinity={"nodeAffinity": {"required": []}}),
        'unknown field "spec.pod.affinity.node',
    ),
    ("In without values", nodes(operator="In"), TAKES_NONE),
    ("Exists with values", nodes(operator="Exists", values=["a"]), TAKES_NONE),
    ("Gt with a word", nodes(operator="Gt", values=["many"]), "Gt and Lt one whole number in quotes"),
    ("In with a blank", nodes(operator="In", values=["NVIDIA A10G"]), "it is a label's value"),
    (
        "no terms",
        pod(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}),
        "Terms: Req",
    ),
    (
        "a weight",
        pod(
            affinity={
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "preference": {}}]
                }
            }
        ),
        "greater than or equal to 1",
    ),
    ("no topology key", near(labelSelector={}), "topologyKey: Required value"),
    (
        "a selector's operator",
        near(
            topologyKey="a",
            labelSelector={"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]},
        ),
        'supported values: "In"',
    ),
    ("a mount of nothing", pod(volumeMounts=[mount("a")]), "must name one of spec.pod.volumes"),
    (
        "a sidecar's mount of nothing",
        pod(sidecars=[box(volumeMounts=[mount("a")])]),
        "must name one of spec.pod",
    ),
    ("a mount twice", pod(volumes=[VOLUME], volumeMounts=[mount(), mount()]), "Duplicate value"),
    *(
        (f"mount over {path}", pod(volumes=[VOLUME], volumeMounts=[mount(path=path)]), "must not mount over")
        for path in ("/", "/mnt/models", "/dev/shm", "/dev/shm/", "/tmp", "/etc/sheaf/tls")
    ),
    (
        "a mount that climbs",
        pod(volumes=[VOLUME], volumeMounts=[mount(path="/a/../b")]),
        "must be an absolute path",
    ),
    ("a relative mount", pod(volumes=[VOLUME], volumeMounts=[mount(path="a")]), "must be an absolute path"),
    (
        "a folder of the node",
        pod(volumes=[{"name": "a", "hostPath": {"path": "/"}}]),
        'unknown field "spec.pod.volumes',
    ),
    (
        "two sources",
        pod(volumes=[{**VOLUME, "secret": {"secretName": "s"}}]),
        "set one of configMap, secret, emptyDir",
    ),
    ("our volume", pod(volumes=[{**VOLUME, "name": "shm"}]), "must not be shm, tmp, tls"),
    ("a container twice", pod(sidecars=[box(), box()]), "Duplicate value"),
    ("one name in two lists", pod(sidecars=[box()], initContainers=[box()]), "no sidecar may have the name"),
    (
        "KServe's container",
        pod(sidecars=[box(name="kserve-container")]),
        "must not be one of KServe's own names",
    ),
    ("a privileged sidecar", pod(sidecars=[box(securityContext={"privileged": True})]), "unknown field"),
    ("root", pod(securityContext={"runAsUser": 0}), "greater than or equal to 1"),
    (
        "long arguments",
        pod(initContainers=[box(args=["x" * 4096] * 32)], sidecars=[box("b", args=["x"])]),
        "may have 131072",
    ),
    ("too short a start", pod(probes={"startupSeconds": 1}), "greater than or equal to 30"),
    ("copied from a pod", pod(envFrom=[{"secretRef": {"name": "s"}}]), 'unknown field "spec.pod.envFrom"'),
]


@pytest.mark.parametrize(("obj", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_it_is_refused_with_what_to_change(operator: Cluster, obj: Object, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        judged(operator, obj)
    assert message in str(refused.value)


ALLOWED: dict[str, Object] = {
    "user labels": pod(labels={"team": "a", "example.com/x": "", "Owner_1": "a.b-c_D"}),
    "free annotations": pod(annotations={"example.com/x": "any text: {a/b}\n"}),
    "nulls": pod(
        nodeSelector=None,
        tolerations=None,
        affinity=None,
        env=None,
        imagePullSecrets=None,
        priorityClassName=None,
    ),
    "nulls inside": pod(
        affinity={
            "nodeAffinity": None,
            "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": None},
        },
        tolerations=[{"key": None, "operator": "Exists", "value": None, "tolerationSeconds": None}],
        env=[{"name": "A", "value": None}],
    ),
    "any taint": pod(tolerations=[{"operator": "Exists"}]),
    "seconds with NoExecute": pod(
        tolerations=[{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]
    ),
    "Exists with an empty value": pod(tolerations=[{"key": "a", "operator": "Exists", "value": ""}]),
    "nodes": nodes(**IN),
    "nodes by number": nodes(operator="Gt", values=["8"]),
    "a node by name": pod(
        affinity={
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}
                    ]
                }
            }
        }
    ),
    "pods": near(
        topologyKey="kubernetes.io/hostname",
        labelSelector={"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", **IN}]},
        namespaces=["x"],
        namespaceSelector={},
        matchLabelKeys=["pod-template-hash"],
    ),
    "spread": spread(
        whenUnsatisfiable="DoNotSchedule",
        minDomains=2,
        matchLabelKeys=["pod-template-hash"],
        nodeTaintsPolicy="Honor",
    ),
    "two spreads": pod(
        topologySpreadConstraints=[
            {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway"}
            for key in ("zone", "host")
        ]
    ),
    "volumes": pod(
        volumes=[
            VOLUME,
            {
                "name": "c",
                "configMap": {"name": "c", "items": [{"key": "k", "path": "a/b"}], "defaultMode": 292},
            },
            {"name": "s", "secret": {"secretName": "s", "optional": True}},
            {"name": "p", "persistentVolumeClaim": {"claimName": "p", "readOnly": True}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
        ],
        volumeMounts=[mount(), {**mount("c", "/etc/c.yaml"), "subPath": "a/b", "readOnly": True}],
    ),
    "containers": pod(
        volumes=[VOLUME],
        initContainers=[box("a", command=["sh", "-c", "true"], resources={"cpu": "1", "memory": "1Gi"})],
        sidecars=[box("b", env=[{"name": "A", "value": "b"}], volumeMounts=[mount()])],
        securityContext={"fsGroup": 1000, "runAsUser": 1000, "supplementalGroups": [1001]},
        probes={"startupSeconds": 7200},
    ),
    "much env": pod(env=TEXTS[:32]),
    "sources": pod(
        env=[
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k.pem", "optional": True}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            {
                "name": "C",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['a.b/c']"}},
            },
            {"name": "D", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        ]
    ),
}


@pytest.mark.parametrize("obj", ALLOWED.values(), ids=list(ALLOWED))
def test_it_is_allowed(operator: Cluster, obj: Object) -> None:
    judged(operator, obj)


NULLS: Object = {
    "model": {"uri": "hf://a/b", "servedName": None, "credentialsSecretRef": None},
    "engine": None,
    "tls": None,
    "disruptionBudget": None,
    "resources": {"cpu": None, "sharedMemory": None},
    "autoscaling": {"mode": "Disabled", "metrics": None, "behavior": {"scaleDown": {"policies": None}}},
    "pod": {
        "labels": None,
        "volumes": None,
        "initContainers": None,
        "sidecars": [{"name": "a", "image": "b", "args": None, "resources": None, "volumeMounts": None}],
        "securityContext": {"fsGroup": None},
        "tolerations": [{"key": None, "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": None}},
    },
}


def test_nulls_survive_server_side_apply(operator: Cluster, namespace: str) -> None:
    """Helm 4 applies a chart's empty values that way; nothing drops them before the operator reads them."""
    obj = resource("nulls", **NULLS)
    obj["metadata"]["namespace"] = namespace
    for _ in range(2):
        applied = operator.api.apply(obj, field_manager="helm")
    assert applied["spec"]["resources"]["cpu"] == "1"
    operator.kubectl("scale", "-n", namespace, "llmd/nulls", "--replicas=0")
    obj["spec"]["replicas"] = 0
    deployed = Deployed(operator, obj)
    deployed.wait(lambda status: status.get("conditions"), "the operator has read it")
    assert conditions(deployed.get()["status"])["Ready"]["reason"] != "InvalidSpec"
