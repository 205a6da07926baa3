"""What requests want of their logits before temperature: biases, bans, masks, penalties, in plain torch.

The order is vLLM's: masks and biases, then penalties. All of it lives on the device: penalties work on the
tokens of the worker's mirror and the counts of ``worker.sampling_state``, so that a token which the host has
not seen yet counts. A penalty touches the tokens of the history alone: a vocabulary is much longer.

Legend: R rows of the mirror, S requests that get a token, M of them with a mask, V vocabulary, L tokens of a
row, H penalised tokens, B biased rows, W words of a packed mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.worker.bad_words import BadWords, ban

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
IN_PROMPT = 1 << 30  # a bit above every count
BIASED, PENALISED = 1, 2  # flags of a row


@dataclass(frozen=True)
class Adjustments:
    """Of S rows of the step, ``rows_S`` of the mirror. ``history_RV`` counts where ``penalised_S`` says so,
    ``bias_RV`` where ``biased_S`` does; penalised are the tokens in the mirror from ``first_S`` to
    ``length_S``. ``masked`` rows of S may only get what ``bits_MW`` allow."""

    mirror_RL: Tensor
    history_RV: Tensor
    bias_RV: Tensor
    rows_S: Int32
    flags_S: Int32  # BIASED, PENALISED
    repetition_S: Float32
    frequency_S: Float32
    presence_S: Float32
    first_S: Int64
    length_S: Int64
    bad_words: BadWords | None
    masked: Int64
    bits_MW: npt.NDArray[np.int32] | None

    PACKED: ClassVar[int] = 5  # arrays of 4 bytes a row that ``packed`` puts somewhere

    @property
    def biased_S(self) -> Bool:
        biased_S: Bool = (self.flags_S & BIASED) != 0
        return biased_S

    @property
    def penalised_S(self) -> Bool:
        penalised_S: Bool = (self.flags_S & PENALISED) != 0
        return penalised_S

    @property
    def none(self) -> bool:
        """Nobody wants anything."""
        if not len(self.rows_S):
            return self.bits_MW is None
        return not self.flags_S.any() and self.bad_words is None and self.bits_MW is None

    def one(self, index: int) -> Adjustments:
        if not len(self.rows_S):
            return self
        part = slice(index, index + 1)
        arrays = ("rows_S", "flags_S", "repetition_S", "frequency_S", "presence_S", "first_S", "length_S")
        return replace(
            self,
            bad_words=None if self.bad_words is None else self.bad_words.of(index),
            **{name: getattr(self, name)[part] for name in arrays},
        )

    def packed(self, put: Callable[[npt.NDArray[Any], npt.DTypeLike], npt.NDArray[Any]]) -> Adjustments:
        """The same where ``put`` has laid what a kernel reads."""
        if not len(self.rows_S):
            return self
        return replace(
            self,
            rows_S=put(self.rows_S, np.int32),
            flags_S=put(self.flags_S, np.int32),
            repetition_S=put(self.repetition_S, np.float32),
            frequency_S=put(self.frequency_S, np.float32),
            presence_S=put(self.presence_S, np.float32),
        )


def adjust(logits_SV: Tensor, wanted: Adjustments) -> Tensor:
    """The adjusted logits; ``logits_SV`` may be overwritten. Rows that want nothing keep their values."""
    if wanted.none:
        return logits_SV
    logits_SV = logits_SV.float().contiguous()  # sums must not round as bfloat16 does
    biased = np.flatnonzero(wanted.biased_S)
    if biased.size:
        bias_BV = wanted.bias_RV.index_select(0, _there(wanted.rows_S[biased], logits_SV))
        logits_SV.index_add_(0, _there(biased, logits_SV), bias_BV)
    if wanted.bits_MW is not None:
        banned_MV = _banned(wanted.bits_MW, logits_SV)
        if len(banned_MV) == len(logits_SV):
            logits_SV.masked_fill_(banned_MV, -torch.inf)
        else:
            rows = _there(wanted.masked, logits_SV)
            logits_SV[rows] = logits_SV.index_select(0, rows).masked_fill_(banned_MV, -torch.inf)
    if wanted.bad_words is not None:
        ban(logits_SV, wanted.mirror_RL.view(-1), wanted.bad_words)
    penalised = np.flatnonzero(wanted.penalised_S)
    if penalised.size:
        _penalise(logits_SV, penalised, wanted)
    return logits_SV


def _penalise(logits_SV: Tensor, chosen: Int64, wanted: Adjustments) -> None:
    """A token that is there twice is written twice, with the same value."""
    vocab, width = logits_SV.shape[1], wanted.mirror_RL.shape[1]
    first, rows = wanted.first_S[chosen], wanted.rows_S[chosen].astype(np.int64)
    count = wanted.length_S[chosen] - first
    owner_H = np.repeat(np.arange(len(chosen)), count)
    begin = np.cumsum(count) - count
    cells_H = np.arange(len(owner_H)) + (rows * width + first - begin)[owner_H]
    token_H = wanted.mirror_RL.view(-1)[_there(cells_H, logits_SV)]
    history_H = wanted.history_RV.view(-1)[_there((rows * vocab)[owner_H], logits_SV) + token_H]
    count_H = history_H & (IN_PROMPT - 1)
    repetition_H, frequency_H, presence_H = (
        _there(values[chosen][owner_H], logits_SV)
        for values in (wanted.repetition_S, wanted.frequency_S, wanted.presence_S)
    )
    flat, at = logits_SV.view(-1), _there((chosen * vocab)[owner_H], logits_SV) + token_H
    value = flat[at]
    value = torch.where(value > 0, value / repetition_H, value * repetition_H)
    flat[at] = value - frequency_H * count_H - presence_H * (count_H > 0)


def _banned(bits_MW: npt.NDArray[np.int32], like: Tensor) -> Tensor:
    """Bool [M, V]: what a packed mask does not allow."""
    if like.is_cuda:
        shift = torch.arange(32, device=like.device, dtype=torch.int32)
        bits = (_there(bits_MW, like)[:, :, None] >> shift) & 1
        return bits.view(len(bits_MW), -1)[:, : like.shape[1]] == 0
    banned = np.unpackbits((~bits_MW).view(np.uint8), axis=1, count=like.shape[1], bitorder="little")
    return torch.from_numpy(banned).view(torch.bool)


def _there(array: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device, non_blocking=True)
