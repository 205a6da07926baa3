"""A worker's sampling state with requests of the test's own making, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.adjust import Adjustments
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import NewRequest
from sheaf_runtime.worker.sampling_state import SamplingState


@dataclass(frozen=True)
class Held:
    """A request in row ``row``; ``tokens`` are prompt and output."""

    row: int
    tokens: list[int]
    num_prompt: int
    sampling: SamplingParams


class SamplerRows:
    """``enter`` requests, ``take`` their next tokens, and ask for the step's ``adjustments``."""

    def __init__(self, *, vocab: int, rows: int = 16, width: int = 64, eos: tuple[int, ...] = (2,)) -> None:
        self._mirror_RL = torch.zeros(rows, width, dtype=torch.int32)
        self.state = SamplingState(
            max_num_seqs=rows, vocab_size=vocab, eos_token_ids=eos, mirror_RL=self._mirror_RL
        )
        self.held: list[Held] = []

    def enter(self, tokens: list[int], num_prompt: int, sampling: SamplingParams) -> Held:
        row = len(self._mirror_RL) - 1 - len(self.held)  # not in the order of the step
        request = NewRequest(
            req_id=row,
            epoch=0,
            token_ids=tokens,
            num_prompt_tokens=num_prompt,
            num_computed_tokens=0,
            sampling=sampling,
            block_ids=[],
        )
        self._mirror_RL[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.state.enter(row, request)
        self.state.write(self.state.take_writes())
        self.held.append(Held(row, list(tokens), num_prompt, sampling))
        return self.held[-1]

    def take(self, tokens: list[int]) -> None:
        """One for each request."""
        for held, token in zip(self.held, tokens, strict=True):
            self._mirror_RL[held.row, len(held.tokens)] = token
            held.tokens.append(token)
        self.state.count(self.adjustments(), torch.tensor(tokens))

    def adjustments(self, masks: TokenMasks | None = None) -> Adjustments:
        length_S = np.array([len(held.tokens) for held in self.held])
        wanted = self.state.adjustments(self._rows, length_S)
        self.state.write(self.state.take_writes())
        return self.state.masked(wanted, [(held.row, 0) for held in self.held], masks)

    @property
    def _rows(self) -> npt.NDArray[np.int64]:
        return np.array([held.row for held in self.held])


def packed(allowed_MV: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """As xgrammar packs them."""
    padded = np.pad(allowed_MV, ((0, 0), (0, -allowed_MV.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)
