"""The real API server judges what people's files had in public bug reports: the ids say which."""

from __future__ import annotations

from typing import Any

import pytest
from localcluster.cluster import ApiError, Cluster, Object
from sheaf_e2e.llmdeployments import judged, resource

pytestmark = pytest.mark.cluster
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def pod(**fields: Any) -> Object:
    return resource(pod=fields)


def model(uri: str) -> Object:
    return resource(model={"uri": uri})


def env(**source: Any) -> Object:
    return pod(env=[{"name": "A", "valueFrom": source}])


def away(**term: Any) -> Object:
    return pod(affinity={"podAntiAffinity": {REQUIRED: [{"topologyKey": "zone", **term}]}})


def mount(path: str) -> Object:
    return pod(volumes=[{"name": "v", "emptyDir": {}}], volumeMounts=[{"name": "v", "mountPath": path}])


BLANK = "must not contain a blank, line break or invisible character"
DIVISOR = "divisor must be 1 or 1m for cpu, else 1 or one unit"
REFUSED: dict[str, tuple[Object, str]] = {
    "actions/languageservices#295: a block scalar ends in a line break": (model("hf://org/model\n"), BLANK),
    "a claim in a block scalar": (model("pvc://claim/model\n"), BLANK),
    "an image in a block scalar": (model("oci://registry.example/model:1\n"), BLANK),
    "a tabulator": (model("s3://bucket/model\t"), BLANK),
    "a blank inside": (model("s3://bucket/my model"), BLANK),
    "pasted from a web page": (model("hf://org/model\u00a0"), BLANK),
    "pasted with a zero-width space": (model("hf://org/model\u200b"), BLANK),
    "vllm#8273: a folded block makes two flags one": (
        resource(engine={"extraArgs": ["--max-num-seqs=32 --seed=1"]}),
        "must be one argument",
    ),
    "a scheme in capitals": (model("HF://org/model"), "must start with hf://"),
    "a claim's name that ends in a hyphen": (model("pvc://claim-/model"), "must start with hf://"),
    "a scheme before an image": (
        pod(image="https://r.example/a:1"),
        "no https://",
    ),
    "renku#281: capitals in an image": (pod(image="ghcr.io/Org/Image:1"), "in lower case"),
    "helm: a tag that nobody set": (pod(image="registry.example/image:"), "must be an image such as"),
    "a short digest": (pod(image="image@sha256:abc"), "must be an image such as"),
    "a Secret's name with two dots": (env(secretKeyRef={"name": "a..b", "key": "k"}), "should match"),
    "a key that is a folder": (env(configMapKeyRef={"name": "a", "key": ".."}), "must not be '.' or begin"),
    "a label's key with a blank": (env(fieldRef={"fieldPath": "metadata.labels['a b']"}), "must be metadata"),
    "a third of a core": (env(resourceFieldRef={"resource": "limits.cpu", "divisor": "3m"}), DIVISOR),
    "bytes for a core": (env(resourceFieldRef={"resource": "limits.cpu", "divisor": "1Mi"}), DIVISOR),
    "a namespace with a dot": (away(labelSelector={}, namespaces=["a.b"]), "should match"),
    "keys without a selector": (away(matchLabelKeys=["pod-template-hash"]), "need a labelSelector"),
    "a key in both lists": (
        away(labelSelector={}, matchLabelKeys=["a"], mismatchLabelKeys=["a"]),
        "no key may be in both",
    ),
    "a key's domain that is too long": (pod(labels={"d." * 126 + "dd/c": "x"}), "keys must be at most 63"),
    "the cost of a deletion": (
        pod(annotations={"controller.kubernetes.io/pod-deletion-cost": "abc"}),
        "belong to Sheaf and KServe",
    ),
    "mount //tmp": (mount("//tmp"), "must be an absolute path"),
    "mount /./tmp": (mount("/./tmp"), "must be an absolute path"),
    "a mount in a block scalar": (mount("/data\n"), "must be an absolute path"),
    "a toleration's operator in small letters": (
        pod(tolerations=[{"key": "a", "operator": "exists"}]),
        "must be one of Exists, Equal",
    ),
    "a volume without a source": (pod(volumes=[{"name": "v", "emptyDir": None}]), "emptyDir: {}"),
}


@pytest.mark.parametrize(("obj", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with_what_to_change(operator: Cluster, obj: Object, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        judged(operator, obj)
    assert message in str(refused.value)


MEMORY = {"resource": "limits.memory"}
ALLOWED: dict[str, Object] = {
    "nulls for words of a list": pod(
        tolerations=[{"key": "a", "operator": None, "effect": None, "value": None}],
        topologySpreadConstraints=[
            {
                "maxSkew": 1,
                "topologyKey": "zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "nodeAffinityPolicy": None,
                "nodeTaintsPolicy": None,
            }
        ],
        volumes=[{"name": "v", "emptyDir": {"medium": None}}],
        securityContext={"fsGroupChangePolicy": None},
    ),
    "zalando/postgres-operator#1757: empty texts, which a Pod takes for left out": pod(
        tolerations=[{"key": "a", "operator": "", "effect": ""}],
        volumes=[{"name": "v", "emptyDir": {"medium": ""}}],
        serviceAccountName="",
        priorityClassName="",
        runtimeClassName="",
    ),
    "kubernetes/kubernetes#46861: from a value to a source": pod(
        env=[{"name": "A", "value": "", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    ),
    "a divisor as Kubernetes shows the default": env(resourceFieldRef={**MEMORY, "divisor": "0"}),
    "mebibytes": env(resourceFieldRef={**MEMORY, "divisor": "1Mi"}),
    "a whole core": env(resourceFieldRef={"resource": "limits.cpu", "divisor": 1}),
    "an annotation's key in capitals": env(fieldRef={"fieldPath": "metadata.annotations['Example.com/a']"}),
    "vault-k8s#88: a template in an annotation": pod(
        annotations={"vault.hashicorp.com/agent-inject-template-token": '{{ with secret "a" }}' + "x" * 4000}
    ),
    "hyphens within JSON": resource(engine={"extraArgs": ['--x={"a": "b --c"}', "--y=a -- b"]}),
    "two dots within a name": model("hf://org/model-1..5"),
    "a mounted folder with a slash": mount("/data/"),
    "an image of a registry with a port, by tag and digest": pod(
        image="registry.example:5000/team-a/b__c/d.e:v1@sha256:" + "a" * 64
    ),
    "an image by an address": pod(image="[fd00::1]:5000/a/b:1"),
}


@pytest.mark.parametrize("obj", ALLOWED.values(), ids=list(ALLOWED))
def test_it_is_allowed(operator: Cluster, obj: Object) -> None:
    judged(operator, obj)
