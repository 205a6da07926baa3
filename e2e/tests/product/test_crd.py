"""The real API server judges LLMDeployments: what is allowed, and that each refusal says what to change."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from localcluster.cluster import ApiError, Cluster, Object
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.llmdeployments import API, KIND, judged, resource

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def crd(operator: Cluster) -> Cluster:
    """The cluster with the resource definition installed, as users have it: by the chart."""
    return operator


LONG = "x" * 49


def with_adapters(*adapters: Object, lora: int | None = 2, served: str | None = None) -> Object:
    """A resource whose pods see a claim at /a."""
    model = {"uri": "pvc://claim/m", "adapters": list(adapters), "servedName": served}
    claim = {"name": "a", "persistentVolumeClaim": {"claimName": "a"}}
    pod = {"volumes": [claim], "volumeMounts": [{"name": "a", "mountPath": "/a/"}]}
    return resource(model=model, engine={"maxLoras": lora}, pod=pod)


REFUSED: list[tuple[str, Object, str]] = [
    ("name too long", resource(LONG), "must have at most 48 characters"),
    ("name starts with a digit", resource("1m"), "must start with a letter"),
    ("name with a dot", resource("a.b"), "(no dot: it becomes part of a host name)"),
    ("no model", {**resource(), "spec": {}}, "spec.model"),
    ("uri without scheme", resource(model={"uri": "meta/llama"}), "must start with hf://, pvc://"),
    ("uri of another scheme", resource(model={"uri": "http://x/y"}), "must start with hf://, pvc://"),
    ("hf without a model", resource(model={"uri": "hf://onlyorg"}), "must start with hf://, pvc://"),
    (
        "oci without an image",
        resource(model={"uri": "oci://registry/model/"}),
        "must start with hf://, pvc://",
    ),
    ("uri that climbs", resource(model={"uri": "pvc://c/../x"}), "must not contain '..'"),
    ("odd served name", resource(model={"uri": "hf://a/b", "servedName": "a b"}), "servedName"),
    (
        "adapters without room",
        with_adapters({"name": "x", "path": "/a/x"}, lora=None),
        "need engine.maxLoras",
    ),
    (
        "adapters from a hub",
        with_adapters({"name": "x", "path": "hf://c/d"}),
        "adapters are not downloaded; put it into a claim",
    ),
    ("adapter that climbs", with_adapters({"name": "x", "path": "/a/../b"}), "without '..' and blanks"),
    (
        "adapter outside of volumes",
        with_adapters({"name": "x", "path": "/ab/x"}),
        "must be below one of pod.volumeMounts, or below /mnt/models",
    ),
    ("adapter named like the model", with_adapters({"name": "m", "path": "/a/m"}), "which is metadata.name"),
    (
        "adapter with the served name",
        with_adapters({"name": "s", "path": "/a/s"}, served="s"),
        "no adapter may have the model's own name, servedName",
    ),
    (
        "two adapters of one name",
        with_adapters({"name": "x", "path": "/a/x"}, {"name": "x", "path": "/a/y"}),
        "Duplicate value",
    ),
    ("adapter with a comma", with_adapters({"name": "x,y", "path": "/a/x"}), "spec.model.adapters[0].name"),
    (
        "too many adapters",
        with_adapters(*({"name": f"x{i}", "path": "/a/x"} for i in range(33))),
        "must have at most 32 items",
    ),
    ("a rank without adapters", resource(engine={"maxLoraRank": 8}), "set maxLoras too"),
    ("adapter flags by hand", resource(engine={"extraArgs": ["--enable-lora"]}), "must not repeat"),
    (
        "quantization",
        resource(engine={"quantization": "awq"}),
        "quantization must be none or int8",
    ),
    (
        "int8 on a GPU",
        resource(engine={"quantization": "int8"}, accelerator={"count": 1}),
        "int8 runs on CPUs only in this version: set accelerator.count to 0",
    ),
    ("KV type", resource(engine={"kvCacheDtype": "fp8"}), "kvCacheDtype is not supported in this version"),
    ("dtype", resource(engine={"dtype": "int8"}), 'supported values: "auto", "float32"'),
    ("length 0", resource(engine={"maxModelLen": 0}), "greater than or equal to 1"),
    (
        "owned flag",
        resource(engine={"extraArgs": ["--port", "1"]}),
        "must not repeat or abbreviate a flag",
    ),
    ("owned flag=", resource(engine={"extraArgs": ["--dtype=float16"]}), "use the spec's own field"),
    *(
        (f"owned: {args}", resource(engine={"extraArgs": args}), "must not repeat or abbreviate a flag")
        for args in (
            ["--max-model", "9"],
            ["--drain", "1"],
            ["--serv=other"],
            ["--por", "9"],
            ["--no-enable-prefix"],
            ["--served_model_name", "x"],
            ["--drain-timeout=1\n"],
            ["--seed", "1", "--dev=cpu"],
            ["--"],
        )
    ),
    *(
        (
            f"one argument: {args}",
            resource(engine={"extraArgs": args}),
            "must be one argument: write a flag and",
        )
        for args in (
            ["--port 9000"],
            ["--max-num-seqs 4"],
            ["--max-num-seqs\t4"],
            ["--seed=1\n"],
            ["--seed=1", " --port=9"],
            ["--seed= 1"],
            ["--seed\u00a01"],
            ["-port=9"],
        )
    ),
    (
        "a value's line break",
        resource(engine={"extraArgs": ["--seed", "1\n"]}),
        "write the value on one line",
    ),
    ("a dash for two hyphens", resource(engine={"extraArgs": ["--a", "\u2013seed"]}), "two plain hyphens"),
    ("a value alone", resource(engine={"extraArgs": ["max-num-seqs=4"]}), "must begin with a flag"),
    ("template", resource(engine={"extraArgs": ["--x={{.Name}}"]}), "KServe would expand it as a template"),
    ("tensor", resource(parallelism={"tensor": 2}), "tensor parallelism is not supported in this version"),
    ("idle devices", resource(accelerator={"count": 2}), "accelerator.count must equal parallelism.tensor"),
    ("device name", resource(accelerator={"resourceName": "gpu"}), "resourceName"),
    ("cpu in words", resource(resources={"cpu": "two"}), "must be cores, such as 2"),
    (
        "cpu without quotes",
        resource(resources={"cpu": 0.5}),
        "resources.cpu in body must be of type integer,string",
    ),
    *(
        (f"memory {memory}", resource(resources={"memory": memory}), "such as 512Mi or 16Gi, from 1Mi")
        for memory in (0, "-1Gi", "512m", "32gi", 16, "0.5", "16GB", "1e30")
    ),
    ("a limit below", resource(resources={"cpu": 4, "cpuLimit": "2"}), "cpuLimit must not be less than cpu"),
    (
        "more shared memory",
        resource(resources={"sharedMemory": "9Gi"}),
        "sharedMemory must not exceed memory",
    ),
    ("a share of a budget", resource(disruptionBudget={"maxUnavailable": "200%"}), 'share such as "25%"'),
    (
        "a budget in words",
        resource(disruptionBudget={"maxUnavailable": "one"}),
        "must be a number of replicas",
    ),
    ("TLS without a Secret", resource(tls={}), "spec.tls.secretName: Required value"),
    (
        "replicas with Builtin",
        resource(replicas=2),
        "replicas cannot be set while autoscaling.mode is Builtin",
    ),
    (
        "bounds crossed",
        resource(autoscaling={"minReplicas": 3, "maxReplicas": 2}),
        "minReplicas must not exceed maxReplicas",
    ),
    ("zero at least", resource(autoscaling={"minReplicas": 0}), "to stop all pods set spec.suspend to true"),
    ("mode off", resource(autoscaling={"mode": "Off"}), '"Builtin", "Advisory", "External", "Disabled"'),
    ("no signal", resource(autoscaling={"metrics": []}), "metrics must name at least one signal"),
    (
        "a signal twice",
        resource(autoscaling={"metrics": [{"type": "QueueDepth", "target": t} for t in (1, 2)]}),
        "Duplicate value",
    ),
    (
        "KV at 100",
        resource(autoscaling={"metrics": [{"type": "KVCacheUtilizationPercent", "target": 100}]}),
        "must be at most 95",
    ),
    (
        "fractional target",
        resource(autoscaling={"metrics": [{"type": "QueueDepth", "target": 1.5}]}),
        "integer",
    ),
    ("unknown signal", resource(autoscaling={"metrics": [{"type": "CPU", "target": 1}]}), '"QueueDepth"'),
    (
        "endless window",
        resource(autoscaling={"behavior": {"scaleDown": {"stabilizationWindowSeconds": 99999}}}),
        "less than or equal to 3600",
    ),
    ("no drain", resource(termination={"drainTimeoutSeconds": 0}), "greater than or equal to 1"),
    ("endless drain", resource(termination={"drainTimeoutSeconds": 99999}), "less than or equal to 3600"),
    ("strategy", resource(rollout={"strategy": "BlueGreen"}), '"Auto", "Surge", "Recreate"'),
]


@pytest.mark.parametrize(("obj", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_it_is_refused_with_what_to_change(crd: Cluster, obj: Object, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        judged(crd, obj)
    assert refused.value.code == 422
    assert message in str(refused.value)


ALLOWED: dict[str, Object] = {
    "adapters of a claim": with_adapters(*({"name": f"org/x{i}", "path": f"/a/x/{i}"} for i in range(32))),
    "adapters beside the model": resource(
        engine={"maxLoras": 4, "maxLoraRank": 64},
        model={"uri": "pvc://c/m", "adapters": [{"name": "x", "path": "/mnt/models/adapters/x"}]},
    ),
    "a name that servedName frees": with_adapters({"name": "m", "path": "/a/m"}, served="s"),
    "the least": resource(),
    "a long name": resource("x" * 48),
    "every scheme": resource(model={"uri": "oci://registry/model:tag"}),
    "a bare claim": resource(model={"uri": "pvc://claim"}),
    "integer quantities": resource(resources={"cpu": 2, "memory": "16Gi"}),
    "fixed replicas": resource(replicas=0, autoscaling={"mode": "Disabled"}),
    "advisory replicas": resource(replicas=3, autoscaling={"mode": "Advisory"}),
    "no signal when disabled": resource(autoscaling={"mode": "Disabled", "metrics": []}),
    "further flags": resource(engine={"extraArgs": ["--max-num-seqs", "4", "--portable"]}),
    "slashes at the end": resource(model={"uri": "hf://org/model/"}),
    "slashes at the end of a bucket's folder": resource(model={"uri": "s3://bucket/models/llama/"}),
    "JSON in a flag": resource(
        engine={"extraArgs": ['--x={"a": {"b": [1, 2]}, "c": "d e"}', "--y", '{"a": 1}\n']}
    ),
    "a variable in a flag": resource(engine={"extraArgs": ["--api-key=$(API_KEY)", "--seed", "-1"]}),
    "a budget": resource(disruptionBudget={"maxUnavailable": "25%"}),
    "a budget in numbers": resource(disruptionBudget={"mode": "Auto", "maxUnavailable": 0}),
    "TLS": resource(tls={"secretName": "m-tls"}),
    "more of resources": resource(
        resources={
            "cpu": 2,
            "cpuLimit": 999,
            "memory": "8Gi",
            "sharedMemory": "4Gi",
            "ephemeralStorage": "10Gi",
        }
    ),
    "fractions of a unit": resource(resources={"cpu": "0.5", "memory": "1.5Gi"}),
    "thousandths, as autoscalers recommend": resource(resources={"memory": "1288490188800m"}),
    "nulls": resource(
        engine=None,
        accelerator=None,
        resources={"cpu": None, "memory": None},
        autoscaling=None,
        termination={"drainTimeoutSeconds": None},
        rollout=None,
        suspend=None,
        replicas=None,
        pod=None,
    ),
}


@pytest.mark.parametrize("obj", ALLOWED.values(), ids=list(ALLOWED))
def test_it_is_allowed(crd: Cluster, obj: Object) -> None:
    judged(crd, obj)


@pytest.mark.parametrize(
    "sample", sorted((CHECKOUT / "manifests" / "samples").glob("*.yaml")), ids=lambda p: p.name
)
def test_samples_are_allowed(crd: Cluster, sample: Any) -> None:
    crd.kubectl("apply", "--dry-run=server", "-f", str(sample))


def test_defaults_are_filled_in_and_short(crd: Cluster) -> None:
    spec = judged(crd, resource())["spec"]
    assert spec["autoscaling"]["mode"] == "Builtin"
    assert [m["type"] for m in spec["autoscaling"]["metrics"]] == ["QueueDepth", "KVCacheUtilizationPercent"]
    assert spec["autoscaling"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert spec["termination"] == {"drainTimeoutSeconds": 120}
    assert "replicas" not in spec
    assert spec["pod"] == {"probes": {"livenessSeconds": 60, "startupSeconds": 3600}}


def test_defaults_fill_a_part_that_is_given(crd: Cluster) -> None:
    spec = judged(crd, resource(autoscaling={"maxReplicas": 4}))["spec"]
    assert spec["autoscaling"]["minReplicas"] == 1
    assert len(spec["autoscaling"]["metrics"]) == 2


def test_metrics_merge_by_type(crd: Cluster, namespace: str) -> None:
    """Two appliers may each own one signal."""
    own = resource(autoscaling={"maxReplicas": 2, "metrics": [{"type": "QueueDepth", "target": 9}]})
    own["metadata"]["namespace"] = namespace
    crd.api.apply(own, field_manager="one")
    other = deepcopy(own)
    other["spec"]["autoscaling"]["metrics"] = [{"type": "KVCacheUtilizationPercent", "target": 50}]
    merged = crd.api.apply(other, field_manager="two")
    targets = {m["type"]: m["target"] for m in merged["spec"]["autoscaling"]["metrics"]}
    assert targets == {"QueueDepth": 9, "KVCacheUtilizationPercent": 50}


def test_scale_subresource_and_short_name(crd: Cluster, namespace: str) -> None:
    obj = resource(autoscaling={"mode": "Disabled"})
    crd.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(obj))
    crd.kubectl("scale", "-n", namespace, "llmd/m", "--replicas=3")
    assert crd.kubectl("get", "-n", namespace, "llmd", "m", "-o", "jsonpath={.spec.replicas}") == "3"


def test_scaling_by_hand_is_refused_while_builtin_scales(crd: Cluster, namespace: str) -> None:
    crd.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(resource()))
    with pytest.raises(ApiError, match="replicas cannot be set while"):
        crd.api.patch(API, KIND, "m", {"spec": {"replicas": 3}}, namespace, subresource="scale")


def test_columns_for_people(crd: Cluster, namespace: str) -> None:
    crd.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(resource()))
    header = crd.kubectl("get", "-n", namespace, "llmd", "-o", "wide").splitlines()[0].split()
    assert header[:4] == ["NAME", "READY", "REASON", "REPLICAS"]
    assert {"DESIRED", "URL", "MODEL", "AGE"} <= set(header)
