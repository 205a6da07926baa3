"""The LLMDeployment resource (sheaf.dev/v1alpha1) as typed models.

This is the one description of the API: `crd.py` turns it into `crds/llmdeployments.yaml`, the operator parses
the user's objects with it. Defaults live here and nowhere else. Rules that a schema cannot express are CEL
expressions in `rule(...)`; each message says what to change.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "sheaf.dev"
VERSION = "v1alpha1"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
API_VERSION = f"{GROUP}/{VERSION}"

# Flags that the operator writes itself from fields of the spec.
OWNED_FLAGS = (
    "host", "port", "served-model-name", "max-model-len", "dtype", "device", "quantization", "kv-cache-dtype",
    "tensor-parallel-size", "enable-prefix-caching", "no-enable-prefix-caching", "drain-timeout",
)  # fmt: skip
# Environment that KServe refuses or that the operator sets itself.
OWNED_ENV = ("PYTHONPATH", "HOME", "OMP_NUM_THREADS")


def rule(cel: str, message: str = "", **more: str) -> dict[str, str]:
    """One entry of x-kubernetes-validations; `more` may hold fieldPath."""
    return {"rule": cel, **({"message": message} if message else {}), **more}


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(entries)}


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 24,
            **rules(
                rule(
                    "type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
                    'must be a positive quantity such as 500m, "8" or 16Gi',
                )
            ),
        }
    ),
]
DNSLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")]
ModelName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?$")
]
# A Kubernetes object that is passed through: the API server checks it when the pods are made.
OpaqueObject = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
Seconds = Annotated[int, Field(ge=0, le=3600)]


class ApiModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class LocalRef(ApiModel):
    name: ObjectName


class Adapter(ApiModel):
    name: ModelName
    uri: Annotated[str, Field(min_length=1, max_length=1024)]


URI_MESSAGE = (
    "must start with hf://, pvc://, s3://, gs:// or oci:// and name a model, for example "
    "hf://org/model or pvc://claim/path"
)


class Model(ApiModel):
    """What to serve and under which name."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.adapters) || size(self.adapters) == 0",
                "adapters are not supported in this version: remove spec.model.adapters",
                fieldPath=".adapters",
            )
        )
    )
    uri: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Where the model's folder comes from: hf://, pvc://claim/path, s3://, gs:// or oci://.",
            json_schema_extra=rules(
                rule(
                    "self.matches('^(hf|s3|gs|oci)://[^/ ]+/[^ ]*[^/ ]$')"
                    " || self.matches('^pvc://[a-z0-9]([-.a-z0-9]*[a-z0-9])?(/[^ ]*)?$')",
                    URI_MESSAGE,
                ),
                rule("!self.contains('..')", "must not contain '..': name the model's folder directly"),
            ),
        ),
    ]
    served_name: Annotated[
        ModelName | None, Field(description="The model's name in the API; default: the resource's name.")
    ] = None
    credentials_secret_ref: Annotated[
        LocalRef | None,
        Field(description="Secret for the download, with KServe's keys (HF_TOKEN, AWS_ACCESS_KEY_ID, ...)."),
    ] = None
    adapters: Annotated[
        list[Adapter], Field(max_length=16, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]})
    ] = []


_OWNED = "|".join(OWNED_FLAGS)


class Engine(ApiModel):
    """Each field maps to one flag of the runtime."""

    max_model_len: Annotated[
        int | None,
        Field(ge=1, le=16_777_216, description="Longest sequence in tokens; default: the model's."),
    ] = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Annotated[
        str,
        Field(
            max_length=32,
            json_schema_extra=rules(
                rule(
                    "self == 'none'",
                    "quantization is not supported in this version: leave it out or use none",
                )
            ),
        ),
    ] = "none"
    kv_cache_dtype: Annotated[
        str,
        Field(
            max_length=32,
            json_schema_extra=rules(
                rule(
                    "self == 'auto'",
                    "kvCacheDtype is not supported in this version: leave it out or use auto",
                )
            ),
        ),
    ] = "auto"
    prefix_caching: bool = True
    extra_args: Annotated[
        list[Annotated[str, Field(max_length=512)]],
        Field(
            max_length=32,
            description="More flags for `sheaf serve`, one argument per item.",
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                **rules(
                    rule(
                        f"self.all(a, !a.matches('^--({_OWNED})(=.*)?$'))",
                        "must not repeat a flag that the operator sets: use the field of the spec instead ("
                        + ", ".join("--" + flag for flag in OWNED_FLAGS)
                        + ")",
                    ),
                    rule(
                        "self.all(a, !a.contains('{{'))",
                        "must not contain '{{': KServe would expand it as a template",
                    ),
                ),
            },
        ),
    ] = []


class Accelerator(ApiModel):
    """Devices per replica; count 0 serves on the CPU."""

    count: Annotated[int, Field(ge=0, le=16)] = 1
    resource_name: Annotated[
        str,
        Field(
            max_length=128,
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        ),
    ] = "nvidia.com/gpu"
    memory: Annotated[
        Quantity | None, Field(description="Memory of one device; the Fits condition compares against it.")
    ] = None


class Resources(ApiModel):
    """Requests of each replica. The memory limit equals the request; CPU is limited to whole cores above it."""

    cpu: Quantity = "1"
    memory: Quantity = "4Gi"


class Parallelism(ApiModel):
    tensor: Annotated[
        int,
        Field(
            ge=1,
            le=16,
            json_schema_extra=rules(
                rule(
                    "self == 1", "tensor parallelism is not supported in this version: leave it out or use 1"
                )
            ),
        ),
    ] = 1


class MetricTarget(ApiModel):
    """QueueDepth: waiting requests per replica. KVCacheUtilizationPercent: percent of a replica's KV blocks."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.type != 'KVCacheUtilizationPercent' || self.target <= 95",
                "target of KVCacheUtilizationPercent must be at most 95: at 100 the scaler would act too late",
                fieldPath=".target",
            )
        )
    )
    type: Literal["QueueDepth", "KVCacheUtilizationPercent"]
    target: Annotated[int, Field(ge=1, le=100_000)]


class ScalingPolicy(ApiModel):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(ge=1, le=1000)]
    period_seconds: Annotated[int, Field(ge=1, le=1800)]


_POLICIES = Field(max_length=4, json_schema_extra={"x-kubernetes-list-type": "atomic"})


class ScaleUp(ApiModel):
    stabilization_window_seconds: Seconds = 0
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: Annotated[list[ScalingPolicy], _POLICIES] = []


class ScaleDown(ApiModel):
    stabilization_window_seconds: Seconds = 300
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: Annotated[list[ScalingPolicy], _POLICIES] = []


class Behavior(ApiModel):
    """HorizontalPodAutoscaler's names and meaning."""

    scale_up: ScaleUp = ScaleUp()
    scale_down: ScaleDown = ScaleDown()


DEFAULT_METRICS = (
    MetricTarget(type="QueueDepth", target=4),
    MetricTarget(type="KVCacheUtilizationPercent", target=80),
)


class Autoscaling(ApiModel):
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.minReplicas <= self.maxReplicas",
                "minReplicas must not exceed maxReplicas: lower minReplicas or raise maxReplicas (default 1)",
                fieldPath=".minReplicas",
            ),
            rule(
                "self.mode == 'Disabled' || size(self.metrics) > 0",
                "metrics must name at least one signal unless mode is Disabled",
                fieldPath=".metrics",
            ),
        )
    )
    mode: Annotated[
        Literal["Builtin", "Advisory", "Disabled"],
        Field(
            description="Builtin scales; Advisory decides and reports but does not write; Disabled does neither."
        ),
    ] = "Builtin"
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    metrics: Annotated[
        list[MetricTarget], Field(max_length=2, json_schema_extra={"x-kubernetes-list-map-keys": ["type"]})
    ] = list(DEFAULT_METRICS)
    behavior: Behavior = Behavior()


class Termination(ApiModel):
    drain_timeout_seconds: Annotated[
        int, Field(ge=1, le=3600, description="How long a stopping pod may finish its running requests.")
    ] = 120


class Rollout(ApiModel):
    strategy: Annotated[
        Literal["Auto", "Surge", "Recreate"],
        Field(
            description="Surge starts a new pod before an old one stops; Recreate stops all first; Auto surges,"
            " and gives up an old pod first where no device is free for the new one."
        ),
    ] = "Auto"
    paused: Annotated[bool, Field(description="Keep the present revision while the spec changes.")] = False


class EnvVar(ApiModel):
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!(has(self.value) && has(self.valueFrom))", "set either value or valueFrom, not both"),
        )
    )
    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    value: Annotated[str | None, Field(max_length=4096)] = None
    value_from: OpaqueObject | None = None


class Toleration(ApiModel):
    key: Annotated[str | None, Field(max_length=317)] = None
    operator: Literal["Exists", "Equal"] | None = None
    value: Annotated[str | None, Field(max_length=63)] = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class TopologySpread(ApiModel):
    """A topology spread constraint; without labelSelector it counts the pods of this deployment."""

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    topology_key: Annotated[str, Field(min_length=1, max_length=317)]
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: OpaqueObject | None = None
    min_domains: Annotated[int | None, Field(ge=1, le=1000)] = None


_RESERVED = (
    "self.all(k, k != 'app' && k != 'component' && !k.matches('^([^/]*[.])?(sheaf[.]dev|kserve[.]io)/')"
    " && k != 'app.kubernetes.io/managed-by')"
)
_RESERVED_MESSAGE = (
    "must not use app, component, app.kubernetes.io/managed-by or keys under sheaf.dev and kserve.io: "
    "these belong to Sheaf and KServe"
)
StringMap = Annotated[
    dict[str, Annotated[str, Field(max_length=1024)]],
    Field(max_length=32, json_schema_extra=rules(rule(_RESERVED, _RESERVED_MESSAGE))),
]


class Pod(ApiModel):
    """What the pods need beyond the engine: image, placement, identity."""

    image: Annotated[
        str | None,
        Field(min_length=1, max_length=512, pattern=r"^[^\s{}]+$", description="The runtime's image."),
    ] = None
    env: Annotated[
        list[EnvVar],
        Field(
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-map-keys": ["name"],
                **rules(
                    rule(
                        f"self.all(e, !(e.name in {list(OWNED_ENV)!r}))",
                        f"must not set {', '.join(OWNED_ENV)}: Sheaf and KServe set them",
                    ),
                    rule(
                        "self.all(e, !has(e.value) || !e.value.contains('{{'))",
                        "must not contain '{{': KServe would expand it as a template",
                    ),
                ),
            },
        ),
    ] = []
    labels: StringMap = {}
    annotations: StringMap = {}
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = {}
    tolerations: Annotated[
        list[Toleration], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = []
    affinity: OpaqueObject | None = None
    topology_spread_constraints: Annotated[
        list[TopologySpread], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = []
    service_account_name: ObjectName | None = None
    image_pull_secrets: Annotated[
        list[LocalRef], Field(max_length=8, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]})
    ] = []
    priority_class_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None


class LLMDeploymentSpec(ApiModel):
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.replicas) || self.autoscaling.mode != 'Builtin'",
                "replicas cannot be set while autoscaling.mode is Builtin: remove replicas, or set"
                " autoscaling.mode to Disabled (or Advisory)",
                fieldPath=".replicas",
            ),
            rule(
                "self.accelerator.count <= 1 || self.parallelism.tensor == self.accelerator.count",
                "accelerator.count must equal parallelism.tensor: a replica uses one device per tensor-parallel"
                " rank, so more would stay idle; set count to 1 (or 0 for CPU)",
                fieldPath=".accelerator.count",
            ),
        )
    )
    model: Model
    engine: Engine = Engine()
    accelerator: Accelerator = Accelerator()
    resources: Resources = Resources()
    parallelism: Parallelism = Parallelism()
    replicas: Annotated[
        int | None,
        Field(ge=0, le=1000, description="Fixed number of replicas; left out, the count is never written."),
    ] = None
    autoscaling: Autoscaling = Autoscaling()
    termination: Termination = Termination()
    rollout: Rollout = Rollout()
    suspend: Annotated[bool, Field(description="Stop all pods; the configuration stays.")] = False
    pod: Pod = Pod()
