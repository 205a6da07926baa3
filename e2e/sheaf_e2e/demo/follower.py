"""Follows one LLMDeployment and its pods in threads: rows for the reader, samples for the picture."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from localcluster.cluster import Cluster, Object
from prometheus_client.parser import text_string_to_metric_families

from sheaf_e2e.demo.console import Console

API_VERSION, KIND = "sheaf.dev/v1alpha1", "LLMDeployment"
HEADER = f"{'NAME':<10}{'READY':<8}{'REPLICAS':<10}{'AVAILABLE':<11}{'DESIRED':<9}{'LIMITING'}"
_WATCH = 2.0  # seconds of one watch request; between two the thread sees that it should stop
_GAUGES = ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc")


def condition(resource: Object, type_: str) -> Object:
    """The condition of that type, or an empty one."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next(
        (c for c in conditions if c["type"] == type_), {"status": "Unknown", "reason": "", "message": ""}
    )


def row(resource: Object) -> str:
    """What ``kubectl get llmd`` prints for it."""
    status = resource.get("status", {})
    scaling = status.get("autoscaling", {})
    ready = condition(resource, "Ready")["status"]
    cells = (status.get("replicas", 0), status.get("readyReplicas", 0), scaling.get("desired", ""))
    return (
        f"{resource['metadata']['name']:<10}{ready:<8}{cells[0]:<10}{cells[1]:<11}{cells[2]:<9}"
        f"{scaling.get('limiting', '')}"
    )


@dataclass
class Sample:
    """One look at everything, ``seconds`` after the start. Sums over the pods; ``kv`` is their mean."""

    seconds: float
    desired: int
    ready: int
    waiting: float = 0.0
    running: float = 0.0
    kv: float = 0.0


@dataclass(frozen=True)
class Decided:
    """A decision of the operator, ``seconds`` after the start."""

    seconds: float
    before: int
    after: int
    reason: str


@dataclass
class Recording:
    """``start`` is on the clock of ``time.perf_counter``, as the outcomes' times are."""

    start: float
    samples: list[Sample] = field(default_factory=list)
    decisions: list[Decided] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


class Follower:
    """Prints a row whenever one would change, and each scaling decision in the operator's own words."""

    def __init__(self, cluster: Cluster, name: str, namespace: str, console: Console) -> None:
        self._cluster, self._name, self._namespace, self._console = cluster, name, namespace, console
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._latest: Object = {}
        self.recording = Recording(time.perf_counter())
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._follow, self._sample)]

    def __enter__(self) -> Follower:
        self._console.say(HEADER)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait(self, predicate: Callable[[Object], bool], timeout: float) -> bool:
        """Whether the resource came to satisfy ``predicate`` within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._latest) and predicate(self._latest), timeout)

    def _follow(self) -> None:
        shown, decided = "", ""
        while not self._stop.is_set():
            watch = self._cluster.api.watch(
                API_VERSION, KIND, self._namespace, name=self._name, timeout=_WATCH
            )
            for objects in watch:
                if self._stop.is_set():
                    return
                if not objects:
                    continue
                resource = objects[0]
                if (line := row(resource)) != shown:
                    self._console.say(line)
                    shown = line
                for decision in self._decisions(resource, decided):
                    decided = decision["time"]
                    words = f"{decision['from']} → {decision['to']}: {decision['reason']}"
                    self._console.say(f"  ↳ {words}")
                with self._changed:
                    self._latest = resource
                    self._changed.notify_all()

    def _decisions(self, resource: Object, after: str) -> list[Object]:
        """Decisions newer than ``after``, oldest first; they are recorded on the way."""
        found = resource.get("status", {}).get("autoscaling", {}).get("decisions", [])
        fresh = [d for d in reversed(found) if d["time"] > after]
        for d in fresh:
            decided = Decided(self.recording.seconds, d["from"], d["to"], d["reason"])
            self.recording.decisions.append(decided)
        return fresh

    def _sample(self) -> None:
        with httpx.Client(timeout=2, trust_env=False) as http:
            while not self._stop.wait(1.0):
                status = self._latest.get("status", {})
                sample = Sample(
                    seconds=self.recording.seconds,
                    desired=status.get("autoscaling", {}).get("desired", status.get("replicas", 0)),
                    ready=status.get("readyReplicas", 0),
                )
                self._add_metrics(http, sample)
                self.recording.samples.append(sample)

    def _add_metrics(self, http: httpx.Client, sample: Sample) -> None:
        answers = []
        labels = f"serving.kserve.io/inferenceservice={self._name}"
        for pod in self._cluster.api.list_objects("v1", "Pod", self._namespace, labels=labels):
            if not pod.get("status", {}).get("podIP"):
                continue
            try:
                url = self._cluster.pod_url(pod["metadata"]["name"], 8000, self._namespace)
                answers.append(_gauges(http.get(f"{url}/metrics").text))
            except (httpx.HTTPError, OSError, LookupError, RuntimeError):
                continue  # it is starting or going; the picture shows what answers
        if answers:
            sample.waiting = sum(a[_GAUGES[0]] for a in answers)
            sample.running = sum(a[_GAUGES[1]] for a in answers)
            sample.kv = sum(a[_GAUGES[2]] for a in answers) / len(answers)


def _gauges(page: str) -> dict[str, float]:
    wanted = "\n".join(line for line in page.splitlines() if line.startswith(_GAUGES)) + "\n"
    found = dict.fromkeys(_GAUGES, 0.0)
    for family in text_string_to_metric_families(wanted):
        for one in family.samples:
            found[one.name] += one.value
    return found
