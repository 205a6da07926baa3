"""docs/reference.md: every field of the resource, made from the models. `make crds` writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sheaf_operator.api.spec import API_VERSION, KIND, LLMDeploymentSpec
from sheaf_operator.api.status import LLMDeploymentStatus

PATH = Path(__file__).parents[3] / "docs" / "reference.md"
_HEAD = f"""<!-- Generated from operator/sheaf_operator/api by `make crds`. Do not edit. -->
# Field reference: {KIND} ({API_VERSION})

Every field, what it may hold and what it is when left out; `null` counts as left out (but for `replicas` in a
server-side apply, which the API server itself refuses). `kubectl explain llmd.spec --recursive` shows
the same on a cluster. `kubectl apply` refuses what is listed under "Refused", with these words.

A field that is not here is refused too, with its path, wherever the API server is asked to validate strictly,
as kubectl does. With `--validate=false` it is dropped in silence; tools that leave the choice to the API
server get a warning, `unknown field "spec. ..."`: look for it in their logs.

The metadata: `name` has at most 48 characters, begins with a letter and holds no dot.
"""

Json = dict[str, Any]
Objects = dict[str, tuple[str, Json]]  # by name: the path where it is met first, and its schema


def text() -> str:
    parts = [_HEAD]
    for title, model in (("spec", LLMDeploymentSpec), ("status", LLMDeploymentStatus)):
        objects = dict(_objects(title, model.model_json_schema(by_alias=True)))
        parts += [_section(path, node, objects) for path, node in objects.values()]
    return "\n".join(parts)


def _objects(title: str, root: Json) -> Iterator[tuple[str, tuple[str, Json]]]:
    """Each kind of object once: its name, the path where it is met first and what it is; then its parts."""
    seen: set[str] = set()

    def walk(kind: str, path: str, node: Json) -> Iterator[tuple[str, tuple[str, Json]]]:
        yield kind, (path, node)
        for name, field in node.get("properties", {}).items():
            part, suffix = _reference(field)
            if part and part not in seen:
                seen.add(part)
                yield from walk(part, f"{path}.{name}{suffix}", root["$defs"][part])

    yield from walk(title, title, root)


def _reference(field: Json) -> tuple[str | None, str]:
    """The kind of object that a field holds, and how its path goes on."""
    node = _given(field)
    if node.get("type") == "array":
        reference, suffix = _reference(node["items"])
        return reference, "[]" + suffix
    return (node["$ref"].rsplit("/", 1)[-1] if "$ref" in node else None), ""


def _given(field: Json) -> Json:
    """Without the null that stands for left out."""
    options = [option for option in field.get("anyOf", []) if option != {"type": "null"}]
    return {**options[0], **{k: v for k, v in field.items() if k != "anyOf"}} if len(options) == 1 else field


def _section(path: str, node: Json, objects: Objects) -> str:
    fields = node.get("properties", {})
    lines = [f"## `{path}`", "", node.get("description", ""), ""]
    lines += ["| field | holds | left out | |", "|---|---|---|---|"]
    for name, field in fields.items():
        part, _ = _reference(field)
        what = _given(field).get("description") or (objects[part][1].get("description", "") if part else "")
        needed = "**required**" if name in node.get("required", []) else _default(field)
        lines.append(
            f"| `{name}` | {_holds(field, objects)} | {needed} | {what.replace('|', chr(92) + '|')} |"
        )
    refused = [*_rules("", node), *(line for name, field in fields.items() for line in _rules(name, field))]
    return "\n".join([*lines, *(["", "Refused:", *refused] if refused else []), ""])


def _holds(field: Json, objects: Objects) -> str:
    node = _given(field)
    part, suffix = _reference(node)
    if part and not suffix:
        anchor = re.sub(r"[^a-z0-9]", "", objects[part][0].lower())
        return f"[{part}](#{anchor})"
    if node.get("x-kubernetes-int-or-string"):
        return "number or text"
    if values := node.get("enum") or ([node["const"]] if "const" in node else []):
        return ", ".join(f"`{value}`" for value in values if value)
    if node.get("type") == "array":
        return f"list of {_holds(node['items'], objects)}, up to {node['maxItems']}"
    if isinstance(node.get("additionalProperties"), dict):
        most = node.get("maxProperties", node.get("maxLength"))
        return f"map to {_holds(node['additionalProperties'], objects)}, up to {most}"
    if node.get("type") == "integer":
        bounds = [str(node[key]) for key in ("minimum", "maximum") if key in node]
        return " ".join(["number", " to ".join(bounds)]).rstrip()
    if node.get("type") == "string":
        return f"text up to {node['maxLength']}" if "maxLength" in node else "text"
    return "true or false" if node.get("type") == "boolean" else str(node.get("type", ""))


def _default(field: Json) -> str:
    value = field.get("default")
    if value in (None, "", [], {}) or isinstance(value, dict):
        return ""
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _rules(name: str, field: Json) -> list[str]:
    """One line per rule: what is said to whoever breaks it."""
    node = _given(field)
    said = [
        f"- `{name}`: {r['message']}" if name else f"- {r['message']}"
        for r in node.get("x-kubernetes-validations", [])
    ]
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(node.get(key), dict):
            said += _rules(name + suffix, node[key])
    return said


def main() -> None:
    PATH.write_text(text())
    print(PATH.relative_to(PATH.parents[1]))


if __name__ == "__main__":
    main()
