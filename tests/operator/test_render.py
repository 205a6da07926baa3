import json
from typing import Any

import kube_objects as k
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.desired import containers, render
from sheaf_operator.desired import revision as revisions


def container(given: LLMDeploymentSpec) -> dict[str, Any]:
    found: dict[str, Any] = k.revision(given).runtime["containers"][0]
    return found


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, ["--served-model-name", "m"]),
        ({"model": {"uri": "hf://a/b", "servedName": "x"}}, ["--served-model-name", "x"]),
        ({"engine": {"maxModelLen": 512}}, ["--max-model-len", "512"]),
        ({"engine": {"targetInterTokenMs": 80}}, ["--target-inter-token-ms", "80"]),
        ({"engine": {"targetTtftMs": 900}}, ["--target-ttft-ms", "900"]),
        ({"engine": {"maxWaitingRequests": 64}}, ["--max-waiting-requests", "64"]),
        ({"engine": {"maxWaitingTokens": 100000}}, ["--max-waiting-tokens", "100000"]),
        ({"engine": {"dtype": "bfloat16"}}, ["--dtype", "bfloat16"]),
        ({"engine": {"quantization": "int8"}}, ["--quantization", "int8"]),
        ({"engine": {"prefixCaching": False}}, ["--no-enable-prefix-caching"]),
        ({"accelerator": {"count": 0}}, ["--device", "cpu"]),
        ({"termination": {"drainTimeoutSeconds": 7}}, ["--drain-timeout", "7"]),
        ({"engine": {"extraArgs": ["--max-num-seqs", "4"]}}, ["--max-num-seqs", "4"]),
    ],
)
def test_each_field_maps_to_its_flag(fields: dict[str, Any], flags: list[str]) -> None:
    args = containers.args("m", k.spec(**fields))
    assert args[0] == "/mnt/models"
    start = args.index(flags[0])
    assert args[start : start + len(flags)] == flags


def test_the_gpu_default_says_nothing_it_need_not_say() -> None:
    args = containers.args("m", k.spec())
    assert not {
        "--device",
        "--dtype",
        "--max-model-len",
        "--target-ttft-ms",
        "--no-enable-prefix-caching",
    } & set(args)


def test_resources_are_complete_so_that_kserve_adds_no_defaults() -> None:
    resources = k.revision(k.spec(resources={"cpu": "1500m", "memory": "3Gi"})).predictor["model"][
        "resources"
    ]
    assert resources == {
        "requests": {"cpu": "1500m", "memory": "3Gi", "nvidia.com/gpu": "1"},
        "limits": {"cpu": "2", "memory": "3Gi", "nvidia.com/gpu": "1"},
    }


def test_compute_threads_follow_the_cpu_request_on_cpu_only() -> None:
    def environment(given: LLMDeploymentSpec) -> dict[str, str]:
        return {e["name"]: e["value"] for e in container(given)["env"]}

    assert environment(k.cpu_spec(resources={"cpu": "2500m"}))["OMP_NUM_THREADS"] == "2"
    assert environment(k.cpu_spec(resources={"cpu": "500m"}))["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(k.spec())


def test_a_drain_has_time_to_finish() -> None:
    given = k.spec(termination={"drainTimeoutSeconds": 90})
    grace = k.revision(given).predictor["terminationGracePeriodSeconds"]
    pre_stop = container(given)["lifecycle"]["preStop"]["sleep"]["seconds"]
    lame_duck = 10
    assert grace >= pre_stop + lame_duck + 90 + 5


def test_probes_ask_the_runtime_what_each_is_for() -> None:
    made = container(k.spec())
    assert made["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert made["startupProbe"]["httpGet"]["path"] == made["livenessProbe"]["httpGet"]["path"] == "/health"
    liveness = made["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


def test_pods_satisfy_the_restricted_pod_security_standard() -> None:
    made = k.revision(k.spec())
    pod = made.predictor["securityContext"]
    assert pod == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container(k.spec())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_writable_places_are_mounted() -> None:
    made = k.revision(k.spec()).runtime
    mounts = {m["mountPath"]: m["name"] for m in made["containers"][0]["volumeMounts"]}
    volumes = {v["name"]: v["emptyDir"] for v in made["volumes"]}
    assert volumes[mounts["/dev/shm"]]["medium"] == "Memory"
    assert mounts["/tmp"] in volumes


def test_nothing_of_the_users_metadata_reaches_children() -> None:
    """The renderer is not even given the owner's labels and annotations; ours are a fixed set."""
    made = render.inference_service("m", "ns", k.UID, k.revision(k.spec()), "Surge", suspend=False)
    assert made["metadata"]["labels"] == {
        "sheaf.dev/deployment": "m",
        "app.kubernetes.io/managed-by": "sheaf-operator",
    }
    assert made["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "external",
        "serving.kserve.io/stop": "false",
    }


def test_pod_settings_are_passed_on() -> None:
    pod = {
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "serviceAccountName": "sa",
        "imagePullSecrets": [{"name": "pull"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "image": "other:1",
        "env": [{"name": "A", "value": "1"}],
    }
    given = k.spec(pod=pod)
    predictor = k.revision(given).predictor
    assert predictor["labels"]["team"] == "a"
    assert predictor["annotations"] == {"note": "b"}
    for same in ("nodeSelector", "tolerations", "affinity", "serviceAccountName", "imagePullSecrets"):
        assert predictor[same] == pod[same], same
    assert predictor["priorityClassName"] == "high"
    assert predictor["runtimeClassName"] == "nvidia"
    spread = predictor["topologySpreadConstraints"][0]
    assert spread["labelSelector"] == {"matchLabels": {"sheaf.dev/deployment": "m"}}
    assert container(given)["image"] == "other:1"
    assert {"name": "A", "value": "1"} in container(given)["env"]


def test_the_download_secret_is_named_for_kserve() -> None:
    given = k.spec(model={"uri": "hf://a/b", "credentialsSecretRef": {"name": "token"}})
    annotations = k.revision(given).predictor["annotations"]
    assert set(annotations.values()) == {"token"}


def test_suspend_and_strategy_change_no_pod_template() -> None:
    of = k.revision(k.spec())

    def template(obj: dict[str, Any]) -> dict[str, Any]:
        return {key: v for key, v in obj["spec"]["predictor"].items() if key != "deploymentStrategy"}

    made = [
        render.inference_service("m", "ns", k.UID, of, strategy, suspend)
        for strategy in render.STRATEGIES
        for suspend in (False, True)
    ]
    assert all(template(obj) == template(made[0]) for obj in made)


REACHES_PODS: list[dict[str, Any]] = [
    {"model": {"uri": "hf://x/y"}},
    {"engine": {"maxModelLen": 10}},
    {"resources": {"memory": "5Gi"}},
    {"termination": {"drainTimeoutSeconds": 5}},
    {"pod": {"image": "i"}},
    {"accelerator": {"count": 0}},
]
REACHES_NO_POD: list[dict[str, Any]] = [
    {"autoscaling": {"maxReplicas": 9}},
    {"rollout": {"strategy": "Recreate"}},
    {"suspend": True},
    {"autoscaling": {"mode": "Disabled"}, "replicas": 4},
    {"accelerator": {"memory": "80Gi"}},
]


@pytest.mark.parametrize("change", REACHES_PODS)
def test_what_reaches_pods_makes_a_new_revision(change: dict[str, Any]) -> None:
    assert k.revision(k.spec(**change)).hash != k.revision(k.spec()).hash
    assert not k.revision(k.spec()).serves(k.spec(**change))


@pytest.mark.parametrize("change", REACHES_NO_POD)
def test_what_reaches_no_pod_keeps_the_revision(change: dict[str, Any]) -> None:
    assert k.revision(k.spec(**change)).hash == k.revision(k.spec()).hash
    assert k.revision(k.spec()).serves(k.spec(**change))


def test_a_recorded_revision_is_read_back() -> None:
    made = k.revision(k.spec())
    assert revisions.read(k.runtime(made)) == made


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", '"x"'])
def test_a_damaged_record_is_no_revision(text: str | None) -> None:
    damaged = k.runtime(k.revision(k.spec()))
    damaged["metadata"]["annotations"] = {} if text is None else {"sheaf.dev/revision": text}
    assert revisions.read(damaged) is None


def test_a_field_that_is_new_in_this_version_does_not_change_a_recorded_revision() -> None:
    made = k.revision(k.spec())
    recorded = json.loads(made.annotation())
    del recorded["spec"]["engine"]["prefixCaching"]  # as an operator that did not know it would have written
    runtime = k.runtime(made)
    runtime["metadata"]["annotations"]["sheaf.dev/revision"] = json.dumps(recorded)
    read = revisions.read(runtime)
    assert read is not None
    assert read.serves(k.spec())
    assert not read.serves(k.spec(engine={"prefixCaching": False}))


@given(st.integers(1, 3600), st.sampled_from(["500m", "1", "7", "2.5"]), st.integers(0, 1))
def test_rendering_is_deterministic_and_json(drain: int, cpu: str, count: int) -> None:
    given_spec = k.spec(
        termination={"drainTimeoutSeconds": drain}, resources={"cpu": cpu}, accelerator={"count": count}
    )
    first, second = k.revision(given_spec), k.revision(given_spec)
    assert first == second
    assert json.loads(json.dumps(first.runtime)) == first.runtime
