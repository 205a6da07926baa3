"""A dashboard: title, variables, rows of panels. A panel: title, unit, queries with their legends.

All that Grafana wants besides is the same for each and put around them here. The data source is a variable,
so that no dashboard names one of somebody else's Grafana.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
Query = tuple[str, str]  # expression, legend
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RANGE = "$__rate_interval"
COLUMNS = 24  # of Grafana's grid


class Panel:
    def __init__(
        self, title: str, unit: str, *queries: Query, kind: str = "timeseries", stacked: bool = False
    ):
        self.title, self.unit, self.queries = title, unit, queries
        self.kind, self.stacked = kind, stacked

    def json(self, number: int, place: Json) -> Json:
        custom: Json = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if self.stacked else {}
        options: Json = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        }
        return {
            "id": number,
            "title": self.title,
            "type": self.kind,
            "datasource": SOURCE,
            "gridPos": place,
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0, "custom": custom}, "overrides": []},
            "options": options if self.kind == "timeseries" else {},
            "targets": [
                {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
                for index, (expr, legend) in enumerate(self.queries)
            ],
        }


def stat(title: str, expr: str) -> Panel:
    return Panel(title, "none", (expr, ""), kind="stat")


def variable(name: str, label: str, query: str, many: bool = True) -> Json:
    everything = {"text": "All", "value": "$__all"}
    several = {"includeAll": True, "multi": True, "allValue": ".*", "current": everything}
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the time range changes
        "sort": 1,
        **(several if many else {}),
    }


def dashboard(uid: str, title: str, variables: list[Json], rows: dict[str, list[Panel]]) -> Json:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid,
        "title": title,
        "tags": ["sheaf"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *variables]},
        "panels": list(_placed(rows)),
    }


def _placed(rows: dict[str, list[Panel]]) -> Iterator[Json]:
    """Each row's title, and below it its panels, side by side and wrapped."""
    number, top = 1, 0
    for title, panels in rows.items():
        head = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "panels": [], "gridPos": head}
        number, top = number + 1, top + 1
        stats = panels[0].kind == "stat"
        per_line = len(panels) if stats else 4 if len(panels) % 4 == 0 else 2
        width, height = COLUMNS // per_line, 4 if stats else 8
        for index, panel in enumerate(panels):
            x, y = index % per_line * width, top + index // per_line * height
            yield panel.json(number, {"x": x, "y": y, "w": width, "h": height})
            number += 1
        top += -(-len(panels) // per_line) * height
