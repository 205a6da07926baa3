"""One LLMDeployment, a fake API server and fake pods around a real reconciler."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import kube_objects as k
from sheaf_operator.cluster.lease import NotHolder
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.cluster.reading import Reading, Sample
from sheaf_operator.run.reconcile import Reconciler
from sheaf_operator.run.telemetry import Telemetry
from sheaf_operator.settings import Settings

KEY = ("ns", "m")


class FakeCluster:
    """Serves `observed` and records every write as a short tuple."""

    def __init__(self, observed: Observed | None) -> None:
        self.observed = observed
        self.writes: list[tuple[Any, ...]] = []
        self.reads = 0
        self.asked: list[tuple[str, str]] = []
        self.refuse_events: Exception | None = None
        self.told: list[dict[str, Any]] = []
        self.fail: Exception | None = None
        self.refuse_status: Exception | None = None
        self.status_writes = 0
        self.admit: Callable[[dict[str, Any]], dict[str, Any]] = lambda obj: obj
        self.drops: tuple[str, ...] = ()  # fields of the status that the CRD does not know
        self.status: dict[str, Any] = {}

    def _write(self, *what: Any) -> None:
        if self.fail is not None:
            raise self.fail
        self.writes.append(what)

    complete = True

    def observe(self, namespace: str, name: str) -> Observed | None:
        self.reads += 1
        return copy.deepcopy(self.observed)

    async def confirm(self, observed: Observed) -> None:
        if self.fail is not None:
            raise self.fail

    async def apply(self, obj: dict[str, Any], uid: str | None) -> dict[str, Any]:
        self._write("apply", obj["kind"])
        return self.admit(copy.deepcopy(obj))

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        self._write("delete", name)

    async def scale(self, deployment: dict[str, Any], replicas: int) -> None:
        self._write("scale", replicas)

    async def set_deletion_cost(self, pod: dict[str, Any], cost: str | None) -> None:
        self._write("cost", pod["metadata"]["name"], cost)

    async def set_adapters(self, pod: dict[str, Any], text: str | None) -> None:
        self._write("adapters", pod["metadata"]["name"], text)

    async def write_status(self, observed: Observed, status: dict[str, Any]) -> dict[str, Any]:
        self.status_writes += 1
        if self.refuse_status is not None:
            raise self.refuse_status
        self.status = status
        self.writes.append(("status",))
        kept = {k: copy.deepcopy(v) for k, v in status.items() if k not in self.drops}
        if self.observed is not None:
            self.observed.owner["status"] = kept
        return {"status": kept}

    async def events(self, namespace: str, kind: str, name: str) -> list[dict[str, Any]]:
        if self.refuse_events is not None:
            raise self.refuse_events
        self.asked.append((kind, name))
        return self.told

    async def create_event(self, namespace: str, event: dict[str, Any]) -> None:
        self.writes.append(("event", event["reason"]))

    def children(self) -> list[tuple[Any, ...]]:
        """The writes so far that are neither status nor events; forgets them."""
        found = [w for w in self.writes if w[0] not in ("status", "event")]
        self.writes = []
        return found


class FakeScraper:
    def __init__(self) -> None:
        self.load: dict[str, Reading | str] = {}

    async def read(self, addresses: Iterable[tuple[str, str]]) -> dict[str, Reading | str]:
        return {pod: self.load.get(pod, reading()) for pod, _ in addresses}


class HeldLease:
    held = True

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        if not self.held:
            raise NotHolder
        yield


def reading(waiting: int = 0, running: int = 0, blocks: int = 0) -> Reading:
    return Reading(Sample(waiting, running, 0.0, slots=8), blocks_live=blocks, kv_tokens=100)


class World:
    def __init__(self, given: Any, observed: Observed) -> None:
        self.now = 0.0
        observed.owner["spec"] = given.model_dump(by_alias=True, exclude_none=True)
        self.cluster = FakeCluster(observed)
        self.scraper = FakeScraper()
        self.lease = HeldLease()
        self.telemetry = Telemetry()
        self.reconciler = Reconciler(
            self.cluster,  # type: ignore[arg-type]
            self.cluster,  # type: ignore[arg-type]
            self.scraper,  # type: ignore[arg-type]
            self.lease,  # type: ignore[arg-type]
            self.telemetry,
            Settings(runtime_image=k.IMAGE),
            clock=lambda: self.now,
            spread=lambda: 1.0,
        )

    async def run(self, after: float = 0.0) -> list[tuple[Any, ...]]:
        """One run `after` seconds later; the children's writes it made."""
        self.now += after
        self.again = await self.reconciler.process(KEY)
        return self.cluster.children()

    def counted(self, metric: str) -> float | None:
        """The resource's series of a counter, such as ``scrapes``; None if there is none."""
        labels = {"namespace": KEY[0], "name": KEY[1]}
        return self.telemetry.registry.get_sample_value(f"sheaf_operator_{metric}_total", labels)

    def change(self, **fields: Any) -> None:
        assert self.cluster.observed is not None
        self.cluster.observed = replace(self.cluster.observed, **fields)
        self.reconciler.touch(KEY)


def scaling_world(replicas: int, window: int = 0) -> World:
    behavior = {"scaleDown": {"stabilizationWindowSeconds": window}}
    given = k.spec(autoscaling={"maxReplicas": 5, "behavior": behavior})
    return World(given, k.settled(given, replicas=replicas, ready=replicas))
