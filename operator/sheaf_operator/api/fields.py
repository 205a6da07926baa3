"""What the models of the API share: CEL rules, quantities, names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


def rule(cel: str, message: str = "", **more: str) -> dict[str, str]:
    """One entry of x-kubernetes-validations; `more` may hold fieldPath."""
    return {"rule": cel, **({"message": message} if message else {}), **more}


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(entries)}


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 24,
            **rules(
                rule(
                    "type(self) == int ? self > 0"
                    " : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
                    'must be a positive quantity such as 500m, "8" or 16Gi',
                )
            ),
        }
    ),
]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")]
ModelName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?$")
]
# A Kubernetes object that is passed through: the API server checks it when the pods are made.
OpaqueObject = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
Seconds = Annotated[int, Field(ge=0, le=3600)]


class ApiModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class LocalRef(ApiModel):
    """A Secret of the same namespace."""

    name: Annotated[ObjectName, Field(description="The Secret's name.")]
