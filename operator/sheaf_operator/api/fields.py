"""What the models of the API share: CEL rules, quantities, names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel


def rule(cel: str, message: str = "", **more: str) -> dict[str, str]:
    """One entry of x-kubernetes-validations; `more` may hold fieldPath."""
    return {"rule": cel, **({"message": message} if message else {}), **more}


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(entries)}


class ApiModel(BaseModel):
    """A field that is null counts as left out, as it does in a Pod: charts write it for an empty value."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


# What a Pod takes for left out: charts write it for a value that nobody has set.
EMPTY_IS_NONE = BeforeValidator(_none_if_empty)


def int_or_string(longest: int, **more: Any) -> Any:
    """The schema of what may be written as a whole number or as text."""
    return WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": longest, **more})


def _between(least: str, most: str, message: str) -> Any:
    """The schema of a quantity within bounds. An integer is a quantity without a unit."""
    text = "string(self)"
    within = (
        f"quantity({text}).compareTo(quantity('{least}')) >= 0"
        f" && quantity({text}).compareTo(quantity('{most}')) <= 0"
    )
    return int_or_string(24, **rules(rule(f"isQuantity({text}) && {within}", message)))


Cpu = Annotated[
    str,
    BeforeValidator(_text),
    _between("1m", "4096", 'must be cores, such as 2, "0.5" (in quotes) or 500m, from 1m to 4096'),
]
# Half a byte (512m) and 16 bytes are spelling errors; so the least that any use has is asked for.
Bytes = Annotated[
    str,
    BeforeValidator(_text),
    _between(
        "1Mi", "4Pi", "must be bytes with a unit, such as 512Mi or 16Gi, from 1Mi to 4Pi (m is a thousandth)"
    ),
]
DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = f"{DNS_LABEL}([.]{DNS_LABEL})*"
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=f"^{SUBDOMAIN}$")]
ModelName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?$")
]
OptionalName = Annotated[
    Annotated[str, Field(max_length=253, pattern=f"^({SUBDOMAIN})?$")] | None, EMPTY_IS_NONE
]
LabelName = Annotated[str, Field(min_length=1, max_length=63, pattern=f"^{DNS_LABEL}$")]
# A key of a Secret or ConfigMap, which may become a file's name.
KeyName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        json_schema_extra=rules(
            rule("self != '.' && !self.startsWith('..')", "must not be '.' or begin with '..'")
        ),
    ),
]
Seconds = Annotated[int, Field(ge=0, le=3600)]


class LocalRef(ApiModel):
    """A Secret of the same namespace."""

    name: Annotated[ObjectName, Field(description="The Secret's name.")]
