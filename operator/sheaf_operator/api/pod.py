"""spec.pod."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sheaf_operator.api.fields import ApiModel, LocalRef, ObjectName, OpaqueObject, rule, rules

# Environment that KServe refuses or that the operator sets itself.
OWNED_ENV = ("PYTHONPATH", "HOME", "OMP_NUM_THREADS")


class EnvVar(ApiModel):
    """An environment variable, as in a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!(has(self.value) && has(self.valueFrom))", "set either value or valueFrom, not both"),
        )
    )
    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$",
            description="The variable's name.",
        ),
    ]
    value: Annotated[str | None, Field(max_length=4096, description="Its value.")] = None
    value_from: Annotated[
        OpaqueObject | None, Field(description="Its source (secretKeyRef, configMapKeyRef, fieldRef, ...).")
    ] = None


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    key: Annotated[str | None, Field(max_length=317, description="The taint's key; empty for all.")] = None
    operator: Annotated[
        Literal["Exists", "Equal"] | None, Field(description="How value is compared; default Equal.")
    ] = None
    value: Annotated[str | None, Field(max_length=63, description="The taint's value.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(description="The taint's effect; left out for all."),
    ] = None
    toleration_seconds: Annotated[
        int | None, Field(description="How long a NoExecute taint is tolerated; left out for ever.")
    ] = None


class TopologySpread(ApiModel):
    """A topology spread constraint; without labelSelector it counts the pods of this deployment."""

    max_skew: Annotated[int, Field(ge=1, le=1000, description="Largest difference between two domains.")]
    topology_key: Annotated[
        str, Field(min_length=1, max_length=317, description="Node label whose values are the domains.")
    ]
    when_unsatisfiable: Annotated[
        Literal["DoNotSchedule", "ScheduleAnyway"], Field(description="What to do where it cannot be met.")
    ]
    label_selector: Annotated[
        OpaqueObject | None, Field(description="Pods to count; default: those of this deployment.")
    ] = None
    min_domains: Annotated[
        int | None, Field(ge=1, le=1000, description="Fewest domains; with DoNotSchedule only.")
    ] = None


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
            description="Environment of the runtime's container.",
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
    labels: Annotated[StringMap, Field(description="Labels of the pods.")] = Field(default_factory=dict)
    annotations: Annotated[StringMap, Field(description="Annotations of the pods.")] = Field(
        default_factory=dict
    )
    node_selector: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(max_length=32, description="Labels of the nodes to run on."),
    ] = Field(default_factory=dict)
    tolerations: Annotated[
        list[Toleration],
        Field(
            max_length=32,
            description="Taints of nodes to put up with.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = Field(default_factory=list)
    affinity: Annotated[OpaqueObject | None, Field(description="Affinity, as in a pod.")] = None
    topology_spread_constraints: Annotated[
        list[TopologySpread],
        Field(
            max_length=8,
            description="How replicas spread over zones or nodes.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = Field(default_factory=list)
    service_account_name: Annotated[
        ObjectName | None, Field(description="ServiceAccount of the pods; its token is not mounted.")
    ] = None
    image_pull_secrets: Annotated[
        list[LocalRef],
        Field(
            max_length=8,
            description="Secrets to pull the image with.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    priority_class_name: Annotated[ObjectName | None, Field(description="PriorityClass of the pods.")] = None
    runtime_class_name: Annotated[ObjectName | None, Field(description="RuntimeClass of the pods.")] = None
