"""One entry of the table of reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Whether it passes without anybody's doing, which decides when Stalled turns True: never; after the patience,
# since a node, a job or a registry may yet come; at once.
Mends = Literal["alone", "perhaps", "never"]
PAGE = "docs/conditions.md"


@dataclass(frozen=True)
class Reason:
    """`means` and `do` are for the page, and `do` also ends the message. A mere state has no `do`.

    `failing`: the container itself fails, in a way that another revision may not.
    """

    name: str
    mends: Mends
    means: str
    do: str = ""
    failing: bool = False

    @property
    def page(self) -> str:
        """Where the page tells of it."""
        return f"{PAGE}#{self.name.lower()}"
