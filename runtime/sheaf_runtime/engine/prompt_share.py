"""How much of a step prompts may take beside the requests that decode. Pure: no clock.

A step lasts as long for those who decode as for the prompts in it, so prompts get *seconds*, and the cost
model says how many tokens these are where the prompts stand:

- nobody decodes: as many tokens as the step's budget holds;
- ``--target-inter-token-ms``: what the decodes leave of the target;
- no target: each prompt that runs or could brings what it takes, ``CALM`` times the seconds of the decodes
  alone at most. So a chat's gap beside one long prompt stays under three times its calm one, also with a
  short one behind it, while a burst of prompts is let in quickly: seats that are empty meanwhile are
  throughput that is lost. One that has waited for more than ``PATIENCE`` times what it takes alone, because
  others were before it, may bring more, ``PRESSING`` times as much at most: the last of a burst would
  otherwise be held up by all those that it waited for.

Prompts always get ``LEAST`` of the decodes' seconds and at least one token, or decodes that alone exceed the
target would keep every prompt waiting for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sheaf_runtime.engine.cost_model import CostModel, StepWork

CALM = 1.3
PATIENCE = 2.0
PRESSING = 2.0
LEAST = 0.15


class PendingPrompt(NamedTuple):
    """A prompt of ``length`` tokens of which ``left`` are to be computed, from position ``start`` on. It came
    ``waited`` seconds ago."""

    start: int
    left: int
    length: int
    waited: float


def prompt_seconds(
    decode_seconds: float, decodes: int, wanted: Iterable[tuple[float, float]], target: float | None
) -> float:
    """Seconds of a step that prompts may take beside ``decodes`` requests, which take ``decode_seconds``
    alone. ``wanted``: the seconds that each still takes, and how many times its seconds it has waited."""
    if not decodes:
        return math.inf
    if target is not None:
        return max(target - decode_seconds, LEAST * decode_seconds)
    return sum(min(seconds, decode_seconds * CALM * pressing(late)) for seconds, late in wanted)


def pressing(late: float) -> float:
    """By how much a prompt that has waited ``late`` times what it takes alone may bring more than others."""
    return min(max(1.0, late / PATIENCE), PRESSING)


@dataclass(slots=True)
class PromptRoom:
    """What is left for prompts in the step that is planned: ``tokens`` of its budget, and ``seconds``."""

    costs: CostModel
    tokens: int
    seconds: float = math.inf
    taken: bool = False  # some prompt is in the step

    def leave_for(self, decodes: StepWork, *, prompts: Iterable[PendingPrompt], target: float | None) -> None:
        """``decodes`` have taken their tokens; what they leave is for ``prompts``."""
        alone = self.costs.predict(decodes)
        self.seconds = prompt_seconds(alone, decodes.decodes, map(self._wish, prompts), target)
        self.taken = False

    def _wish(self, prompt: PendingPrompt) -> tuple[float, float]:
        whole = self.costs.prompt_seconds(0, prompt.length)
        late = prompt.waited / whole if whole > 0 else 0.0
        return self.costs.prompt_seconds(prompt.start, prompt.left), late

    def holds(self, start: int, wanted: int) -> int:
        """How many of the ``wanted`` tokens of a prompt from position ``start`` there is room for."""
        most = min(wanted, self.tokens)
        if most <= 0 or self.seconds == math.inf:
            return max(0, most)
        within = self.costs.prompt_tokens_within(self.seconds, start, most)
        return within if self.taken else max(1, within)

    def take(self, start: int, num_tokens: int) -> None:
        self.tokens -= num_tokens
        self.seconds -= self.costs.prompt_seconds(start, num_tokens)
        self.taken = True

    def give_back(self, start: int, num_tokens: int) -> None:
        """What ``take`` took, of a request that leaves the step."""
        self.tokens += num_tokens
        self.seconds += self.costs.prompt_seconds(start, num_tokens)
