"""spec.autoscaling."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sheaf_operator.api_base import ApiModel, Seconds, rule, rules


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
    policies: Annotated[list[ScalingPolicy], _POLICIES] = Field(default_factory=list)


class ScaleDown(ApiModel):
    stabilization_window_seconds: Seconds = 300
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: Annotated[list[ScalingPolicy], _POLICIES] = Field(default_factory=list)


class Behavior(ApiModel):
    """HorizontalPodAutoscaler's names and meaning."""

    scale_up: ScaleUp = ScaleUp()
    scale_down: ScaleDown = ScaleDown()


DEFAULT_METRICS = [
    MetricTarget(type="QueueDepth", target=4),
    MetricTarget(type="KVCacheUtilizationPercent", target=80),
]


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
            description="Builtin scales; Advisory decides and reports but writes nothing; Disabled: neither."
        ),
    ] = "Builtin"
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    metrics: Annotated[
        list[MetricTarget], Field(max_length=2, json_schema_extra={"x-kubernetes-list-map-keys": ["type"]})
    ] = DEFAULT_METRICS
    behavior: Behavior = Behavior()
