"""The LLMDeployment resource (sheaf.dev/v1alpha1) as typed models.

This is the one description of the API: `crd` turns it into `crds/llmdeployments.yaml`, the operator parses
the user's objects with it. Defaults live here and nowhere else. Rules that a schema cannot express are CEL
expressions in `rule(...)`; each message says what to change.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from sheaf_operator.api.adapters import MAX_ADAPTERS, MODEL_RULE, SPEC_RULES, Adapter
from sheaf_operator.api.autoscaling import Autoscaling
from sheaf_operator.api.fields import (
    SUBDOMAIN,
    ApiModel,
    Bytes,
    Cpu,
    LocalRef,
    ModelName,
    ObjectName,
    rule,
    rules,
)
from sheaf_operator.api.flags import ExtraArgs
from sheaf_operator.api.pod import Pod

GROUP = "sheaf.dev"
VERSION = "v1alpha1"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
API_VERSION = f"{GROUP}/{VERSION}"


URI_MESSAGE = (
    "must start with hf://, pvc://, s3://, gs:// or oci:// and name a model, for example "
    "hf://org/model or pvc://claim/path"
)


class Model(ApiModel):
    """What to serve and under which name."""

    model_config = ConfigDict(json_schema_extra=rules(MODEL_RULE))
    uri: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Where the model's folder comes from: hf://, pvc://claim/path, s3://, gs:// or oci://.",
            json_schema_extra=rules(
                rule(
                    "self.matches('^(?s:(hf|s3|gs)://[^/]+/[^/].*|oci://[^/]+/.*[^/])$')"
                    f" || self.matches('^(?s:pvc://{SUBDOMAIN}(/.*)?)$')",
                    URI_MESSAGE,
                ),
                rule(
                    r"!self.matches('[\\s\\pZ\\pC]')",
                    "must not contain a blank, line break or invisible character, not at its end either:"
                    " write it on one line, in YAML without '|' or '>'",
                ),
                rule(
                    "!self.matches('/[.][.](/|$)')", "must not contain '..': name the model's folder directly"
                ),
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
        list[Adapter],
        Field(
            max_length=MAX_ADAPTERS,
            description="LoRA adapters that each ready pod has; no change of them restarts a pod. They need"
            " engine.maxLoras.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)


class Engine(ApiModel):
    """Each field maps to one flag of the runtime."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.maxLoraRank) || has(self.maxLoras)",
                "maxLoraRank means nothing without maxLoras: set maxLoras too",
                fieldPath=".maxLoraRank",
            )
        )
    )

    max_model_len: Annotated[
        int | None,
        Field(ge=1, le=16_777_216, description="Longest sequence, in tokens; default: the model's."),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="Type of weights and activations; auto: the model's own."),
    ] = "auto"
    quantization: Annotated[
        str,
        Field(
            max_length=32,
            description="What weights become when they are loaded: none, or on CPUs int8 (about half the"
            " memory of bfloat16, and faster).",
            json_schema_extra=rules(
                rule(
                    "self in ['none', 'int8']",
                    "quantization must be none or int8 in this version",
                )
            ),
        ),
    ] = "none"
    kv_cache_dtype: Annotated[
        str,
        Field(
            max_length=32,
            description="Type of the KV cache; only auto, which is dtype, in this version.",
            json_schema_extra=rules(
                rule(
                    "self == 'auto'",
                    "kvCacheDtype is not supported in this version: leave it out",
                )
            ),
        ),
    ] = "auto"
    prefix_caching: Annotated[
        bool, Field(description="Requests that begin alike share the KV cache of what they have in common.")
    ] = True
    target_inter_token_ms: Annotated[
        int | None,
        Field(
            ge=1,
            le=600_000,
            description="Milliseconds between two tokens of a request that prompts beside it are sized for; "
            "default: under three times what it is without them.",
        ),
    ] = None
    target_ttft_ms: Annotated[
        int | None,
        Field(
            ge=1,
            le=3_600_000,
            description="Milliseconds until the first token: prompts go by the time that is left to them; "
            "default: by arrival.",
        ),
    ] = None
    max_waiting_requests: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="Most requests that wait in a replica, more are answered 429; default: 1024.",
        ),
    ] = None
    max_waiting_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=2_147_483_647,
            description="Most prompt tokens that wait in a replica, more are answered 429; "
            "default: any number.",
        ),
    ] = None
    max_loras: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="Most LoRA adapters in one batch; left out, pods have none. Memory for so many is set"
            " aside.",
        ),
    ] = None
    max_lora_rank: Annotated[
        int | None, Field(ge=1, le=1024, description="Highest rank of an adapter; default: 16.")
    ] = None
    extra_args: ExtraArgs = Field(default_factory=list)


class Accelerator(ApiModel):
    """Devices per replica; count 0 serves on the CPU."""

    count: Annotated[int, Field(ge=0, le=16, description="Devices per replica; 0 serves on the CPU.")] = 1
    resource_name: Annotated[
        str,
        Field(
            max_length=128,
            description="Name of the extended resource that the nodes offer.",
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        ),
    ] = "nvidia.com/gpu"
    memory: Annotated[
        Bytes | None, Field(description="Memory of one device; the Fits condition compares against it.")
    ] = None


class Resources(ApiModel):
    """Requests of each replica. Memory is limited to the request, CPU to the whole cores above it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.cpuLimit)"
                " || quantity(string(self.cpuLimit)).compareTo(quantity(string(self.cpu))) >= 0",
                "cpuLimit must not be less than cpu",
                fieldPath=".cpuLimit",
            ),
            rule(
                "!has(self.sharedMemory)"
                " || quantity(string(self.sharedMemory)).compareTo(quantity(string(self.memory))) <= 0",
                "sharedMemory must not exceed memory, which it is a part of",
                fieldPath=".sharedMemory",
            ),
        )
    )
    cpu: Annotated[
        Cpu,
        Field(description="CPU of each replica; a fraction in quotes. On the CPU, whole cores are threads."),
    ] = "1"
    cpu_limit: Annotated[
        Cpu | None,
        Field(
            description="Limit of the CPU; default: cpu rounded up. A number above every node's cores is"
            " no limit (where there is none, KServe fills in its own)."
        ),
    ] = None
    memory: Annotated[
        Bytes,
        Field(description="Memory of each replica, request and limit; on the CPU the model is in it."),
    ] = "4Gi"
    shared_memory: Annotated[
        Bytes | None,
        Field(description="Size of /dev/shm, a part of memory; default: half of the node's memory at most."),
    ] = None
    ephemeral_storage: Annotated[
        Bytes | None,
        Field(description="Disk of each replica, request and limit: logs, /tmp and a downloaded model."),
    ] = None


class Parallelism(ApiModel):
    """How a replica is spread over its devices."""

    tensor: Annotated[
        int,
        Field(
            ge=1,
            le=16,
            description="Devices that share each layer; only 1 in this version.",
            json_schema_extra=rules(
                rule("self == 1", "tensor parallelism is not supported in this version: leave it out")
            ),
        ),
    ] = 1


class DisruptionBudget(ApiModel):
    """How many replicas a drain of nodes may take at the same time: a PodDisruptionBudget."""

    mode: Annotated[
        Literal["Auto", "Disabled"],
        Field(
            description="Auto: there is one while more than one replica may run. Disabled: none, for"
            " those who have their own (Kubernetes refuses to evict pods that have two)."
        ),
    ] = "Auto"
    max_unavailable: Annotated[
        str,
        BeforeValidator(str),
        WithJsonSchema(
            {
                "x-kubernetes-int-or-string": True,
                "maxLength": 4,
                **rules(
                    rule(
                        "string(self).matches('^([0-9]{1,3}|[0-9]{1,2}%|100%)$')",
                        'must be a number of replicas from 0 to 999, or a share such as "25%"',
                    )
                ),
            }
        ),
        Field(description="Replicas that may be missing at the same time, as a number or a share."),
    ] = "1"


class Tls(ApiModel):
    """HTTPS in place of HTTP on the pods' port."""

    secret_name: Annotated[
        ObjectName,
        Field(description="Secret with tls.crt and tls.key (type kubernetes.io/tls); a renewal is taken up."),
    ]


class Termination(ApiModel):
    """How a pod ends, in scale-down, rollout and eviction alike."""

    drain_timeout_seconds: Annotated[
        int, Field(ge=1, le=3600, description="How long a stopping pod may finish its running requests.")
    ] = 120


class Rollout(ApiModel):
    """How a change of the spec reaches the pods."""

    strategy: Annotated[
        Literal["Auto", "Surge", "Recreate"],
        Field(
            description="Surge: new pods start before old ones stop. Recreate: all stop first."
            " Auto: surge, but give up an old pod first where the new one lacks just what that pod holds"
            " and others serve on."
        ),
    ] = "Auto"
    paused: Annotated[bool, Field(description="Keep the present revision while the spec changes.")] = False
    patience_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=86_400,
            description="How long a new pod may lack a place before Auto gives up an old one for it.",
        ),
    ] = 300
    deadline_seconds: Annotated[
        int,
        Field(
            ge=30,
            le=86_400,
            description="How long a new revision's pods may fail before the last good one is restored.",
        ),
    ] = 600
    restarted_at: Annotated[
        str | None,
        Field(
            max_length=40,
            description="A time (RFC 3339). Changing it replaces every pod, by the rollout's rules, with the"
            " operator's present default image and defaults.",
            json_schema_extra={"format": "date-time"},
        ),
    ] = None


class LLMDeploymentSpec(ApiModel):
    """What to serve, on what, and how many times."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.replicas) || self.autoscaling.mode != 'Builtin'",
                "replicas cannot be set while autoscaling.mode is Builtin: remove replicas, or set"
                " autoscaling.mode to Disabled, Advisory or External",
                fieldPath=".replicas",
            ),
            rule(
                "self.accelerator.count <= 1 || self.parallelism.tensor == self.accelerator.count",
                "accelerator.count must equal parallelism.tensor: a replica uses one device per rank, so more"
                " would stay idle; set count to 1 (or 0 for CPU)",
                fieldPath=".accelerator.count",
            ),
            rule(
                "self.engine.quantization != 'int8' || self.accelerator.count == 0",
                "int8 runs on CPUs only in this version: set accelerator.count to 0, or leave"
                " quantization out",
                fieldPath=".engine.quantization",
            ),
            *SPEC_RULES,
        )
    )
    model: Model
    engine: Engine = Engine()
    accelerator: Accelerator = Accelerator()
    resources: Resources = Resources()
    parallelism: Parallelism = Parallelism()
    replicas: Annotated[
        int | None,
        Field(
            ge=0,
            le=1000,
            description="Number of replicas, also written through /scale; refused with mode Builtin."
            " Left out, the count is never written.",
            json_schema_extra={"nullable": False},  # the API server reads it for /scale, and fails at null
        ),
    ] = None
    autoscaling: Autoscaling = Autoscaling()
    termination: Termination = Termination()
    rollout: Rollout = Rollout()
    tls: Annotated[Tls | None, Field(description="Serve HTTPS; left out, HTTP.")] = None
    disruption_budget: Annotated[
        DisruptionBudget, Field(description="How many replicas a drain of nodes may take at the same time.")
    ] = DisruptionBudget()
    suspend: Annotated[bool, Field(description="Stop all pods; the configuration stays.")] = False
    pod: Pod = Pod()
