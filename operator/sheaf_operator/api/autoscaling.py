"""spec.autoscaling."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sheaf_operator.api.fields import ApiModel, Seconds, rule, rules


class MetricTarget(ApiModel):
    """QueueDepth: waiting requests per replica; KVCacheUtilizationPercent: of a replica's KV blocks."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.type != 'KVCacheUtilizationPercent' || self.target <= 95",
                "target of KVCacheUtilizationPercent must be at most 95: at 100 it is too late to act",
                fieldPath=".target",
            )
        )
    )
    type: Annotated[
        Literal["QueueDepth", "KVCacheUtilizationPercent"],
        Field(description="QueueDepth or KVCacheUtilizationPercent."),
    ]
    target: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="QueueDepth: requests that may wait per replica. KVCacheUtilizationPercent: 1 to 95.",
        ),
    ]


class ScalingPolicy(ApiModel):
    """How much the count may change within a period."""

    type: Annotated[
        Literal["Pods", "Percent"], Field(description="Whether value counts pods or percent of the replicas.")
    ]
    value: Annotated[int, Field(ge=1, le=1000, description="The largest change within the period.")]
    period_seconds: Annotated[int, Field(ge=1, le=1800, description="Length of the period.")]


_POLICIES = Field(
    max_length=4,
    description="Limits of the change; without any there is no limit.",
    json_schema_extra={"x-kubernetes-list-type": "atomic"},
)
Select = Annotated[
    Literal["Max", "Min", "Disabled"],
    Field(
        description="The policy that counts: the one that allows most (Max) or least (Min). Disabled: never."
    ),
]


class ScaleUp(ApiModel):
    """How the count may rise."""

    stabilization_window_seconds: Annotated[
        Seconds, Field(description="Go no higher than the lowest count asked for within so many seconds.")
    ] = 0
    select_policy: Select = "Max"
    policies: Annotated[list[ScalingPolicy], _POLICIES] = Field(default_factory=list)


class ScaleDown(ApiModel):
    """How the count may fall; one replica goes at a time, after it has finished its requests."""

    stabilization_window_seconds: Annotated[
        Seconds, Field(description="Go no lower than the highest count asked for within so many seconds.")
    ] = 300
    select_policy: Select = "Max"
    policies: Annotated[list[ScalingPolicy], _POLICIES] = Field(default_factory=list)


class Behavior(ApiModel):
    """HorizontalPodAutoscaler's names and meaning."""

    scale_up: Annotated[ScaleUp, Field(description="How the count may rise.")] = ScaleUp()
    scale_down: Annotated[
        ScaleDown,
        Field(description="How the count may fall: one replica at a time, each finishing its requests."),
    ] = ScaleDown()


DEFAULT_METRICS = [
    MetricTarget(type="QueueDepth", target=4),
    MetricTarget(type="KVCacheUtilizationPercent", target=80),
]


class Autoscaling(ApiModel):
    """How the number of replicas follows the load."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.minReplicas > 0",
                "minReplicas must be at least 1: to stop all pods set spec.suspend to true, or mode to"
                " Disabled with spec.replicas 0",
                fieldPath=".minReplicas",
            ),
            rule(
                "self.minReplicas <= self.maxReplicas",
                "minReplicas must not exceed maxReplicas: lower minReplicas or raise maxReplicas (default 1)",
                fieldPath=".minReplicas",
            ),
            rule(
                "self.mode in ['Disabled', 'External'] || size(self.metrics) > 0",
                "metrics must name at least one signal unless mode is Disabled or External",
                fieldPath=".metrics",
            ),
        )
    )
    mode: Annotated[
        Literal["Builtin", "Advisory", "External", "Disabled"],
        Field(
            description="Builtin scales. Advisory decides and reports but writes nothing. External: another"
            " scaler (HPA, KEDA) writes spec.replicas through /scale, and Sheaf follows between minReplicas"
            " and maxReplicas. Disabled: spec.replicas, if set, is what there is."
        ),
    ] = "Builtin"
    min_replicas: Annotated[
        int, Field(ge=0, le=1000, description="The scaler never goes below this count; at least 1.")
    ] = 1
    max_replicas: Annotated[
        int,
        Field(ge=1, le=1000, description="The scaler never goes above this count; raise it to let it scale."),
    ] = 1
    metrics: Annotated[
        list[MetricTarget],
        Field(
            max_length=2,
            description="What to scale on; the metric that asks for more replicas wins.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = DEFAULT_METRICS
    behavior: Annotated[
        Behavior, Field(description="Windows and rates, with HorizontalPodAutoscaler's names and meaning.")
    ] = Behavior()
