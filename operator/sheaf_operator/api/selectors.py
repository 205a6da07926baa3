"""Label selectors and node selectors, with Kubernetes' names: a misspelt field is refused, not passed on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from sheaf_operator.api.fields import ApiModel, ObjectName, rule, rules
from sheaf_operator.api.labels import LabelKey, LabelMap, LabelValue

_ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
_SET = "In and NotIn need values, Exists and DoesNotExist take none"
_COUNTED = "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)"
Values = Annotated[list[LabelValue], Field(max_length=64, json_schema_extra=_ATOMIC)]


def atomic(most: int, description: str, **more: Any) -> Any:
    """The schema of a list that is replaced as a whole."""
    return Field(max_length=most, description=description, json_schema_extra=_ATOMIC, **more)


class LabelRequirement(ApiModel):
    """A condition on one label."""

    model_config = ConfigDict(json_schema_extra=rules(rule(_COUNTED, _SET, fieldPath=".values")))
    key: Annotated[LabelKey, Field(description="The label's key.")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist"],
        Field(description="How the label relates to values."),
    ]
    values: Annotated[Values | None, Field(description="The values, for In and NotIn.")] = None


class LabelSelector(ApiModel):
    """Which objects are meant, by their labels; all that is given must hold."""

    match_labels: Annotated[LabelMap | None, Field(description="Labels with these very values.")] = None
    match_expressions: Annotated[list[LabelRequirement] | None, atomic(16, "Conditions on labels.")] = None


class NodeRequirement(ApiModel):
    """A condition on one label of a node."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.operator in ['Gt', 'Lt'] ? has(self.values) && size(self.values) == 1"
                " && self.values[0].matches('^-?[0-9]+$') : " + _COUNTED,
                _SET + ", Gt and Lt one whole number in quotes",
                fieldPath=".values",
            )
        )
    )
    key: Annotated[LabelKey, Field(description="The node label's key.")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"],
        Field(description="How the label relates to values."),
    ]
    values: Annotated[Values | None, Field(description="The values; one number for Gt and Lt.")] = None


class NodeField(ApiModel):
    """A condition on a node's name."""

    key: Annotated[Literal["metadata.name"], Field(description="metadata.name.")]
    operator: Annotated[Literal["In", "NotIn"], Field(description="Whether it is that node or another.")]
    values: Annotated[list[ObjectName], atomic(1, "The node's name.", min_length=1)]


class NodeSelectorTerm(ApiModel):
    """Which nodes are meant; all that is given must hold, and an empty term means none."""

    match_expressions: Annotated[list[NodeRequirement] | None, atomic(16, "Conditions on labels.")] = None
    match_fields: Annotated[list[NodeField] | None, atomic(4, "Conditions on the name.")] = None
