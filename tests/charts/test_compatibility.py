"""docs/compatibility.md says the versions that the chart, the local cluster and the CRD have."""

from __future__ import annotations

import re

import chart
import yaml
from localcluster.setup.binaries import GO_MODULES, KUBERNETES_VERSION
from sheaf_operator.api.spec import VERSION as API
from sheaf_operator.settings import VERSION

PAGE = (chart.ROOT / "docs" / "compatibility.md").read_text()
CHANGES = (chart.ROOT / "CHANGELOG.md").read_text()


def rows() -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"
    ]


def kserve() -> str:
    module = (GO_MODULES / "kserve" / "go.mod").read_text()
    (version,) = re.findall(r"github\.com/kserve/kserve v(\S+)", module)
    return str(version)


def oldest_kubernetes() -> str:
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    return str(about["kubeVersion"]).removeprefix(">=").removesuffix(".0-0")


def test_the_newest_row_is_this_version() -> None:
    newest = rows()[2]
    minor = ".".join(kserve().split(".")[:2])
    assert newest == [VERSION, f"{oldest_kubernetes()} and newer", minor, API]


def test_what_is_tested_is_what_the_tests_use() -> None:
    held = dict(rows()[5:])
    cluster = f"Kubernetes {KUBERNETES_VERSION.removeprefix('v')}, KServe {kserve()}"
    assert held["every test runs on a real API server, kubelet and KServe"] == cluster
    assert held["every object of the chart is checked against Kubernetes' schemas"] == ", ".join(
        chart.KUBERNETES
    )
    assert chart.KUBERNETES[0] == oldest_kubernetes()
    workflow = yaml.safe_load((chart.ROOT / ".github" / "workflows" / "test.yaml").read_text())
    assert workflow["jobs"]["kind"]["env"]["KSERVE"] == f"v{kserve()}"


def test_the_changes_begin_with_this_version() -> None:
    (newest, *_) = re.findall(r"^## (\S+)", CHANGES, re.MULTILINE)
    assert newest == VERSION
    using = (chart.ROOT / "docs" / "using.md").read_text()
    assert f"KServe {'.'.join(kserve().split('.')[:2])}" in using
    assert f"Kubernetes {oldest_kubernetes()} or newer" in using
