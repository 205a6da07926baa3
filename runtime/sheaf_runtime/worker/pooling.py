"""From hidden states to the vectors of pooling requests.

A mean is summed up over the chunks of a prompt, in float32, so it is the same however the steps were cut.
What a request gets depends on no other request of the step.

Legend: T tokens of the step, C hidden size, N requests whose prompt ends in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.pooling.spec import PoolingSpec
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.worker.plan import PooledVector, Scheduled

NO_NUMBERS = "the model's hidden states for this input are not numbers"


@dataclass(frozen=True)
class PoolTarget:
    """A pooling request of the step: its rows of T are ``first`` to ``last``."""

    item: Scheduled
    params: PoolingParams
    num_tokens: int  # of the whole prompt
    first: int
    last: int


class Pooler:
    """``score_weight`` is the checkpoint's own score matrix [1, C], ``logits`` the model's projection to the
    vocabulary; a spec that scores needs one of them."""

    def __init__(
        self, spec: PoolingSpec, *, score_weight: Tensor | None, logits: Callable[[Tensor], Tensor]
    ) -> None:
        self._spec = spec
        self._score_weight = score_weight
        self._logits = logits
        self._sums: dict[int, Tensor] = {}  # [C] of each prompt that is under way, by request

    def forget(self, ended: Sequence[int]) -> None:
        for req_id in ended:
            self._sums.pop(req_id, None)

    def pool(self, hidden_TC: Tensor, targets: Sequence[PoolTarget]) -> Pooled | None:
        """Takes in the step's hidden states; the vectors of the requests whose prompt ends here."""
        done = [target for target in targets if target.item.sample]
        if self._spec.mode == "mean":
            states = [self._mean(hidden_TC, target) for target in targets]
            rows = [state for target, state in zip(targets, states, strict=True) if target.item.sample]
        else:
            rows = [hidden_TC[target.last] for target in done]
        if not done:
            return None
        pooled_NC = torch.stack(rows)
        if self._spec.score is not None:
            made = [self._score(row, target) for row, target in zip(pooled_NC, done, strict=True)]
        else:
            made = [self._embedding(row, target) for row, target in zip(pooled_NC, done, strict=True)]
        return Pooled([target.item for target in done], [len(vector) for vector in made], torch.cat(made))

    def _mean(self, hidden_TC: Tensor, target: PoolTarget) -> Tensor:
        """Of all tokens so far."""
        total = hidden_TC[target.first : target.last + 1].float().sum(0)
        if target.item.start > 0:
            total += self._sums.pop(target.item.req_id)
        if target.item.sample:
            return total / target.num_tokens
        self._sums[target.item.req_id] = total
        return total

    def _embedding(self, pooled_C: Tensor, target: PoolTarget) -> Tensor:
        vector = pooled_C.float()[: target.params.dimensions]
        return F.normalize(vector, dim=0) if target.params.activate and self._spec.normalize else vector

    def _score(self, pooled_C: Tensor, target: PoolTarget) -> Tensor:
        head = self._spec.score
        assert head is not None
        if head.true_id is None:
            assert self._score_weight is not None
            score = F.linear(pooled_C.to(self._score_weight.dtype), self._score_weight).float()
        else:
            logits = self._logits(pooled_C[None]).float()[0]
            score = logits[head.true_id : head.true_id + 1]
            if head.false_id is not None:
                score = score - logits[head.false_id]
        return score.sigmoid() if target.params.activate and head.activation == "sigmoid" else score


@dataclass(frozen=True)
class Pooled:
    """Vectors of a step, one behind the other; they may still be on their way to the host."""

    items: Sequence[Scheduled]
    sizes: Sequence[int]
    numbers: Tensor

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Pooled:
        return Pooled(self.items, self.sizes, move(self.numbers))

    def tolist(self) -> list[PooledVector]:
        made = []
        for item, vector in zip(self.items, torch.split(self.numbers, list(self.sizes)), strict=True):
            fine = bool(vector.isfinite().all())
            made.append(
                PooledVector(
                    req_id=item.req_id,
                    epoch=item.epoch,
                    vector=vector.numpy().astype("<f4").tobytes() if fine else None,
                    error=None if fine else NO_NUMBERS,
                )
            )
        return made
