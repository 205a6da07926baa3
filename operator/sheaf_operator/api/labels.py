"""Keys and values of labels and annotations, and the maps of them: what a Pod would be refused for later."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from sheaf_operator.api.fields import SUBDOMAIN, rule, rules

KEY_BODY = rf"({SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
KEY = f"^{KEY_BODY}$"
VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_ALPHABET = "letters, digits and, between them, '-', '_' or '.'"
_KEY_MESSAGE = f"must be at most 63 {_ALPHABET}, perhaps after a domain and '/'"
_VALUE_MESSAGE = f"must be at most 63 {_ALPHABET} (no '/', '+' or blank: it is a label's value)"
LabelKey = Annotated[
    str,
    Field(
        min_length=1, max_length=317, json_schema_extra=rules(rule(f"self.matches('{KEY}')", _KEY_MESSAGE))
    ),
]
LabelValue = Annotated[
    str, Field(max_length=63, json_schema_extra=rules(rule(f"self.matches('{VALUE}')", _VALUE_MESSAGE)))
]

_KEYS = rule(
    f"self.all(k, size(k) <= 317 && k.indexOf('/') <= 253 && k.matches('{KEY}'))", "keys " + _KEY_MESSAGE
)
_RESERVED = ("app", "component", "app.kubernetes.io/managed-by", "controller.kubernetes.io/pod-deletion-cost")
_NOT_RESERVED = rule(
    f"self.all(k, !(k in {list(_RESERVED)!r}) && !k.matches('^([^/]*[.])?(sheaf[.]dev|kserve[.]io)/'))",
    f"must not use {', '.join(_RESERVED)} or keys under sheaf.dev and kserve.io: "
    "these belong to Sheaf and KServe",
)


def _map(*entries: dict[str, str]) -> Any:
    return Field(max_length=32, json_schema_extra=rules(*entries))


LabelMap = Annotated[dict[str, LabelValue], _map(_KEYS)]
PodLabels = Annotated[dict[str, LabelValue], _map(_KEYS, _NOT_RESERVED)]
PodAnnotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], _map(_KEYS, _NOT_RESERVED)]
