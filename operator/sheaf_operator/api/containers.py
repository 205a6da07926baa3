"""Containers before the runtime (initContainers) and beside it (sidecars), and how all containers run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sheaf_operator.api.env import EnvVar
from sheaf_operator.api.fields import ApiModel, Bytes, Cpu, LabelName, rule, rules
from sheaf_operator.api.selectors import atomic
from sheaf_operator.api.volumes import Mounts

_HOST = r"([A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:]+\\])(:[0-9]+)?/"
_PART = "[a-z0-9]+([.]|_|__|-+|[a-z0-9])*"
_TAG, _DIGEST = "(:[A-Za-z0-9_][-.A-Za-z0-9_]{0,127})?", "(@[a-z0-9]+:[0-9a-f]{32,128})?"
Image = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        json_schema_extra=rules(
            rule(
                f"self.matches('^({_HOST})?{_PART}(/{_PART})*{_TAG}{_DIGEST}$')",
                "must be an image such as registry.example:5000/team/name:tag or name@sha256:DIGEST: no https://,"
                " no blank, the name in lower case",
            )
        ),
    ),
]
Argument = Annotated[str, Field(max_length=4096)]


class ContainerResources(ApiModel):
    """What a container requests; memory is limited to that, CPU is not."""

    cpu: Annotated[Cpu, Field(description="CPU of the container.")] = "100m"
    memory: Annotated[Bytes, Field(description="Memory of the container, request and limit.")] = "128Mi"


class Container(ApiModel):
    """A container, which runs with as few rights as the runtime's own."""

    name: Annotated[
        LabelName,
        Field(
            description="The container's name.",
            json_schema_extra=rules(
                rule(
                    "!self.matches('^(kserve-|storage-initializer|modelcar|queue-proxy|agent$)')",
                    "must not be one of KServe's own names",
                )
            ),
        ),
    ]
    image: Annotated[Image, Field(description="The image.")]
    command: Annotated[list[Argument] | None, atomic(16, "What to run in place of the image's own.")] = None
    args: Annotated[list[Argument] | None, atomic(32, "Its arguments.")] = None
    env: Annotated[
        list[EnvVar],
        Field(
            max_length=32,
            description="Environment of the container.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    resources: Annotated[ContainerResources, Field(description="What the container requests.")] = (
        ContainerResources()
    )
    volume_mounts: Mounts = Field(default_factory=list)


def containers(description: str) -> Any:
    return Field(
        max_length=4,
        description=description,
        json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
    )


class SecurityContext(ApiModel):
    """Who the pods' containers are. They never run as root."""

    run_as_user: Annotated[
        int | None, Field(ge=1, le=2**31 - 1, description="User id; default: the image's.")
    ] = None
    run_as_group: Annotated[
        int | None, Field(ge=1, le=2**31 - 1, description="Group id; default: the image's.")
    ] = None
    fs_group: Annotated[
        int | None,
        Field(ge=1, le=2**31 - 1, description="Group that owns the volumes, where they can be owned."),
    ] = None
    fs_group_change_policy: Annotated[
        Literal["OnRootMismatch", "Always"] | None,
        Field(
            description="OnRootMismatch: give the files to fsGroup only if the volume's root is not its own."
        ),
    ] = None
    supplemental_groups: Annotated[
        list[Annotated[int, Field(ge=1, le=2**31 - 1)]] | None, atomic(16, "Further group ids.")
    ] = None


class Probes(ApiModel):
    """How patient the kubelet is with the runtime."""

    startup_seconds: Annotated[
        int,
        Field(
            ge=30,
            le=86_400,
            description="How long loading the model may take before the container is started anew.",
        ),
    ] = 3600
    liveness_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=3600,
            description="How long the runtime may be dead or stalled before it is started anew.",
        ),
    ] = 60
