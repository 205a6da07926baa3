"""The status of an LLMDeployment as typed models. Sizes are bounded: at most about 16 KiB at 100 replicas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sheaf_operator.api.adapters import MAX_ADAPTERS
from sheaf_operator.api.fields import ApiModel

# The order in which conditions are listed.
CONDITION_TYPES = (
    "Ready", "Reconciling", "Stalled", "Fits", "AutoscalingActive", "ImageCurrent", "RolledBack", "Contested",
)  # fmt: skip

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
ShortText = Annotated[str, Field(max_length=256)]
LongText = Annotated[str, Field(max_length=1024)]


def doc(text: str) -> Any:
    """The field's words in `kubectl explain`."""
    return Field(description=text)


class Condition(ApiModel):
    """One aspect of the state, as kstatus has it: Reconciling and Stalled are True when something is up."""

    type: Annotated[str, Field(max_length=64, description="Ready, Reconciling, Stalled, Fits, ...")]
    status: Annotated[Literal["True", "False", "Unknown"], doc("True, False or Unknown.")]
    reason: Annotated[str, Field(max_length=64, description="The cause in one CamelCase word, for programs.")]
    message: Annotated[LongText, doc("The cause in words, and what to do about it.")] = ""
    observed_generation: Annotated[
        int | None, doc("metadata.generation of the spec that this condition is about.")
    ] = None
    last_transition_time: Annotated[Timestamp, doc("When `status` last changed.")]


class Capacity(ApiModel):
    """Of one replica, as its runtime measured it."""

    weights_bytes: Annotated[int | None, doc("Bytes of device memory that the model's weights take.")] = None
    kv_cache_tokens: Annotated[int | None, doc("Tokens that fit into the KV cache.")] = None
    max_concurrent_sequences: Annotated[int | None, doc("Requests that run at the same time at most.")] = None


class MetricStatus(ApiModel):
    """`value` is the mean over the replicas, rounded up; `replicas` what this metric alone asks for."""

    type: Annotated[ShortText, doc("QueueDepth or KVCacheUtilizationPercent.")]
    target: Annotated[int, doc("The target of the spec.")]
    value: Annotated[
        int, doc("Measured when the decision was taken: the mean over the replicas, rounded up.")
    ]
    replicas: Annotated[int, doc("The count that this metric alone asks for.")]


class DecisionStatus(ApiModel):
    """A decision to have another number of replicas."""

    time: Annotated[Timestamp, doc("When it was taken.")]
    from_: Annotated[int, Field(alias="from", description="The count wanted before.")]
    to: Annotated[int, doc("The count wanted since.")]
    limiting: Annotated[ShortText, doc("The metric or the bound that set the count.")]
    reason: Annotated[LongText, doc("Why, in words and numbers.")]


class AutoscalingStatus(ApiModel):
    """What the scaler wants and why. It changes with the wish; live values are metrics of the operator."""

    desired: Annotated[int, doc("The number of replicas that the scaler wants.")]
    limiting: Annotated[
        ShortText,
        doc(
            "What set the count: a metric, WithinTargets, MinReplicas, MaxReplicas, StabilizationWindow,"
            " RatePolicy, MissingSamples, NoReadyReplica, Recreated, External or NoExternalCount."
        ),
    ]
    reason: Annotated[LongText, doc("Why, in words and numbers.")]
    metrics: Annotated[
        list[MetricStatus],
        Field(
            default_factory=list,
            max_length=4,
            description="Each metric at the time of the decision.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["type"]},
        ),
    ]
    next_change_after: Annotated[
        Timestamp | None, doc("A lower count that is held back takes effect no earlier than this.")
    ] = None
    decisions: Annotated[
        list[DecisionStatus],
        Field(
            default_factory=list,
            max_length=10,
            description="The last changes of the wanted count, the newest first.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ]


class Phase(ApiModel):
    """One step on the way to the first answer; `seconds` is how long it took."""

    phase: Annotated[
        ShortText, doc("Accepted, PodCreated, Scheduled, ModelFetched, ContainerStarted or Ready.")
    ]
    time: Annotated[Timestamp, doc("When the phase was reached.")]
    seconds: Annotated[int, Field(ge=0, description="Since the phase before it.")]


class AdapterStatus(ApiModel):
    """What became of one adapter of the spec."""

    name: Annotated[ShortText, doc("The adapter's name.")]
    state: Annotated[
        Literal["Ready", "Loading", "Failed"],
        doc("Ready: every ready replica answers with it. Failed: one cannot have it, and tries again."),
    ]
    reason: Annotated[ShortText, doc("Loaded, Loading, NoReadyReplica or LoadFailed.")]
    message: Annotated[LongText, doc("The cause, in the runtime's words.")] = ""
    ready_replicas: Annotated[int, doc("Ready replicas that answer with it.")] = 0


class LLMDeploymentStatus(ApiModel):
    """What the operator has observed. Written by the operator alone."""

    observed_generation: Annotated[int | None, doc("metadata.generation of the spec that was acted on.")] = (
        None
    )
    replicas: Annotated[int, doc("Pods that exist, ready or not.")] = 0
    ready_replicas: Annotated[int, doc("Pods that serve.")] = 0
    selector: Annotated[LongText | None, doc("Label selector of the pods, for the /scale subresource.")] = (
        None
    )
    url: Annotated[
        LongText | None, doc("Where the OpenAI-compatible API is reached inside the cluster; add /v1.")
    ] = None
    image: Annotated[LongText | None, doc("The runtime's image.")] = None
    revision: Annotated[
        ShortText | None, doc("Hash of the part of the spec that reaches the pods; also a label on them.")
    ] = None
    capacity: Annotated[Capacity | None, doc("What one replica can do, as its runtime measured it.")] = None
    autoscaling: Annotated[
        AutoscalingStatus | None, doc("What the scaler wants and why; absent while it is disabled.")
    ] = None
    adapters: Annotated[
        list[AdapterStatus],
        Field(
            default_factory=list,
            max_length=MAX_ADAPTERS,
            description="What became of each of spec.model.adapters.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    timeline: Annotated[
        list[Phase],
        Field(
            default_factory=list,
            max_length=10,
            description="The way of this revision's first pod to its first answer, phase by phase.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ]
    conditions: Annotated[
        list[Condition],
        Field(
            default_factory=list,
            max_length=8,
            description="Ready, Reconciling, Stalled, Fits, AutoscalingActive and ImageCurrent; RolledBack"
            " and Contested while they are true.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["type"]},
        ),
    ]
