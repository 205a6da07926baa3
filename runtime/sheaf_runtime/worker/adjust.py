"""What requests want of their logits before temperature: biases, bans, penalties. One pass over the
step's rows, on whichever device they are; rows that ask for nothing are not touched.

The order is vLLM's: masks and biases, then penalties. Penalties work on the tokens of the worker's mirror, so
that a token which the host has not seen yet counts, and nothing depends on preemption or the cut of steps.

Legend: S requests that get a token, V vocabulary, H penalised tokens, W bad words, L their length but one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.protocol.sampling import SamplingParams

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Penalised:
    """Tokens of S rows' histories: ``rows_H`` says whose, ``cells_H`` where they are in the mirror."""

    rows_H: Int64
    cells_H: Int64


@dataclass(frozen=True)
class BadWords:
    """``last_W`` must not follow ``prefix_WL``, the tokens now in ``cells_WL`` (-1: no token, matches)."""

    rows_W: Int64
    last_W: Int64
    prefix_WL: Int64
    cells_WL: Int64


@dataclass(frozen=True)
class Adjustments:
    """Row numbers are those of S. ``banned`` lists (row, token ids), ``bias`` (row, logits to add [V])."""

    banned: Sequence[tuple[int, tuple[int, ...]]] = ()
    bias: Sequence[tuple[int, Tensor]] = ()
    bad_words: BadWords | None = None
    seen: Penalised | None = None  # prompt and output, for the repetition penalty
    generated: Penalised | None = None  # output, for the other two
    repetition_S: Float32 = field(default_factory=lambda: np.ones(0, np.float32))
    frequency_S: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    presence_S: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))


def token_bias(sampling: SamplingParams, vocab: int, device: torch.device) -> Tensor | None:
    """What is added to each token's logit for as long as the request lives, or None. Float32 [V]."""
    forbidden = [word[0] for word in sampling.bad_words if len(word) == 1]
    if not sampling.logit_bias and not forbidden and sampling.allowed_token_ids is None:
        return None
    bias = np.zeros(vocab, np.float32)
    if sampling.allowed_token_ids is not None:
        bias[:] = -np.inf
        bias[list(sampling.allowed_token_ids)] = 0
    for token, value in sampling.logit_bias.items():
        bias[token] += value
    bias[forbidden] = -np.inf
    return torch.from_numpy(bias).to(device)


def adjust(logits_SV: Tensor, mirror: Tensor, wanted: Adjustments) -> Tensor:
    """The adjusted logits; ``logits_SV`` may be overwritten. ``mirror`` holds token ids by cell."""
    device, vocab = logits_SV.device, logits_SV.shape[1]

    def there(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    if wanted.bias or wanted.seen or wanted.generated:
        logits_SV = logits_SV.float().contiguous()  # sums must not round as bfloat16 does
    if wanted.bias:
        rows = there(np.array([row for row, _ in wanted.bias]))
        logits_SV.index_add_(0, rows, torch.stack([bias for _, bias in wanted.bias]))
    if (words := wanted.bad_words) is not None:
        want, cells = there(words.prefix_WL), there(words.cells_WL)
        found = mirror[cells.clamp(min=0)].long()
        ends = ((found == want) | (cells < 0)).all(-1)
        ban_W = torch.where(ends, -torch.inf, 0.0).to(logits_SV.dtype)
        logits_SV.index_put_((there(words.rows_W), there(words.last_W)), ban_W, accumulate=True)
    for row, ids in wanted.banned:
        logits_SV[row, list(ids)] = -torch.inf
    flat = logits_SV.view(-1)
    if (seen := wanted.seen) is not None:
        at = there(seen.rows_H) * vocab + mirror[there(seen.cells_H)]
        value, by = flat[at], there(wanted.repetition_S[seen.rows_H])
        # A token that is there twice is written twice, with the same value.
        flat[at] = torch.where(value > 0, value / by, value * by)
    if (generated := wanted.generated) is not None:
        at = there(generated.rows_H) * vocab + mirror[there(generated.cells_H)]
        flat.index_put_((at,), -there(wanted.frequency_S[generated.rows_H]), accumulate=True)
        flat[at] = flat[at] - there(wanted.presence_S[generated.rows_H])
    return logits_SV
