"""Dashboards and rules: each query parses and names series that exist; each alert has its tests and page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import chart
import promql
import pytest
import yaml
from dashboards import __main__ as generator

RULES = chart.CHART / "files" / "rules.yaml"
UNIT_TESTS = Path(__file__).parent / "rules"
RUNBOOKS = chart.ROOT / "docs" / "runbooks"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDS = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
DASHBOARDS = {path.stem: json.loads(text) for path, text in generator.files().items()}
PANELS = [(name, panel) for name, content in DASHBOARDS.items() for panel in content["panels"]]
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool, which Debian's package prometheus has"
)


def queries() -> Iterator[tuple[str, str]]:
    """(where, expression) of every rule, panel and variable."""
    for name, rule in (ALERTS | RECORDS).items():
        yield name, rule["expr"]
    for name, panel in PANELS:
        for target in panel.get("targets", []):
            yield f"{name}: {panel['title']}", target["expr"]
    for name, content in DASHBOARDS.items():
        for variable in content["templating"]["list"]:
            if variable["type"] == "query":
                inner = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert inner, variable
                yield f"{name}: ${variable['name']}", f"count by ({inner[2]}) ({inner[1]})"


def recorded() -> dict[str, set[str]]:
    """The labels of a recorded series are those that it is aggregated by, with which its name begins."""
    found = {}
    for name, rule in RECORDS.items():
        (by, *_) = re.findall(r"by \(([^)]*)\)", rule["expr"])
        labels = [label for label in by.split(", ") if label != "le"]
        assert name.split(":")[0] == "_".join(labels), name
        found[name] = set(labels)
    return found


@pytest.mark.parametrize(("where", "expression"), [pytest.param(*q, id=q[0]) for q in queries()])
def test_queries_name_what_there_is(where: str, expression: str) -> None:
    known = promql.existing() | recorded()
    selectors = list(promql.selectors(promql.parse(expression)))
    assert selectors
    for selector in selectors:
        assert selector.name in known, f"{where}: no such series as {selector.name}"
        unknown = promql.labels_of(selector) - known[selector.name] - promql.TARGET_LABELS
        assert not unknown, f"{where}: {selector.name} has no label {unknown}"


@needs_promtool
def test_rules_with_prometheus_own_checker() -> None:
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in checked.stdout


@needs_promtool
@pytest.mark.parametrize("path", sorted(UNIT_TESTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_alerts_fire_and_keep_quiet(path: Path) -> None:
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried_both_ways() -> None:
    tried: dict[str, set[bool]] = {}
    for path in UNIT_TESTS.glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for expected in case.get("alert_rule_test", []):
                tried.setdefault(expected["alertname"], set()).add(bool(expected["exp_alerts"]))
    assert tried == {name: {True, False} for name in ALERTS}


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_each_alert_has_a_page(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md")
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Means", "## Look", "## Do"]


def test_no_page_is_without_its_alert() -> None:
    assert {p.stem for p in RUNBOOKS.glob("*.md")} == set(ALERTS) | {"README"}
    index = (RUNBOOKS / "README.md").read_text()
    assert all(f"[{name}]({name}.md)" in index for name in ALERTS)


# Dashboards


def test_the_files_are_what_the_generator_writes() -> None:
    for path, text in generator.files().items():
        assert path.read_text() == text, f"{path.relative_to(chart.ROOT)} is stale: run `make manifests`"
    assert {p.name for p in generator.FOLDER.iterdir()} == {p.name for p in generator.files()}


def test_no_dashboard_names_anybodys_data_source() -> None:
    """Nor has it inputs, which only a person who imports it by hand is asked for."""

    def sources(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            if "datasource" in node:
                yield node["datasource"]
            for value in node.values():
                yield from sources(value)
        elif isinstance(node, list):
            for value in node:
                yield from sources(value)

    for content in DASHBOARDS.values():
        found = list(sources(content))
        assert found
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in found)
        assert "__inputs" not in content
        assert content["templating"]["list"][0] == {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
        }


def test_panels_have_numbers_and_places_of_their_own() -> None:
    for content in DASHBOARDS.values():
        panels = content["panels"]
        assert len({p["id"] for p in panels}) == len(panels)
        cells = [
            {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
            for g in (p["gridPos"] for p in panels)
        ]
        assert all(not a & b for a, b in combinations(cells, 2))
        assert max(x for cell in cells for x, _ in cell) < 24


# In the chart


MONITORED = {"metrics": {"prometheusOperator": {"enabled": True}, "dashboards": {"enabled": True}}}


def test_rules_and_dashboards_are_off_by_default_and_whole_when_on() -> None:
    kinds = {o["kind"] for o in chart.render()}
    assert not kinds & {"PrometheusRule", "ConfigMap", "ServiceMonitor", "PodMonitor"}
    objects = chart.render(MONITORED)
    assert chart.only(objects, "PrometheusRule")["spec"] == {"groups": GROUPS}
    for name, content in DASHBOARDS.items():
        config_map = chart.only(objects, "ConfigMap", f"sheaf-dashboard-{name}")
        assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(config_map["data"][f"sheaf-{name}.json"]) == content
    without = chart.render({"metrics": {"prometheusOperator": {"enabled": True, "rules": False}}})
    assert not [o for o in without if o["kind"] == "PrometheusRule"]


def test_the_models_namespace_survives_the_scrape() -> None:
    """A series' own `namespace` would become exported_namespace, and no query would find it."""
    (endpoint,) = chart.only(chart.render(MONITORED), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
