"""Log-probabilities of prompt tokens.

Legend: T tokens of the step, N places that are scored, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sheaf_runtime.worker.batch import Row, ScoreTarget
from sheaf_runtime.worker.failures import together_or_alone
from sheaf_runtime.worker.logprobs import Logprobs, logprobs_of
from sheaf_runtime.worker.plan import ScoredTokens

# Logits are made for so many places at a time: a vocabulary wide, they are what is large.
PLACES = 64
Head = Callable[[Tensor], Tensor]  # from [N, C] to logits [N, V]


@dataclass(frozen=True)
class Scores:
    """Those of some requests. Tensors may still be on their way to the host."""

    targets: list[ScoreTarget]
    scores: Logprobs

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Scores:
        return replace(self, scores=self.scores.mapped(move))

    def scored(self) -> list[ScoredTokens]:
        listed = iter(self.scores.tolist([t.top for t in self.targets for _ in t.tokens_N]))
        return [
            ScoredTokens(
                req_id=target.request.req_id,
                epoch=target.request.epoch,
                logprobs=[next(listed) for _ in target.tokens_N],
            )
            for target in self.targets
        ]


def score(
    head: Head, hidden_TC: Tensor, targets: list[ScoreTarget], fail: Callable[[Row, str, Exception], None]
) -> list[Scores]:
    """``fail`` is told of a request that cannot be scored, and raises what the device raised."""
    return together_or_alone(
        "scores of prompts",
        partial(_together, head, hidden_TC, targets),
        lambda: (partial(_together, head, hidden_TC, [target]) for target in targets),
        lambda index, error: fail(targets[index].mirrored, "scored", error),
    )


def _together(head: Head, hidden_TC: Tensor, targets: list[ScoreTarget]) -> Scores:
    hidden_NC = torch.cat([hidden_TC[target.rows] for target in targets])
    tokens_N = torch.cat([target.tokens_N for target in targets])
    most = max(target.top for target in targets)
    pieces = [
        logprobs_of(head(hidden_NC[i : i + PLACES]), tokens_N[i : i + PLACES], most)
        for i in range(0, len(tokens_N), PLACES)
    ]
    names = Logprobs.__dataclass_fields__
    joined = Logprobs(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in names))
    return Scores(targets, joined)
