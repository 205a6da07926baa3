"""A problem: a reason for programs and a sentence that its reader can act on. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MAX_MESSAGE = 600
_ERROR = re.compile(r"\b(ERROR|error|\w+Error|\w+Exception)\b")


@dataclass(frozen=True)
class Lack:
    """What a pod has to wait for and another pod may hold: a node's resource (nvidia.com/gpu), a resource of
    a quota (requests.nvidia.com/gpu), a volume (the claim's name).
    """

    kind: Literal["Resource", "Quota", "Volume"]
    name: str


@dataclass(frozen=True)
class Problem:
    """`reason` is CamelCase. `lacks`: all that is missing, if the end of another pod may bring it. `failing`:
    the pod itself fails, in a way that another revision's may not.
    """

    reason: str
    message: str
    lacks: tuple[Lack, ...] = ()
    failing: bool = False


def clip(text: str, limit: int = MAX_MESSAGE) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def last_line(text: str) -> str:
    """The last line of a log that names an error, else the last one that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)]
    return clip((errors or lines)[-1]) if lines else ""
