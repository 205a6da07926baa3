"""What became of each adapter that ``--adapters-file`` names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AdapterState:
    """What became of one entry. ``due`` is when one that failed is tried again, by the file's clock."""

    path: str
    state: Literal["ready", "failed"]
    message: str = ""
    tries: int = 0
    due: float = 0.0
