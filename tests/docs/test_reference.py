"""Pages that say what the code says: metrics, and which fields a policy has to cover."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql
import pytest
import yaml
from doc_blocks import ROOT
from prometheus_client.parser import text_string_to_metric_families

PAGE = (ROOT / "docs" / "metrics.md").read_text()
HIDDEN = {"le", "engine"}  # of a histogram's buckets; always "0"


def rows(page: str) -> Iterator[str]:
    for family in text_string_to_metric_families(page):
        if not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = sorted({label for sample in family.samples for label in sample.labels} - HIDDEN)
            words = family.documentation.rstrip(".")
            yield f"| `{name}` | {family.type} | {', '.join(labels)} | {words} |"


@pytest.mark.parametrize(
    ("title", "page"), [("The operator", promql.operator_page()), ("The runtime", promql.runtime_page())]
)
def test_the_metrics_page_has_a_row_for_each(title: str, page: str) -> None:
    (section,) = [s for s in PAGE.split("\n## ") if s.startswith(title)]
    written = [line for line in section.splitlines() if line.startswith("| `")]
    assert written == list(rows(page)), "write the rows as they are on the right"


# What the admission policy must look at


SENSITIVE = {
    "image",
    "secretKeyRef",
    "secretName",
    "imagePullSecrets",
    "serviceAccountName",
    "credentialsSecretRef",
    "uri",
}


def paths(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a schema that names an image, a Secret, a ServiceAccount or a source."""
    for name, inner in schema.get("properties", {}).items():
        if name in SENSITIVE or "secret" in name.lower():
            yield (*path, name)
        yield from paths(inner, (*path, name))
    if "items" in schema:
        yield from paths(schema["items"], path)


def test_the_policy_looks_at_every_field_that_names_an_image_a_secret_or_an_account() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "llmdeployments.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    (policy,) = [
        o
        for o in yaml.safe_load_all((ROOT / "manifests" / "policies" / "llmdeployments.yaml").read_text())
        if o["kind"] == "ValidatingAdmissionPolicy"
    ]
    text = " ".join(v["expression"] for v in policy["spec"]["variables"] + policy["spec"]["validations"])
    found = set(paths(spec))
    assert ("pod", "image") in found
    for path in found:
        missing = [part for part in path if part not in text and part not in ("env", "valueFrom")]
        assert not missing, f"spec.{'.'.join(path)} is not in the policy"
