"""Which tokens the requests of a step may get now, as the engine tells the sampler. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenMasks:
    """A packed row for each of M requests: token t is bit t % 32 of word t // 32, 1 where it is allowed, as
    xgrammar writes them. Requests that get no token in the step are passed over. ``bits_MW`` stays as it is
    until the step has been collected."""

    req_ids: list[int]
    bits_MW: npt.NDArray[np.int32]


def packed_width(vocab_size: int) -> int:
    """Words of a row."""
    return -(-vocab_size // 32)
