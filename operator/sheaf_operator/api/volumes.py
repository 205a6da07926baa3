"""Volumes of the pods and where containers see them, with Kubernetes' names.

Nothing of the node itself can be mounted: whoever may create an LLMDeployment reaches no host path by it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sheaf_operator.api import names
from sheaf_operator.api.fields import (
    EMPTY_IS_NONE,
    ApiModel,
    Bytes,
    KeyName,
    LabelName,
    ObjectName,
    rule,
    rules,
)
from sheaf_operator.api.selectors import atomic

# Where the runtime's container has its model, its writable folders and its certificate.
OWNED_PATHS = ("/", names.MODEL_DIR, "/dev/shm", "/tmp", names.TLS_DIR, names.ADAPTERS_DIR)
_MODE = Field(ge=0, le=0o777, description="Permission bits of the files, as a decimal number; default 420.")

RelativePath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        json_schema_extra=rules(
            rule(
                "!self.matches('^(/|[.][.])|/[.][.](/|$)')",
                "must be a path below: it may not begin with '/' or '..', nor have '..' as a part",
            )
        ),
    ),
]


class KeyToPath(ApiModel):
    """One key as a file."""

    key: Annotated[KeyName, Field(description="The key.")]
    path: Annotated[RelativePath, Field(description="The file's path in the volume.")]
    mode: Annotated[int | None, _MODE] = None


class ConfigMapVolume(ApiModel):
    """The keys of a ConfigMap as files."""

    name: Annotated[ObjectName, Field(description="The ConfigMap's name.")]
    items: Annotated[list[KeyToPath] | None, atomic(32, "The keys; default: all.")] = None
    optional: Annotated[bool | None, Field(description="Whether it may be missing.")] = None
    default_mode: Annotated[int | None, _MODE] = None


class SecretVolume(ApiModel):
    """The keys of a Secret as files."""

    secret_name: Annotated[ObjectName, Field(description="The Secret's name.")]
    items: Annotated[list[KeyToPath] | None, atomic(32, "The keys; default: all.")] = None
    optional: Annotated[bool | None, Field(description="Whether it may be missing.")] = None
    default_mode: Annotated[int | None, _MODE] = None


class EmptyDir(ApiModel):
    """A folder that lives as long as the pod."""

    medium: Annotated[
        Literal["Memory", ""] | None,
        EMPTY_IS_NONE,
        Field(description="Memory: in memory, which counts as the container's."),
    ] = None
    size_limit: Annotated[Bytes | None, Field(description="The pod is evicted when it holds more.")] = None


class ClaimVolume(ApiModel):
    """A PersistentVolumeClaim."""

    claim_name: Annotated[ObjectName, Field(description="The claim's name.")]
    read_only: Annotated[bool | None, Field(description="Whether nobody may write.")] = None


_SOURCES = ("configMap", "secret", "emptyDir", "persistentVolumeClaim")


class Volume(ApiModel):
    """A volume of the pods."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"[{', '.join(f'has(self.{s})' for s in _SOURCES)}].filter(given, given).size() == 1",
                f"set one of {', '.join(_SOURCES[:-1])} and {_SOURCES[-1]} (emptyDir: {{}} is empty)",
            )
        )
    )
    name: Annotated[
        LabelName,
        Field(
            description="The volume's name, for volumeMounts.",
            json_schema_extra=rules(
                rule(
                    f"!(self in ['shm', 'tmp', 'tls', '{names.ADAPTERS_VOLUME}'])"
                    " && !self.startsWith('kserve-')",
                    f"must not be shm, tmp, tls, {names.ADAPTERS_VOLUME} or begin with kserve-: these are"
                    " Sheaf's and KServe's",
                )
            ),
        ),
    ]
    config_map: Annotated[ConfigMapVolume | None, Field(description="The keys of a ConfigMap.")] = None
    secret: Annotated[SecretVolume | None, Field(description="The keys of a Secret.")] = None
    empty_dir: Annotated[EmptyDir | None, Field(description="A folder that lives as long as the pod.")] = None
    persistent_volume_claim: Annotated[ClaimVolume | None, Field(description="A claim.")] = None


class VolumeMount(ApiModel):
    """Where a container sees a volume."""

    name: Annotated[LabelName, Field(description="The volume's name.")]
    mount_path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            description="The folder or file in the container.",
            json_schema_extra=rules(
                rule(
                    r"self.matches('^(/[^/:\\n]+)*/?$') && !self.matches('/[.][.]?(/|$)')",
                    "must be an absolute path without ':', '//', '/./', '/../' or a line break",
                )
            ),
        ),
    ]
    sub_path: Annotated[
        RelativePath | None, Field(description="The part of the volume; never updated while the pod runs.")
    ] = None
    read_only: Annotated[bool | None, Field(description="Whether the container may not write.")] = None


Mounts = Annotated[
    list[VolumeMount],
    Field(
        max_length=16,
        description="Where the container sees which volume.",
        json_schema_extra={"x-kubernetes-list-map-keys": ["mountPath"]},
    ),
]
EngineMounts = Annotated[
    Mounts,
    Field(
        json_schema_extra=rules(
            rule(
                f"self.all(m, !{list(OWNED_PATHS)!r}.exists(p, m.mountPath == p || m.mountPath == p + '/'))",
                f"must not mount over {', '.join(OWNED_PATHS)}: the runtime has its own there (/dev/shm is as"
                " large as resources.sharedMemory says)",
            )
        )
    ),
]
