"""Which tokens the requests of a step may get now, as the engine tells the sampler. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenMasks:
    """A packed row for each of M requests, with drafts one more for each of these, in order: token t is bit
    t % 32 of word t // 32, 1 where it is allowed, as xgrammar writes them. Requests that get no token in the
    step are passed over. ``bits_MW`` stays as it is until the step has been collected."""

    req_ids: list[int]
    bits_MW: npt.NDArray[np.int32]


def masked_rows(
    masks: TokenMasks, rows: Sequence[tuple[int, int]], vocab_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32] | None]:
    """Which of these rows of a step have a mask, by their places, and these masks; None: there are none. A
    row is a request, and how many of its drafts come before."""
    given = {}
    seen: Counter[int] = Counter()
    for m, req_id in enumerate(masks.req_ids):
        given[req_id, seen[req_id]] = m
        seen[req_id] += 1
    pairs = [(s, given[row]) for s, row in enumerate(rows) if row in given]
    if not pairs:
        return np.empty(0, np.int64), None
    width = packed_width(vocab_size)
    if masks.bits_MW.shape[1] != width:
        raise ValueError(f"a token mask has {masks.bits_MW.shape[1]} words, the vocabulary needs {width}")
    masked, chosen = np.array(pairs).T
    return masked, masks.bits_MW[chosen]


def packed_width(vocab_size: int) -> int:
    """Words of a row."""
    return -(-vocab_size // 32)
