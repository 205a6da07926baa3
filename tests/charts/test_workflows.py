"""The workflows: lint, few rights, and that what they publish is what the chart asks for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import chart
import pytest
import yaml
from sheaf_operator.settings import VERSION, Settings

WORKFLOWS = chart.ROOT / ".github" / "workflows"
VALUES = yaml.safe_load((chart.CHART / "values.yaml").read_text())


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((WORKFLOWS / name).read_text())
    return loaded


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def scripts(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_lint() -> None:
    program = Path(sys.executable).parent / "actionlint"
    files = sorted(WORKFLOWS.glob("*.yaml"))
    done = subprocess.run([program, "-no-color", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert files


@pytest.mark.parametrize("name", ["release.yaml", "test.yaml"])
def test_few_rights_and_pinned_actions(name: str) -> None:
    workflow = load(name)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["defaults"] == {"run": {"shell": "bash"}}  # else a failure before a pipe goes unseen
    for step in steps(workflow):
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])


def test_only_a_tag_publishes_and_it_is_signed() -> None:
    for job in load("release.yaml")["jobs"].values():
        outside = [s for s in job["steps"] if s.get("name") in ("Publish", "Sign")]
        assert [s["if"] for s in outside] == ["github.ref_type == 'tag'"] * 2
    image = load("release.yaml")["jobs"]["image"]
    publish = next(s for s in image["steps"] if s.get("id") == "publish")
    assert publish["with"]["sbom"] is True
    assert publish["with"]["provenance"] == "mode=max"


def published() -> dict[str, str]:
    """The reference of each image, as the steps of the release workflow put it together."""
    job = load("release.yaml")["jobs"]["image"]
    name = next(s for s in job["steps"] if s.get("id") == "name")["run"]
    assert "yq '${{ matrix.repository }}' charts/sheaf/values.yaml" in name
    assert "yq .appVersion charts/sheaf/Chart.yaml" in name
    assert 'echo "image=$repository:$version"' in name
    (publish,) = [s for s in job["steps"] if s.get("id") == "publish"]
    assert publish["with"]["tags"] == "${{ steps.name.outputs.image }}"
    version = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"]
    images = {}
    for entry in job["strategy"]["matrix"]["include"]:
        value: Any = VALUES
        for key in entry["repository"].strip(".").split("."):
            value = value[key]
        images[entry["name"]] = f"{value}:{version}"
    return images


def test_what_is_published_is_what_the_chart_and_the_operator_ask_for() -> None:
    (container,) = chart.only(chart.render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    runtime = chart.only(chart.render({"servingRuntime": {"create": "Always"}}), "ClusterServingRuntime")
    images = published()
    assert images == {
        "operator": container["image"],
        "runtime": runtime["spec"]["containers"][0]["image"],
    }
    assert images["runtime"] == Settings().runtime_image
    assert all(image.endswith(f":{VERSION}") for image in images.values())


def test_the_chart_is_published_beside_the_images_and_after_them() -> None:
    job = load("release.yaml")["jobs"]["chart"]
    assert job["needs"] == "image"
    assert "yq .image.repository charts/sheaf/values.yaml | sed 's|/operator$|/charts|'" in scripts(job)
    place = re.sub("/operator$", "/charts", VALUES["image"]["repository"])
    for page in ("README.md", "docs/using.md", "docs/upgrade.md"):
        found = set(re.findall(r"oci://ghcr\S+", (chart.ROOT / page).read_text()))
        assert found <= {f"oci://{place}/sheaf"}, page
        assert found, page


@pytest.mark.parametrize("job", ["image", "chart"])
def test_a_tag_that_is_not_the_version_publishes_nothing(job: str) -> None:
    names = [s.get("name") for s in load("release.yaml")["jobs"][job]["steps"]]
    assert names.index("The tag is the chart's version") < names.index("Publish")


def test_the_tests_run_on_this_machine_and_on_kind() -> None:
    jobs = load("test.yaml")["jobs"]
    assert "make test" in scripts(jobs["local"])
    kind = scripts(jobs["kind"])
    assert "kind create cluster" in kind
    assert "SHEAF_E2E_KUBECONFIG=$PWD/kubeconfig .venv/bin/pytest e2e/tests/product" in kind
    # The images that are loaded are those that the chart names.
    for value in ("image", "runtimeImage"):
        assert kind.count(f"$(yq .{value}.repository charts/sheaf/values.yaml):$version") == 2
