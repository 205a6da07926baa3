"""The CustomResourceDefinition, made from the models in `spec` and `status`.

`python -m sheaf_operator.api.crd` writes it; a test compares the files. pydantic gives JSON
schema; Kubernetes wants a structural schema, which has no references, no titles, no `anyOf` with null, and
says how lists merge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sheaf_operator.api.adapters import ROOT_RULE
from sheaf_operator.api.fields import ApiModel, rule, rules
from sheaf_operator.api.spec import GROUP, KIND, PLURAL, VERSION, LLMDeploymentSpec
from sheaf_operator.api.status import LLMDeploymentStatus

# Children carry the label `isvc.NAME-predictor`, which limits a name to 63 - 15 characters.
MAX_NAME = 48
_DROP = {"title", "$defs", "additionalProperties"}


def structural(model: type[ApiModel], nullable: bool = False) -> dict[str, Any]:
    """The structural OpenAPI schema of a model: references inlined, nullable unions reduced.

    With `nullable`, what may be left out may be null as well; where there is a default, the API
    server fills it in for null by itself.
    """
    schema = model.model_json_schema(by_alias=True)
    converted = _convert(schema, schema.get("$defs", {}))
    return _nullable(converted) if nullable else converted


def _nullable(node: dict[str, Any]) -> dict[str, Any]:
    out = dict(node)
    if "properties" in node:
        needed = {
            *node.get("required", []),
            *(n for n, sub in node["properties"].items() if "default" in sub),
        }
        out["properties"] = {
            name: _nullable(sub) if name in needed or "nullable" in sub else _or_null(_nullable(sub))
            for name, sub in node["properties"].items()
        }
    if out.get("nullable") is False:  # the API server keeps no False: it would differ from what is applied
        del out["nullable"]
    return {**out, "items": _nullable(node["items"])} if "items" in node else out


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    """The API server takes no null for an enumeration, whatever it lists: a rule does, as it is not asked."""
    kept = dict(node)
    if values := kept.pop("enum", None):
        words = ", ".join(filter(None, values))
        kept |= {
            "maxLength": max(map(len, values)),
            **rules(rule(f"self in {values!r}", f"must be one of {words}")),
        }
    return {"nullable": True, **kept}


def _convert(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        target = defs[node["$ref"].rsplit("/", 1)[-1]]
        return _convert({**target, **{k: v for k, v in node.items() if k != "$ref"}}, defs)
    options = [o for o in node.get("anyOf", []) if o != {"type": "null"}]
    if len(options) == 1:  # Optional[X]: absent instead of null
        rest = {k: v for k, v in node.items() if k not in ("anyOf", "default")}
        return _convert({**options[0], **rest}, defs)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _convert(sub, defs) for name, sub in value.items()}
        elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
            out[key] = _convert(value, defs)
        elif key == "const":
            out["enum"] = [value]
        elif key not in _DROP:
            out[key] = value
    if out.get("type") == "integer":
        out["format"] = "int64" if out.get("maximum", 2**31) >= 2**31 else "int32"
    if out.get("type") == "object" and "properties" in out and "default" in out:
        out["default"] = _filled(out["default"])
    if out.get("default") in ([], {}):
        del out["default"]  # absent says the same and keeps the user's object short
    if "x-kubernetes-list-map-keys" in out:
        out["x-kubernetes-list-type"] = "map"
    if out.get("type") == "object" and "maxLength" in out:
        out["maxProperties"] = out.pop("maxLength")
    return out


def _filled(value: Any) -> Any:
    """CEL rules judge a default as it stands, so it is spelled out; absent and empty fields are left out."""
    if isinstance(value, dict):
        filled = {k: _filled(v) for k, v in value.items()}
        return {k: v for k, v in filled.items() if v not in (None, [], {})}
    return value


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}


READY = '.status.conditions[?(@.type=="Ready")]'
COLUMNS = [
    _column("Ready", READY + ".status"),
    _column("Reason", READY + ".reason"),
    _column("Replicas", ".status.replicas", "integer"),
    _column("Available", ".status.readyReplicas", "integer"),
    _column("Desired", ".status.autoscaling.desired", "integer"),
    _column("Limiting", ".status.autoscaling.limiting"),
    _column("ImageCurrent", '.status.conditions[?(@.type=="ImageCurrent")].status'),
    _column("URL", ".status.url", priority=1),
    _column("Model", ".spec.model.uri", priority=1),
    _column("Why", ".status.autoscaling.reason", priority=1),
    _column("Age", ".metadata.creationTimestamp", "date"),
]


def crd() -> dict[str, Any]:
    root = {
        "type": "object",
        "description": "A large language model served behind an OpenAI-compatible API.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # The bound on the name is for CEL's cost estimate.
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}},
            "spec": structural(LLMDeploymentSpec, nullable=True),
            "status": structural(LLMDeploymentStatus),
        },
        **rules(
            rule(
                f"size(self.metadata.name) <= {MAX_NAME}",
                f"metadata.name must have at most {MAX_NAME} characters: its children's names are longer",
            ),
            rule(
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "metadata.name must start with a letter and hold only lower-case letters, digits and '-' (no"
                " dot: it becomes part of a host name)",
            ),
            ROOT_RULE,
        ),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "sheaf"},
            # Deleting it would delete every LLMDeployment, so Helm leaves it behind.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": KIND + "List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["llmd"],
                "categories": ["all", "sheaf"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": COLUMNS,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


class _Plain(yaml.SafeDumper):
    """No aliases: the same rule object may appear in several places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text() -> str:
    head = "# Generated from operator/sheaf_operator/api by `make crds`. Do not edit.\n"
    return head + yaml.dump(crd(), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)


ROOT = Path(__file__).parents[3]
# The same file three times: kustomize and Helm read nothing outside their own folders, and `kubectl apply -f
# crds/` wants a plain one.
PATHS = (
    ROOT / "crds" / "llmdeployments.yaml",
    ROOT / "manifests" / "crd.yaml",
    ROOT / "charts" / "sheaf" / "files" / "crd.yaml",
)


def main() -> None:
    for path in PATHS:
        path.write_text(text())
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
