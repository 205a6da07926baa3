"""A problem: a reason for programs and a sentence that its reader can act on. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sheaf_operator.problems.reasons.entry import Reason
from sheaf_operator.problems.reasons.table import REASONS

MAX_MESSAGE = 600
_ERROR = re.compile(r"\b(ERROR|error|\w+Error|\w+Exception)\b")


@dataclass(frozen=True)
class Lack:
    """What a pod does not get and another pod may hold.

    Resource: what a node has, such as nvidia.com/gpu or cpu. Quota: the quota's word for it, such as
    requests.nvidia.com/gpu. Volume: the name of a claim that only one node may mount.
    """

    kind: Literal["Resource", "Quota", "Volume"]
    name: str


@dataclass(frozen=True)
class Problem:
    """`reason` is one of the table's, `said` what was found, with the server's own words.

    `since` is when the cluster first said so; None while it may well pass at the next moment.
    """

    reason: str
    said: str
    lacks: tuple[Lack, ...] = ()
    since: datetime | None = None

    @property
    def entry(self) -> Reason:
        return REASONS[self.reason]

    @property
    def failing(self) -> bool:
        """Whether it may be this revision's fault: another one may do on the same cluster."""
        return self.entry.failing

    @property
    def message(self) -> str:
        """What was found and what to do."""
        return ": ".join(part for part in (self.said, self.entry.do) if part)


def clip(text: str, limit: int = MAX_MESSAGE) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def last_line(text: str) -> str:
    """The last line of a log that names an error, else the last one that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)]
    return clip((errors or lines)[-1]) if lines else ""
