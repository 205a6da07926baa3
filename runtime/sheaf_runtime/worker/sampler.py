"""From logits to one token a request: greedy, temperature, min-p, top-k, top-p.

Randomness is a pure function of (seed, output position): one uniform number picks from the cumulative
distribution. There is no generator whose state could depend on the rest of the batch, on preemption, or on
how steps were cut.

Legend: S requests that get a token, V vocabulary, N candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# top-p alone looks at this many of the likeliest tokens first: sorting the whole vocabulary costs more
# than the forward pass of a small model. Rows whose top-p they do not reach look at more, step by step.
FIRST_LOOK, LOOK_FURTHER = 256, 8
BUCKET = 128  # tokens of the vocabulary whose mass is added up first where nothing is filtered


@dataclass(frozen=True)
class SamplingRows:
    """Parameters of S requests. ``temperature`` 0 is greedy; ``top_k`` 0 or less, ``top_p`` 1 and ``min_p`` 0
    keep everything; ``uniform`` is in [0, 1)."""

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.integer]
    top_p: npt.NDArray[np.float64]
    min_p: npt.NDArray[np.float32]
    uniform: npt.NDArray[np.float64]

    PACKED: ClassVar[int] = 5  # arrays of at most 8 bytes a row that ``packed`` puts somewhere

    def one(self, index: int) -> SamplingRows:
        return _select(self, slice(index, index + 1))

    def packed(self, put: Callable[[npt.NDArray[Any], npt.DTypeLike], npt.NDArray[Any]]) -> SamplingRows:
        """The same where ``put`` has laid it, as a kernel wants it."""
        return SamplingRows(
            temperature=put(self.temperature, np.float32),
            top_k=put(self.top_k, np.int32),
            top_p=put(self.top_p, np.float64),
            min_p=put(self.min_p, np.float32),
            uniform=put(self.uniform, np.float64),
        )


def as_seed(seed: int) -> int:
    """Any integer is a seed: that of its lowest 64 bits."""
    return seed & 0xFFFFFFFFFFFFFFFF


def uniform(seed_S: npt.NDArray[np.uint64], position_S: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each (seed, output position): splitmix64's finaliser applied to both in turn."""
    bits = _mix(_mix(seed_S) + position_S.astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    """Token ids [S] (int64), -1 for a row without a largest logit that is a number. ``logits_SV`` may be
    overwritten. Greedy rows cost one pass."""
    best_S, tokens_S = likeliest(logits_SV)
    valid_S = best_S.isfinite()
    random = rows.temperature > 0
    if random.any():
        if logits_SV.is_cuda or not valid_S.all():  # on the GPU, asking would wait for it
            logits_SV.masked_fill_(~valid_S[:, None], 0.0)
        keep_likely(logits_SV, best_S.masked_fill(~valid_S, 0.0), rows)
        vocab = logits_SV.shape[1]
        filtered = random & (((rows.top_k > 0) & (rows.top_k < vocab)) | (rows.top_p < 1))
        for mask, choose in ((random & ~filtered, _unfiltered), (filtered, _filtered)):
            chosen = np.flatnonzero(mask)
            if chosen.size == len(mask):
                tokens_S = choose(logits_SV, rows)
            elif chosen.size:
                index = torch.from_numpy(chosen).to(logits_SV.device)
                tokens_S[index] = choose(logits_SV[index], _select(rows, chosen))
    return torch.where(valid_S, tokens_S, -1)


def greedy(logits_SV: Tensor) -> Tensor:
    """``sample`` where every row is greedy."""
    best_S, tokens_S = likeliest(logits_SV)
    return torch.where(best_S.isfinite(), tokens_S, -1)


def likeliest(logits_SV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its index: the first where several are largest, the first NaN where
    there is one. On a CPU numpy finds it ten times as fast as torch, whose search has no vectors."""
    if logits_SV.is_cuda:
        best_S, tokens_S = logits_SV.max(dim=-1)
        return best_S, tokens_S
    tokens_S = torch.from_numpy(logits_SV.float().numpy().argmax(-1))
    return logits_SV.gather(1, tokens_S[:, None]).squeeze(1), tokens_S


def keep_likely(logits_SV: Tensor, best_S: Tensor, rows: SamplingRows) -> None:
    """min-p: write -inf over what is less likely than ``min_p`` times the likeliest token of its row."""
    if (rows.min_p > 0).any():
        least_S = best_S.float() + torch.from_numpy(likely_margin(rows)).to(logits_SV.device)
        logits_SV.masked_fill_(logits_SV < least_S[:, None], -torch.inf)


def likely_margin(rows: SamplingRows) -> npt.NDArray[np.float32]:
    """min-p as a distance from the largest logit, 0 or less: whatever is further below is dropped."""
    with np.errstate(divide="ignore", invalid="ignore"):
        below: npt.NDArray[np.float32] = rows.temperature * np.log(rows.min_p)
    return np.where(rows.temperature > 0, below, np.float32(-np.inf))


def _select(rows: SamplingRows, chosen: npt.NDArray[np.intp] | slice) -> SamplingRows:
    return SamplingRows(*(getattr(rows, field.name)[chosen] for field in fields(SamplingRows)))


def _unfiltered(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    """Pick a bucket of the vocabulary by its mass, then a token within: one cheap pass over the row."""
    probs = _scaled(logits_SV, rows).softmax(-1)
    buckets_SBN = F.pad(probs, (0, -probs.shape[1] % BUCKET)).view(len(probs), -1, BUCKET)
    mass = buckets_SBN.sum(-1).double()
    cumulative = mass.cumsum(-1)
    point = _points(rows, cumulative)
    bucket = _first_beyond(cumulative, point)[:, None]
    inside = buckets_SBN.gather(1, bucket[:, :, None].expand(-1, 1, BUCKET)).squeeze(1).double().cumsum(-1)
    rest = point - (cumulative - mass).gather(1, bucket)
    return bucket.squeeze(1) * BUCKET + _first_beyond(inside, rest)


def _filtered(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    """Work on the likeliest tokens in descending order; top-p counts within what top-k kept."""
    vocab = logits_SV.shape[1]
    top_k = np.where(rows.top_k > 0, np.minimum(rows.top_k, vocab), vocab)
    look = max([FIRST_LOOK, *top_k[top_k < vocab]])
    scaled = _scaled(logits_SV, rows)
    whole = scaled.logsumexp(-1, keepdim=True).double() if (top_k == vocab).any() else scaled[:, :1].double()
    tokens = torch.empty(logits_SV.shape[0], dtype=torch.int64, device=logits_SV.device)
    left = np.arange(len(top_k))
    while left.size:
        look = min(look, vocab)
        index = torch.from_numpy(left).to(logits_SV.device)
        few, kept = _select(rows, left), torch.from_numpy(top_k[left]).to(logits_SV.device)[:, None]
        values, ids = scaled[index].topk(look, dim=-1)
        values = values.double().masked_fill(torch.arange(look, device=kept.device) >= kept, -torch.inf)
        total = torch.where(kept < vocab, values.logsumexp(-1, keepdim=True), whole[index])
        probs = (values - total).exp()
        tokens[index] = _nucleus(probs, ids, few)
        covered = probs.sum(-1).cpu().numpy() >= few.top_p
        left = left[~covered & (top_k[left] > look)]
        look *= LOOK_FURTHER
    return tokens


def _nucleus(probs_SN: Tensor, ids_SN: Tensor, rows: SamplingRows) -> Tensor:
    """Draw among tokens in descending order; one stays while those before it have not reached top-p."""
    top_p = torch.from_numpy(rows.top_p).to(probs_SN.device)[:, None]
    cumulative = probs_SN.masked_fill(probs_SN.cumsum(-1) - probs_SN >= top_p, 0.0).cumsum(-1)
    picked = _first_beyond(cumulative, _points(rows, cumulative))
    return ids_SN.gather(1, picked[:, None]).squeeze(1)


def _scaled(logits: Tensor, rows: SamplingRows) -> Tensor:
    return logits.float() / torch.from_numpy(rows.temperature).to(logits.device)[:, None]


def _points(rows: SamplingRows, cumulative_SN: Tensor) -> Tensor:
    """Where on the row's cumulative mass its random number falls: [S, 1]."""
    return torch.from_numpy(rows.uniform).to(cumulative_SN.device)[:, None] * cumulative_SN[:, -1:]


def _first_beyond(cumulative_SN: Tensor, point_S1: Tensor) -> Tensor:
    """Index [S] of the first entry whose cumulative mass exceeds the point."""
    picked = torch.searchsorted(cumulative_SN, point_S1, right=True)
    # Rounding may put the point on the row's total: step back to the last entry that has mass.
    last = torch.searchsorted(cumulative_SN, cumulative_SN[:, -1:].contiguous())
    return torch.minimum(picked, last).squeeze(1)
