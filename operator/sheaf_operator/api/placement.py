"""Tolerations and topology spread, with Kubernetes' names and its rules on what goes together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sheaf_operator.api.fields import EMPTY_IS_NONE, ApiModel, rule, rules
from sheaf_operator.api.labels import KEY, LabelKey, LabelValue
from sheaf_operator.api.selectors import LabelSelector, atomic


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "operator Exists takes no value: remove value, or write operator Equal",
                fieldPath=".value",
            ),
            rule(
                "has(self.key) && self.key != '' || has(self.operator) && self.operator == 'Exists'",
                "without a key the operator must be Exists, which tolerates every taint",
                fieldPath=".operator",
            ),
            rule(
                "!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
                "tolerationSeconds needs effect NoExecute: remove it or set the effect",
                fieldPath=".tolerationSeconds",
            ),
        )
    )
    key: Annotated[
        str | None,
        Field(
            max_length=317,
            description="The taint's key; left out for all.",
            json_schema_extra=rules(
                rule(f"self == '' || self.matches('{KEY}')", "must be a taint's key, such as nvidia.com/gpu")
            ),
        ),
    ] = None
    operator: Annotated[
        Literal["Exists", "Equal", ""] | None,
        EMPTY_IS_NONE,
        Field(description="How value is compared; default Equal."),
    ] = None
    value: Annotated[LabelValue | None, Field(description="The taint's value.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute", ""] | None,
        EMPTY_IS_NONE,
        Field(description="The taint's effect; left out for all."),
    ] = None
    toleration_seconds: Annotated[
        int | None,
        Field(ge=0, le=2**31, description="How long a NoExecute taint is tolerated; left out for ever."),
    ] = None


class TopologySpread(ApiModel):
    """A topology spread constraint; without labelSelector it counts the pods of this deployment."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
                "minDomains needs whenUnsatisfiable DoNotSchedule: remove it or change that",
                fieldPath=".minDomains",
            ),
        )
    )
    max_skew: Annotated[int, Field(ge=1, le=1000, description="Largest difference between two domains.")]
    topology_key: Annotated[LabelKey, Field(description="Node label whose values are the domains.")]
    when_unsatisfiable: Annotated[
        Literal["DoNotSchedule", "ScheduleAnyway"], Field(description="What to do where it cannot be met.")
    ]
    label_selector: Annotated[
        LabelSelector | None, Field(description="Pods to count; default: those of this deployment.")
    ] = None
    match_label_keys: Annotated[
        list[LabelKey] | None,
        atomic(8, "Labels in which counted pods are like this one, such as pod-template-hash."),
    ] = None
    min_domains: Annotated[
        int | None, Field(ge=1, le=1000, description="Fewest domains; with DoNotSchedule only.")
    ] = None
    node_affinity_policy: Annotated[
        Literal["Honor", "Ignore"] | None,
        Field(
            description="Whether nodes that the affinity rules out count as domains (Ignore); default Honor."
        ),
    ] = None
    node_taints_policy: Annotated[
        Literal["Honor", "Ignore"] | None,
        Field(description="Whether nodes with untolerated taints are left out (Honor); default Ignore."),
    ] = None
