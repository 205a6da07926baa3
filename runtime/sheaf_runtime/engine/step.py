"""A step while it is planned, and once it is launched."""

from __future__ import annotations

from dataclasses import dataclass, field

from sheaf_runtime.engine.cost_model import StepWork
from sheaf_runtime.engine.prompt_share import PromptRoom
from sheaf_runtime.engine.request import Request
from sheaf_runtime.worker.plan import BlockIds


@dataclass(frozen=True, slots=True)
class Launched:
    request: Request
    epoch: int
    num_tokens: int
    sample: bool
    drafts: list[int]


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """``since``: when it was planned, if nothing else was in flight then."""

    step: int
    work: StepWork
    items: list[Launched]
    since: float | None


@dataclass(frozen=True, slots=True)
class StepLimits:
    """More than ``long`` tokens to go make a prompt long; ``max_num_partial`` of those share a step."""

    max_num_seqs: int
    long: int
    max_num_partial: int


@dataclass(slots=True)
class Step:
    """The step that is planned: ``chosen`` requests with their tokens, ``drafts`` included, and new pages."""

    room: PromptRoom
    chosen: dict[Request, tuple[int, BlockIds]] = field(default_factory=dict)
    drafts: dict[Request, list[int]] = field(default_factory=dict)
    reserve: int = 0  # tokens that long prompts leave to shorter ones, which run or wait
    short_of_pages: bool = False

    def part(self, start: int, wanted: int, sharing: int) -> int:
        """Of ``wanted`` tokens from ``start`` those that there is room for; where ``sharing`` long prompts
        are to have equal parts, of what is not reserved."""
        if not sharing:
            return self.room.holds(start, wanted)
        left = max(0, self.room.holds(start, self.room.tokens) - self.reserve)
        return min(wanted, -(-left // sharing))
