"""Environment variables, as in a container."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from sheaf_operator.api.fields import ApiModel, KeyName, ObjectName, int_or_string, rule, rules
from sheaf_operator.api.labels import KEY_BODY

# Environment that KServe refuses or that the operator sets itself.
OWNED_ENV = ("PYTHONPATH", "HOME", "OMP_NUM_THREADS")
_KEY = Field(description="The key in it.")
_PATH = (
    rf"^metadata[.](name|namespace|uid|labels\\['{KEY_BODY}'\\]|annotations\\['(?i:{KEY_BODY})'\\])$",
    "^(spec[.](nodeName|serviceAccountName)|status[.](host|pod)IPs?)$",
)
Divisor = Annotated[str, BeforeValidator(str), int_or_string(24)]
_GIVEN = "string(self.divisor)"
_CPU_UNITS = ("1m", "1")
_BYTE_UNITS = ("1", *(f"1{unit}{i}" for i in ("", "i") for unit in ("K" if i else "k", *"MGTPE")))


class SecretKey(ApiModel):
    """One key of a Secret of the same namespace."""

    name: Annotated[ObjectName, Field(description="The Secret's name.")]
    key: Annotated[KeyName, _KEY]
    optional: Annotated[bool | None, Field(description="Whether it may be missing.")] = None


class ConfigMapKey(ApiModel):
    """One key of a ConfigMap of the same namespace."""

    name: Annotated[ObjectName, Field(description="The ConfigMap's name.")]
    key: Annotated[KeyName, _KEY]
    optional: Annotated[bool | None, Field(description="Whether it may be missing.")] = None


class FieldRef(ApiModel):
    """A field of the pod."""

    api_version: Annotated[
        str | None, Field(max_length=16, pattern="^v1$", description="Version of the path; v1.")
    ] = None
    field_path: Annotated[
        str,
        Field(
            max_length=400,
            description="Such as metadata.name, metadata.labels['KEY'], spec.nodeName or status.podIP.",
            json_schema_extra=rules(
                rule(
                    " || ".join(f'self.matches("{path}")' for path in _PATH),
                    "must be metadata.name, .namespace, .uid, .labels['KEY'] or .annotations['KEY'],"
                    " spec.nodeName or .serviceAccountName, or status.hostIP, .hostIPs, .podIP or .podIPs",
                )
            ),
        ),
    ]


class ResourceFieldRef(ApiModel):
    """A request or limit of a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"!has(self.divisor) || {_GIVEN} == '0' || isQuantity({_GIVEN})"
                f" && (self.resource.endsWith('.cpu') ? {list(_CPU_UNITS)!r} : {list(_BYTE_UNITS)!r})"
                f".exists(unit, quantity(unit).compareTo(quantity({_GIVEN})) == 0)",
                "divisor must be 1 or 1m for cpu, else 1 or one unit such as 1Mi or 1G",
                fieldPath=".divisor",
            )
        )
    )
    container_name: Annotated[
        str | None, Field(max_length=63, description="The container; default: the one with the variable.")
    ] = None
    resource: Annotated[
        str,
        Field(
            max_length=64,
            pattern=r"^(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-.+)$",
            description="Such as limits.cpu or requests.memory.",
        ),
    ]
    divisor: Annotated[
        Divisor | None,
        Field(description="The unit of the value: 1 or 1m for cpu, 1, 1Mi, 1G and the like for the others."),
    ] = None


class EnvSource(ApiModel):
    """Where a variable's value comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef),"
                " has(self.resourceFieldRef)].filter(given, given).size() == 1",
                "set one of secretKeyRef, configMapKeyRef, fieldRef and resourceFieldRef",
            )
        )
    )
    secret_key_ref: Annotated[SecretKey | None, Field(description="A key of a Secret.")] = None
    config_map_key_ref: Annotated[ConfigMapKey | None, Field(description="A key of a ConfigMap.")] = None
    field_ref: Annotated[FieldRef | None, Field(description="A field of the pod.")] = None
    resource_field_ref: Annotated[ResourceFieldRef | None, Field(description="A request or limit.")] = None


class EnvVar(ApiModel):
    """An environment variable, as in a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.value) && self.value != '' && has(self.valueFrom))",
                "set either value or valueFrom, not both",
            ),
            rule(
                "!has(self.value) || !self.value.contains('{{')",
                "must not contain '{{': KServe would expand it as a template",
                fieldPath=".value",
            ),
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
    value: Annotated[
        str | None,
        Field(max_length=4096, description="Its value; $(NAME) stands for a variable that is listed before."),
    ] = None
    value_from: Annotated[EnvSource | None, Field(description="Its source, in place of value.")] = None


Env = Annotated[
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
            ),
        },
    ),
]
