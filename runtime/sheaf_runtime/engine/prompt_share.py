"""How much of a step prompts may take beside the requests that decode. Pure: no clock.

A step lasts as long for those who decode as for the prompts in it, so prompts get *seconds*, and the cost
model says how many tokens these are where the prompts stand:

- nobody decodes: as many tokens as the step's budget holds;
- ``--target-inter-token-ms``: what the decodes leave of the target;
- no target: ``CALM`` times the seconds of the decodes alone for each prompt that runs or could, so that a
  chat's gap beside one long prompt stays under three times its calm one, while a burst of prompts is let in
  quickly: seats that are empty meanwhile are throughput that is lost.

Prompts always get ``LEAST`` of the decodes' seconds and at least one token, or decodes that alone exceed the
target would keep every prompt waiting for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sheaf_runtime.engine.cost_model import CostModel, StepWork

CALM = 1.7
LEAST = 0.15


def prompt_seconds(decode_seconds: float, decodes: int, prompts: int, target: float | None) -> float:
    """Seconds of a step that ``prompts`` prompts may take beside ``decodes`` requests, which take
    ``decode_seconds`` alone."""
    if not decodes:
        return math.inf
    if target is not None:
        return max(target - decode_seconds, LEAST * decode_seconds)
    return CALM * decode_seconds * max(1, prompts)


@dataclass(slots=True)
class PromptRoom:
    """What is left for prompts in the step that is planned: ``tokens`` of its budget, and ``seconds``."""

    costs: CostModel
    tokens: int
    seconds: float = math.inf
    taken: bool = False  # some prompt is in the step

    def leave_for(self, decodes: StepWork, *, prompts: int, target: float | None) -> None:
        """``decodes`` have taken their tokens; what they leave is for ``prompts`` prompts."""
        alone = self.costs.predict(decodes)
        self.seconds = prompt_seconds(alone, decodes.decodes, prompts, target)
        self.taken = False

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
