"""Kubernetes Events for the user, at most one of a kind per period. Events are a courtesy: failures are
logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sheaf_operator.api import names
from sheaf_operator.api.spec import API_VERSION, KIND
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.observed import Json, Observed

log = logging.getLogger(__name__)
PERIOD = 600.0
MAX_REMEMBERED = 4096


class Events:
    def __init__(self, cluster: Cluster, clock: Callable[[], float]) -> None:
        self._cluster, self._clock = cluster, clock
        self._last: dict[tuple[str, str, str], float] = {}

    async def record(self, observed: Observed, kind: str, reason: str, message: str) -> None:
        """`kind` is Normal or Warning. The same reason and message are told again after ten minutes only."""
        now = self._clock()
        key = (observed.uid, reason, message)
        if now - self._last.get(key, float("-inf")) < PERIOD:
            return
        if len(self._last) >= MAX_REMEMBERED:
            self._last = {k: t for k, t in self._last.items() if now - t < PERIOD}
        self._last[key] = now
        try:
            await self._cluster.create_event(observed.namespace, event(observed, kind, reason, message))
        except (ApiError, Unreachable) as error:
            log.info("event %s not recorded: %s", reason, error)

    async def changes(self, observed: Observed, after: Json) -> None:
        """Events for the transitions between the observed status and the new one."""
        before = observed.status
        old, new = _reasons(before), _reasons(after)
        if new.get("Stalled", ("", "", ""))[:2] != old.get("Stalled", ("", "", ""))[:2]:
            status, reason, message = new["Stalled"]
            if status == "True":
                await self.record(observed, "Warning", reason, message)
        if new["Ready"][0] == "False" and old.get("Ready", ("",))[0] == "True":
            await self.record(observed, _weight(new["Ready"][1]), new["Ready"][1], new["Ready"][2])
        if new["Ready"][0] == "True" and old.get("Ready", ("",))[0] != "True":
            await self.record(observed, "Normal", "Ready", new["Ready"][2])
        decided = (after.get("autoscaling") or {}).get("decisions", [])
        if decided and decided != (before.get("autoscaling") or {}).get("decisions", []):
            last = decided[0]
            message = f"{last['from']} → {last['to']} replicas: {last['reason']}"
            await self.record(observed, "Normal", "Scaling", message)


def _weight(reason: str) -> str:
    """Whoever suspends a model or takes its last replica is not warned of it."""
    return "Normal" if reason in ("Suspended", "ScaledToZero") else "Warning"


def _reasons(status: Json) -> dict[str, tuple[str, str, str]]:
    return {c["type"]: (c["status"], c["reason"], c.get("message", "")) for c in status.get("conditions", [])}


def event(observed: Observed, kind: str, reason: str, message: str) -> Json:
    """A Kubernetes Event about the LLMDeployment; `kind` is Normal or Warning."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{observed.name}.", "namespace": observed.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": observed.name,
            "namespace": observed.namespace,
            "uid": observed.uid,
            "resourceVersion": observed.owner["metadata"]["resourceVersion"],
        },
        "type": kind,
        "reason": reason,
        "message": message[:1000],
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "reportingInstance": names.FIELD_MANAGER,
    }
