"""The generated files are what the models say, and the schema is as tight as it should be."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from sheaf_operator.api import crd, reference
from sheaf_operator.api.flags import OWNED_FLAGS


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, sub in schema.get("properties", {}).items():
        yield from nodes(sub, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from nodes(schema["items"], path + "[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], path + "{}")


SCHEMA = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
ALL = dict(nodes(SCHEMA))


@pytest.mark.parametrize("path", crd.PATHS, ids=lambda p: str(p.relative_to(crd.ROOT)))
def test_generated_files_are_up_to_date(path: Any) -> None:
    assert path.read_text() == crd.text(), "run `python -m sheaf_operator.api.crd`"


def test_the_field_reference_is_up_to_date() -> None:
    assert reference.PATH.read_text() == reference.text(), "run `make crds`"


def test_every_field_of_the_schema_is_in_the_field_reference() -> None:
    """A part that several fields share is described once, so the names are looked for."""
    told = set(re.findall(r"^\| `(\w+)` \|", reference.text(), re.MULTILINE))
    known = {name for path in ALL if path.startswith(".spec.") for name in re.findall(r"\.(\w+)", path)}
    assert known - told == {"spec"}


def test_links_of_the_field_reference_lead_somewhere() -> None:
    text = reference.text()
    anchors = {re.sub(r"[^a-z0-9]", "", h.lower()) for h in re.findall(r"^## `(.+)`$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= anchors


def test_the_text_is_the_definition() -> None:
    assert yaml.safe_load(crd.text()) == json.loads(json.dumps(crd.crd()))


def test_everything_is_bounded_so_that_cel_stays_cheap() -> None:
    for path, node in ALL.items():
        if path.startswith((".metadata", ".apiVersion", ".kind")):
            continue
        if node.get("type") == "string" and "enum" not in node and node.get("format") != "date-time":
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
            assert "x-kubernetes-list-type" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_the_schema_is_structural() -> None:
    for path, node in ALL.items():
        assert not {"$ref", "allOf", "oneOf", "title", "const"} & set(node), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path


def test_enumerations_are_camel_case() -> None:
    others = (".spec.engine.dtype", ".matchFields[].key")  # a value of the runtime's flag, a path
    for path, node in ALL.items():
        if "enum" in node and not path.endswith(others) and not path.startswith(".status"):
            assert all(v[0].isupper() and v.isalnum() for v in node["enum"]), path


def test_every_rule_says_what_to_change() -> None:
    rules = [r for node in ALL.values() for r in node.get("x-kubernetes-validations", [])]
    assert len(rules) >= 15
    assert all(len(r["message"]) > 15 for r in rules)


def test_the_owned_flags_are_named_in_the_message() -> None:
    rule = ALL[".spec.engine.extraArgs[]"]["x-kubernetes-validations"][0]
    assert all(flag in rule["message"] for flag in OWNED_FLAGS)


def test_every_field_says_what_it_is() -> None:
    """`kubectl explain llmd.spec --recursive` is the reference that users read."""

    def silent(node: dict[str, Any], path: str) -> list[str]:
        found = []
        for name, sub in node.get("properties", {}).items():
            here = f"{path}.{name}"
            found += [] if sub.get("description") else [here]
            found += silent(sub, here) + silent(sub.get("items", {}), here + "[]")
        return found

    root = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert silent({"properties": {k: root[k] for k in ("spec", "status")}}, "") == []


def test_what_may_be_null_is_no_enumeration() -> None:
    """The API server refuses null there, even where the enumeration lists it; a Pod takes it."""
    assert [path for path, node in ALL.items() if node.get("nullable") and "enum" in node] == []
