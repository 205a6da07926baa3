"""Log-probabilities by the model's own logits: of sampled tokens, and of prompts.

Legend: N places, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sheaf_runtime.protocol.messages import TokenLogprobs

# Logits of a long prompt are made for so many places at a time: a vocabulary wide, they are what is large.
PLACES = 64
LOWEST = -9999.0  # JSON has no infinity


@dataclass(frozen=True)
class Logprobs:
    """Of N places. Tensors may still be on their way to the host."""

    tokens_N: Tensor
    logprob_N: Tensor
    rank_N: Tensor
    top_ids_NK: Tensor
    top_logprobs_NK: Tensor

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Logprobs:
        return Logprobs(*(move(getattr(self, name)) for name in self.__dataclass_fields__))

    def tolist(self, counts: Sequence[int]) -> list[TokenLogprobs]:
        """``counts``: how many of the likeliest each place asked for."""
        columns = (self.tokens_N, self.logprob_N, self.rank_N, self.top_ids_NK, self.top_logprobs_NK)
        rows = zip(counts, *(column.tolist() for column in columns), strict=True)
        return [
            TokenLogprobs(token, max(value, LOWEST), rank, ids[:k], [max(v, LOWEST) for v in top[:k]])
            for k, token, value, rank, ids, top in rows
        ]


def logprobs_of(logits_NV: Tensor, tokens_N: Tensor, most: int) -> Logprobs:
    """``most``: how many of the likeliest tokens are reported beside each token."""
    all_NV = logits_NV.float().log_softmax(-1)
    own_N1 = all_NV.gather(1, tokens_N.long()[:, None])
    rank_N = (all_NV > own_N1).sum(-1) + 1
    values_NK, ids_NK = all_NV.topk(min(most, all_NV.shape[1]), dim=-1)
    return Logprobs(tokens_N, own_N1.squeeze(1), rank_N, ids_NK, values_NK)


def score(logits: Callable[[Tensor], Tensor], hidden_NC: Tensor, tokens_N: Tensor, most: int) -> Logprobs:
    """Log-probabilities of the tokens that followed N places of prompts, piece by piece."""
    pieces = [
        logprobs_of(logits(hidden_NC[i : i + PLACES]), tokens_N[i : i + PLACES], most)
        for i in range(0, len(tokens_N), PLACES)
    ]
    names = Logprobs.__dataclass_fields__
    return Logprobs(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in names))
