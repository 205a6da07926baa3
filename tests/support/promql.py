"""What a PromQL expression asks for, and what Sheaf's two `/metrics` pages have."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import promql_parser
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sheaf_operator.run.telemetry import Telemetry
from sheaf_runtime.protocol.messages import EngineReady
from sheaf_runtime.server.adapter_states import AdapterState
from sheaf_runtime.server.metrics import Metrics

# Put on each series by Prometheus and by the monitors of the chart.
TARGET_LABELS = {"job", "instance", "namespace", "pod", "container", "endpoint", "sheaf_dev_deployment"}
PARTS = ("lhs", "rhs", "expr", "param", "vector_selector", "args")


def parse(expression: str) -> Any:
    """The expression's tree, Grafana's own variables filled in. Raises ValueError."""
    filled = expression.replace("$__rate_interval", "5m")
    return promql_parser.parse(filled)


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector in the tree."""
    if isinstance(node, list):
        for item in node:
            yield from selectors(item)
    elif isinstance(node, promql_parser.VectorSelector):
        yield node
    else:
        for part in PARTS:
            if (inner := getattr(node, part, None)) is not None:
                yield from selectors(inner)


def labels_of(selector: Any) -> set[str]:
    return {matcher.name for matcher in selector.matchers.matchers}


def series(page: str) -> dict[str, set[str]]:
    """Series name → the labels that it has, of one page of the text format."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def operator_page() -> str:
    """The operator's /metrics once it has looked after a model."""
    telemetry = Telemetry()
    for metric in vars(telemetry).values():
        if names := getattr(metric, "_labelnames", ()):
            metric.labels(*names)
    return generate_latest(telemetry.registry).decode()


def runtime_page() -> str:
    """A pod's /metrics once its engine is ready."""
    metrics = Metrics("m", max_loras=1, max_drafts=1)
    metrics.adapters = lambda: {"a": AdapterState("/a", "ready")}
    metrics.info = EngineReady(**dict.fromkeys(EngineReady.__struct_fields__, 1))
    return metrics.render()


@cache
def existing() -> dict[str, set[str]]:
    """All series of both pages with their labels."""
    return series(operator_page()) | series(runtime_page())
