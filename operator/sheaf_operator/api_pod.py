"""spec.pod."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sheaf_operator.api_base import ApiModel, LocalRef, ObjectName, OpaqueObject, rule, rules

# Environment that KServe refuses or that the operator sets itself.
OWNED_ENV = ("PYTHONPATH", "HOME", "OMP_NUM_THREADS")


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
    ] = Field(default_factory=list)
    labels: StringMap = Field(default_factory=dict)
    annotations: StringMap = Field(default_factory=dict)
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    tolerations: Annotated[
        list[Toleration], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = Field(default_factory=list)
    affinity: OpaqueObject | None = None
    topology_spread_constraints: Annotated[
        list[TopologySpread], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = Field(default_factory=list)
    service_account_name: ObjectName | None = None
    image_pull_secrets: Annotated[
        list[LocalRef], Field(max_length=8, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]})
    ] = Field(default_factory=list)
    priority_class_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None
