"""What was measured of the replicas at one time, as the scaler sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Json, Observed, pod_name
from sheaf_operator.cluster.reading import Reading, Sample

SATURATED = 1.0  # seconds that a request waits before the running ones count as all that fit


@dataclass(frozen=True)
class Samples:
    """`loads`: of the ready replicas that answered; `missing`: others that are ready or have been; `current`:
    wanted count.
    """

    current: int
    loads: tuple[Sample, ...] = ()
    missing: int = 0

    @property
    def pending(self) -> int:
        return max(0, self.current - len(self.loads) - self.missing)


def addresses(observed: Observed) -> list[tuple[str, str]]:
    """(pod, URL of its metrics) of the ready pods."""
    pods = observed.ready_pods
    return [(pod_name(p), _url(p)) for p in pods if p["status"].get("podIP")]


def _url(pod: Json) -> str:
    """Over TLS where its own probe says so: while that is rolled out, pods differ."""
    ip = pod["status"]["podIP"]
    host = f"[{ip}]" if ":" in ip else ip
    server: Json = next((c for c in pod["spec"]["containers"] if c["name"] == names.CONTAINER), {})
    scheme = server.get("readinessProbe", {}).get("httpGet", {}).get("scheme", "HTTP").lower()
    return f"{scheme}://{host}:{names.PORT}/metrics"


def of_replicas(
    observed: Observed, readings: Mapping[str, Reading | str], before: Mapping[str, Reading | str]
) -> Samples:
    """`before` are the last readings but these: what has finished meanwhile is the difference."""
    ready = [pod_name(pod) for pod in observed.ready_pods]
    loads = tuple(
        _since(before.get(name), answer)
        for name in ready
        if isinstance(answer := readings.get(name), Reading)
    )
    # What a pod does that was ready and is not any more, nobody knows: it is missing, not loading.
    missing = len(ready) - len(loads) + len(observed.silent_pods)
    return Samples(current=observed.replicas or 0, loads=loads, missing=missing)


def _since(before: Reading | str | None, now: Reading) -> Sample:
    """The sample with what has ended and begun between the two readings."""
    if not isinstance(before, Reading) or before.finished is None or now.finished is None:
        return now.sample
    finished = now.finished - before.finished
    if finished < 0:  # a counter that went down began anew with its container
        return now.sample
    return replace(
        now.sample, finished=finished, begun=max(0, finished + now.sample.running - before.sample.running)
    )


def capacity_of(readings: Mapping[str, Reading | str], before: Json | None) -> Json | None:
    """Of one replica; the last known one stays while no replica answers."""
    for answer in readings.values():
        if not isinstance(answer, Reading):
            continue
        found = {
            "weightsBytes": answer.weights_bytes,
            "kvCacheTokens": answer.kv_tokens,
            "maxConcurrentSequences": answer.sample.slots,
        }
        return {key: value for key, value in found.items() if value is not None} or before
    return before
