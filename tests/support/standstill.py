"""An LLMDeployment that stands still: its pods, what the cluster tells of them, and what is said about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import kube_objects as k
from sheaf_operator.problems.cause import cause
from sheaf_operator.problems.problem import Problem
from sheaf_operator.status.conditions import conditions
from sheaf_operator.status.situation import Situation

Json = dict[str, Any]
GPU = "nvidia.com/gpu"
CREATED = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)  # of every pod here
OURS = k.revision(k.spec())


def after(seconds: float) -> datetime:
    return CREATED + timedelta(seconds=seconds)


def found(*pods: Json, at: float = 3600, **more: Any) -> Problem | None:
    observed = k.settled(k.spec(), pods=pods, **more)
    return cause(observed, OURS.hash, GPU, after(at))


def said(*pods: Json, at: float = 3600, **more: Any) -> dict[str, tuple[str, str, str]]:
    observed = k.settled(k.spec(), pods=pods, **more)
    listed = conditions(Situation(k.spec(), observed, OURS, after(at)))
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in listed}


def event(kind: str, name: str, reason: str, message: str, at: str = "2026-01-01T00:10:00Z") -> Json:
    return {
        "involvedObject": {"kind": kind, "name": name},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }
