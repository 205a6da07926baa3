"""What is proposed for one request, and how often that comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sheaf_runtime.protocol.sampling import SamplingParams

FOLLOW = 0.2  # of what a request's acceptance is, its last token is


class Proposer(Protocol):
    """Of one request: takes in its tokens bit by bit, and says what may follow once it has them all."""

    def follow(self, token_ids: list[int]) -> bool: ...
    def propose(self, token_ids: list[int], most: int) -> list[int]: ...


@dataclass(slots=True)
class Drafting:
    """One request's. ``proposed`` may follow its tokens; ``right`` is how often a proposed token comes,
    ``there`` how often something is proposed."""

    proposer: Proposer
    proposed: list[int] = field(default_factory=list)
    right: float = 0.0
    there: float = 0.0

    def compare(self, token_ids: list[int]) -> None:
        """What was proposed with the tokens that came."""
        self.there += FOLLOW * (bool(self.proposed) - self.there)
        for proposed, token_id in zip(self.proposed, token_ids, strict=False):
            self.right += FOLLOW * ((proposed == token_id) - self.right)
            if proposed != token_id:
                break


def may_draft(sampling: SamplingParams) -> bool:
    """Penalties count tokens one by one."""
    penalties = sampling.frequency_penalty, sampling.presence_penalty
    return sampling.repetition_penalty == 1 and not any(penalties)
