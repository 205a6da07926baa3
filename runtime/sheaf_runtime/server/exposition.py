"""Prometheus' text format.

Routers scrape as often as every 50 ms, and prometheus_client spends a millisecond of Python on a page of
ours; with the constant part of each line made once, it is a tenth of that. The tests read it back with
prometheus_client's parser.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Series:
    """A gauge or counter with one set of labels."""

    def __init__(self, kind: str, name: str, help_: str, labels: Mapping[str, str]) -> None:
        sample = f"{name}_total" if kind == "counter" else name
        self._head = f"{header(kind, sample, help_)}{sample}{label_text(labels)} "

    def line(self, value: float) -> str:
        return f"{self._head}{value}\n"


class Histogram:
    """Counts per bucket; the last bucket has no bound."""

    def __init__(self, name: str, help_: str, bounds: Sequence[float], labels: Mapping[str, str]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._header = header("histogram", name, help_)
        names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        self._buckets = [f"{name}_bucket{label_text({**labels, 'le': bound})} " for bound in names]
        self._tail = f"{name}_count{label_text(labels)} ", f"{name}_sum{label_text(labels)} "

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self) -> str:
        total, parts = 0, [self._header]
        for bucket, count in zip(self._buckets, self._counts, strict=True):
            total += count
            parts.append(f"{bucket}{total}\n")
        count_head, sum_head = self._tail
        return "".join(parts) + f"{count_head}{total}\n{sum_head}{self._sum}\n"


def header(kind: str, name: str, help_: str) -> str:
    return f"# HELP {name} {help_}\n# TYPE {name} {kind}\n"


def label_text(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
