"""The operator's own metrics, Prometheus names."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True)
class Series:
    """Those of one LLMDeployment that every poll writes: looking them up by name costs more than writing."""

    replicas: Gauge
    ready: Gauge
    scrapes: Counter
    scrape_failures: Counter


class Telemetry:
    """Series about one LLMDeployment go away with it: see `forget`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        which = ["namespace", "name"]
        self.reconciles = Counter(
            "sheaf_operator_reconciles",
            "Runs of the work queue by result",
            ["result"],
            registry=self.registry,
        )
        # From the start: a counter that appears with its first event has no rate for it.
        for result in ("ok", "error"):
            self.reconciles.labels(result)
        self.reconcile_seconds = Histogram(
            "sheaf_operator_reconcile_seconds", "Duration of one run", registry=self.registry
        )
        self.writes = Counter(
            "sheaf_operator_writes", "Writes to the API server by kind", ["kind"], registry=self.registry
        )
        for kind in ("InferenceService", "ServingRuntime", "Scale", "Pod", "Status"):
            self.writes.labels(kind)
        self.observations = Counter(
            "sheaf_operator_observations",
            "Times that a resource and all that belongs to it were read",
            which,
            registry=self.registry,
        )
        self.scrapes = Counter(
            "sheaf_operator_scrapes", "Ready pods asked for their metrics", which, registry=self.registry
        )
        self.scrape_failures = Counter(
            "sheaf_operator_scrape_failures", "Ready pods that did not answer", which, registry=self.registry
        )
        self.desired = Gauge(
            "sheaf_operator_desired_replicas", "The scaler's decision", which, registry=self.registry
        )
        self.replicas = Gauge(
            "sheaf_operator_replicas", "Wanted count of the Deployment", which, registry=self.registry
        )
        self.ready = Gauge("sheaf_operator_ready_replicas", "Pods that serve", which, registry=self.registry)
        self.signal = Gauge(
            "sheaf_operator_signal",
            "Mean per replica of a scaling signal: requests waiting, or KV use from 0 to 1",
            [*which, "type"],
            registry=self.registry,
        )
        self.condition = Gauge(
            "sheaf_operator_condition",
            "1 while the condition of the LLMDeployment is True, else 0",
            [*which, "type"],
            registry=self.registry,
        )
        self.lease_held = Gauge(
            "sheaf_operator_lease_held", "1 while this process may write", registry=self.registry
        )
        self._of: dict[tuple[str, str], Series] = {}

    def of(self, namespace: str, name: str) -> Series:
        """Made at the first call."""
        key = (namespace, name)
        if key not in self._of:
            self._of[key] = Series(
                self.replicas.labels(*key),
                self.ready.labels(*key),
                self.scrapes.labels(*key),
                # Also while there is none: a counter that appears with the first failure has no rate for it.
                self.scrape_failures.labels(*key),
            )
        return self._of[key]

    def forget(self, namespace: str, name: str) -> None:
        self._of.pop((namespace, name), None)
        series = (self.observations, self.scrapes, self.scrape_failures, self.desired, self.replicas)
        for metric in (*series, self.ready, self.signal, self.condition):
            metric.remove_by_labels({"namespace": namespace, "name": name})
