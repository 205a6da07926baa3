"""A problem: a reason for programs and a sentence that its reader can act on. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_MESSAGE = 600
_ERROR = re.compile(r"\b(ERROR|error|\w+Error|\w+Exception)\b")


@dataclass(frozen=True)
class Problem:
    """`reason` is CamelCase."""

    reason: str
    message: str


def clip(text: str, limit: int = MAX_MESSAGE) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def last_line(text: str) -> str:
    """The last line of a log that names an error, else the last one that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)]
    return clip((errors or lines)[-1]) if lines else ""
