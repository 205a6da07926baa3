"""Log-probabilities by the model's own logits: of sampled tokens, and of prompts.

Legend: N places, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sheaf_runtime.protocol.messages import TokenLogprobs

LOWEST = -9999.0  # JSON has neither infinity nor NaN


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
            TokenLogprobs(token, _finite(value), rank, ids[:k], [_finite(v) for v in top[:k]])
            for k, token, value, rank, ids, top in rows
        ]


def logprobs_of(logits_NV: Tensor, tokens_N: Tensor, most: int) -> Logprobs:
    """``most``: how many of the likeliest tokens are reported beside each token."""
    all_NV = logits_NV.float().log_softmax(-1)
    own_N1 = all_NV.gather(1, tokens_N.long()[:, None])
    rank_N = (all_NV > own_N1).sum(-1) + 1
    values_NK, ids_NK = all_NV.topk(min(most, all_NV.shape[1]), dim=-1)
    return Logprobs(tokens_N, own_N1.squeeze(1), rank_N, ids_NK, values_NK)


def _finite(value: float) -> float:
    return value if value > LOWEST else LOWEST  # NaN is not
