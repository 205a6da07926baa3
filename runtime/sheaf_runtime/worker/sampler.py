"""From logits to one token a request: greedy, temperature, top-k, top-p.

Randomness is a pure function of (seed, output position): one uniform number picks from the cumulative
distribution. There is no generator whose state could depend on the rest of the batch, on preemption, or on
how steps were cut.

Legend: S requests that get a token, V vocabulary, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# top-p alone looks at this many of the likeliest tokens first: sorting the whole vocabulary costs more
# than the forward pass of a small model. Rows that they do not cover are sorted in full.
FIRST_LOOK = 1024


@dataclass(frozen=True)
class SamplingRows:
    """Parameters of S requests. ``temperature`` 0 is greedy, ``top_k`` 0 and ``top_p`` 1 keep everything;
    ``uniform`` is in [0, 1); ``banned`` lists (row, token ids) that must not come out."""

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    top_p: npt.NDArray[np.float64]
    uniform: npt.NDArray[np.float64]
    banned: list[tuple[int, tuple[int, ...]]]


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each (seed, output position): splitmix64's finaliser applied to both in turn."""
    seed = np.array([s & 0xFFFFFFFFFFFFFFFF for s in seeds], dtype=np.uint64)
    bits = _mix(_mix(seed) + np.array(positions, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    """Token ids [S] (int64). ``logits_SV`` may be overwritten. Greedy rows cost one argmax."""
    for row, ids in rows.banned:
        logits_SV[row, list(ids)] = -torch.inf
    random = rows.temperature > 0
    if not random.any():
        return logits_SV.argmax(dim=-1)
    vocab = logits_SV.shape[1]
    filtered = random & (((rows.top_k > 0) & (rows.top_k < vocab)) | (rows.top_p < 1))
    tokens_S = torch.empty(logits_SV.shape[0], dtype=torch.int64, device=logits_SV.device)
    for mask, choose in ((~random, _greedy), (random & ~filtered, _unfiltered), (filtered, _filtered)):
        chosen = np.flatnonzero(mask)
        if chosen.size:
            index = torch.from_numpy(chosen).to(logits_SV.device)
            tokens_S[index] = choose(logits_SV[index], _select(rows, chosen))
    return tokens_S


def _select(rows: SamplingRows, chosen: npt.NDArray[np.intp]) -> SamplingRows:
    return SamplingRows(
        rows.temperature[chosen], rows.top_k[chosen], rows.top_p[chosen], rows.uniform[chosen], banned=[]
    )


def _greedy(logits_SV: Tensor, _: SamplingRows) -> Tensor:
    return logits_SV.argmax(dim=-1)


def _unfiltered(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    probs = _probabilities(logits_SV, rows)
    return _draw(probs.cumsum(-1), rows)


def _filtered(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    """Work on the likeliest tokens in descending order; top-p counts within what top-k kept."""
    device, vocab = logits_SV.device, logits_SV.shape[1]
    top_k = np.where(rows.top_k > 0, np.minimum(rows.top_k, vocab), vocab)
    look = min(vocab, max([FIRST_LOOK, *top_k[top_k < vocab]]))
    values_SN, ids_SN = logits_SV.topk(look, dim=-1)
    # Probabilities of the candidates within what top-k keeps: the whole vocabulary where it keeps all.
    k = torch.from_numpy(top_k).to(device)[:, None]
    kept = torch.arange(look, device=device) < k
    scaled = _scaled(values_SN, rows).masked_fill(~kept, -torch.inf)
    total = torch.where(
        k < vocab, scaled.logsumexp(-1, keepdim=True), _scaled(logits_SV, rows).logsumexp(-1, keepdim=True)
    )
    probs = (scaled - total).exp()
    cumulative = probs.cumsum(-1)
    top_p = torch.from_numpy(rows.top_p).to(device)[:, None]
    short = (k > look) & (cumulative[:, -1:] < top_p)
    # A token stays while those before it have not reached top_p.
    probs = probs.masked_fill(cumulative - probs >= top_p, 0.0)
    picked = _draw(probs.cumsum(-1), rows)
    tokens = ids_SN.gather(1, picked[:, None]).squeeze(1)
    if look < vocab and bool(short.any()):
        again = np.flatnonzero(short.squeeze(1).cpu().numpy())
        index = torch.from_numpy(again).to(device)
        tokens[index] = _sorted_in_full(logits_SV[index], _select(rows, again))
    return tokens


def _sorted_in_full(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    probs, ids = _probabilities(logits_SV, rows).sort(dim=-1, descending=True, stable=True)
    top_p = torch.from_numpy(rows.top_p).to(logits_SV.device)[:, None]
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
    return ids.gather(1, _draw(probs.cumsum(-1), rows)[:, None]).squeeze(1)


def _scaled(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Logits over temperature in float64, in which 1e5 probabilities still add up to one."""
    temperature = torch.from_numpy(rows.temperature).to(logits.device)
    return logits.double() / temperature[:, None]


def _probabilities(logits_SV: Tensor, rows: SamplingRows) -> Tensor:
    return _scaled(logits_SV, rows).softmax(-1)


def _draw(cumulative_SN: Tensor, rows: SamplingRows) -> Tensor:
    """Index of the first entry whose cumulative mass exceeds ``uniform`` x the row's total."""
    total = cumulative_SN[:, -1:].contiguous()
    point = torch.from_numpy(rows.uniform).to(cumulative_SN.device)[:, None] * total
    picked = torch.searchsorted(cumulative_SN, point, right=True).squeeze(1)
    # uniform < 1, but rounding may put the point on the total: step back to the last entry with mass.
    last = torch.searchsorted(cumulative_SN, total).squeeze(1)
    return torch.minimum(picked, last)
