"""The status of an LLMDeployment as typed models. Sizes are bounded: at most about 16 KiB at 100 replicas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sheaf_operator.api_base import ApiModel

# The order in which conditions are listed.
CONDITION_TYPES = ("Ready", "Reconciling", "Stalled", "Fits", "AutoscalingActive")

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
ShortText = Annotated[str, Field(max_length=256)]
LongText = Annotated[str, Field(max_length=1024)]


class Condition(ApiModel):
    type: Annotated[str, Field(max_length=64)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=64)]
    message: LongText = ""
    observed_generation: int | None = None
    last_transition_time: Timestamp


class Capacity(ApiModel):
    """Of one replica, as its runtime measured it."""

    weights_bytes: int | None = None
    kv_cache_tokens: int | None = None
    max_concurrent_sequences: int | None = None


class MetricStatus(ApiModel):
    """`value` is the mean over the replicas, rounded up; `replicas` what this metric alone asks for."""

    type: ShortText
    target: int
    value: int
    replicas: int


class DecisionStatus(ApiModel):
    time: Timestamp
    from_: Annotated[int, Field(alias="from")]
    to: int
    limiting: ShortText
    reason: LongText


class AutoscalingStatus(ApiModel):
    desired: int
    limiting: ShortText
    reason: LongText
    metrics: Annotated[
        list[MetricStatus],
        Field(default_factory=list, max_length=4, json_schema_extra={"x-kubernetes-list-map-keys": ["type"]}),
    ]
    next_change_after: Timestamp | None = None
    decisions: Annotated[
        list[DecisionStatus],
        Field(default_factory=list, max_length=10, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ]


class Phase(ApiModel):
    """One step on the way to the first answer; `seconds` is how long it took."""

    phase: ShortText
    time: Timestamp
    seconds: Annotated[int, Field(ge=0)]


class LLMDeploymentStatus(ApiModel):
    observed_generation: int | None = None
    replicas: int = 0
    ready_replicas: int = 0
    selector: LongText | None = None
    url: LongText | None = None
    image: LongText | None = None
    revision: ShortText | None = None
    capacity: Capacity | None = None
    autoscaling: AutoscalingStatus | None = None
    timeline: Annotated[
        list[Phase],
        Field(default_factory=list, max_length=10, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ]
    conditions: Annotated[
        list[Condition],
        Field(default_factory=list, max_length=8, json_schema_extra={"x-kubernetes-list-map-keys": ["type"]}),
    ]
