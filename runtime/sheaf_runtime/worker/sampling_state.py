"""What the running requests want of the sampler, by row of the worker's mirror and from step to step.

It is made when a request enters, where whatever is wrong with it concerns nobody else. A step then picks the
rows that it needs, without a look at single requests, and adds the tokens it has chosen. Steps are told what
they want ahead of their turn; what lives on the device is written in turn.

Legend: R rows, S requests that get a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.adjust import BIASED, IN_PROMPT, PENALISED, Adjustments
from sheaf_runtime.worker.bad_words import BadWords, BadWordTable
from sheaf_runtime.worker.masks import TokenMasks, masked_rows
from sheaf_runtime.worker.plan import NewRequest
from sheaf_runtime.worker.sampler import SamplingRows, as_seed, uniform
from sheaf_runtime.worker.step_buffer import to_device

Int64 = npt.NDArray[np.int64]
ROW = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("min_p", np.float32),
        ("seed", np.uint64),
        ("repetition", np.float32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("prompt", np.int64),  # tokens
        ("free_from", np.int64),  # output position from which on end tokens may come; 0: they always may
        ("biased", np.bool_),
        ("penalised", np.bool_),
    ]
)
GREEDY = np.array((0, 0, 1, 0, 0, 1, 0, 0, 0, 0, False, False), ROW)


@dataclass(frozen=True)
class RowWrite:
    """What the device must have in a row from a step on."""

    row: int
    bias_V: npt.NDArray[np.float32] | None
    history_V: npt.NDArray[np.int32] | None


class SamplingState:
    """``mirror_RL`` holds the tokens of each row, ``history_RV`` how often each token came out of it (and
    ``IN_PROMPT``), ``bias_RV`` what is added to its logits: -inf for what must not come now."""

    def __init__(
        self, *, max_num_seqs: int, vocab_size: int, eos_token_ids: tuple[int, ...], mirror_RL: Tensor
    ) -> None:
        self._vocab = vocab_size
        self._eos = eos_token_ids
        self._mirror_RL = mirror_RL
        self._rows = np.full(max_num_seqs, GREEDY)
        self._waiting: dict[int, SamplingParams] = {}  # rows whose end tokens must not come yet
        # Most want nothing of their logits, many are greedy: then a step does not look at single rows.
        self._random: set[int] = set()
        self._adjusted: set[int] = set()
        self._bad_words = BadWordTable(mirror_RL.shape[1])
        shape, device = (max_num_seqs, vocab_size), mirror_RL.device
        # On CPU the memory is taken page by page, as rows need it.
        self._history_RV = torch.zeros(shape, dtype=torch.int32, device=device)
        self._bias_RV = torch.zeros(shape, dtype=torch.float32, device=device)
        self._writes: list[RowWrite] = []
        self._nothing = self._wanted(np.empty(0, np.int64), np.empty(0, np.int64), None)

    def enter(self, row: int, request: NewRequest) -> None:
        """Raises whatever this request's data make it raise; the row is greedy then."""
        self.leave(row)
        s, prompt = request.sampling, request.num_prompt_tokens
        ends = (*s.stop_token_ids, *(() if s.ignore_eos else self._eos))
        waits = bool(ends) and len(request.token_ids) - prompt < s.min_tokens
        bias_V = token_bias(s, self._vocab, ends if waits else ())
        penalised = s.repetition_penalty != 1 or bool(s.frequency_penalty or s.presence_penalty)
        made = np.array(
            (
                0.0 if s.greedy else s.temperature,
                s.top_k,
                s.top_p,
                s.min_p,
                as_seed(s.seed or 0),
                s.repetition_penalty,
                s.frequency_penalty,
                s.presence_penalty,
                prompt,
                s.min_tokens if waits else 0,
                bias_V is not None,
                penalised,
            ),
            ROW,
        )
        history_V = _history(request, self._vocab) if penalised else None
        self._bad_words.enter(row, s.bad_words)
        if waits:
            self._waiting[row] = s
        if bias_V is not None or history_V is not None:
            self._writes.append(RowWrite(row, bias_V, history_V))
        self._rows[row] = made
        if not s.greedy:
            self._random.add(row)
        if penalised or bias_V is not None or waits or s.bad_words:
            self._adjusted.add(row)

    def leave(self, row: int) -> None:
        """A row that wants nothing: greedy."""
        self._rows[row] = GREEDY
        self._waiting.pop(row, None)
        self._bad_words.leave(row)
        self._random.discard(row)
        self._adjusted.discard(row)

    def parameters(self, rows_S: Int64, length_S: Int64) -> SamplingRows | None:
        """``length_S``: tokens so far, the new one's place. None: every running request is greedy."""
        if not self._random:
            return None
        picked = self._rows[rows_S]
        return SamplingRows(
            temperature=_column(picked, "temperature"),
            top_k=np.minimum(picked["top_k"], self._vocab),
            top_p=_column(picked, "top_p"),
            min_p=_column(picked, "min_p"),
            uniform=uniform(picked["seed"], length_S - picked["prompt"]),
        )

    def adjustments(self, rows_S: Int64, length_S: Int64) -> Adjustments:
        if not self._adjusted:
            return self._nothing
        picked = self._rows[rows_S]
        position_S = length_S - picked["prompt"]
        due = (picked["free_from"] > 0) & (position_S >= picked["free_from"])
        if due.any():
            for row in set(rows_S[due].tolist()):  # each request once
                self._free(row)
        return self._wanted(rows_S, length_S, self._bad_words.find(rows_S, position_S, length_S))

    def masked(
        self, wanted: Adjustments, rows: list[tuple[int, int]], masks: TokenMasks | None
    ) -> Adjustments:
        """What a step wants, and its masks, which come last. ``rows``: the request of each of its rows, and
        how many of its drafts come before."""
        if masks is None:
            return wanted
        masked, bits_MW = masked_rows(masks, rows, self._vocab)
        if bits_MW is None:
            return wanted
        if not len(wanted.rows_S):
            wanted = self._without_wishes(len(rows))
        return replace(wanted, masked=masked, bits_MW=bits_MW)

    def _without_wishes(self, count: int) -> Adjustments:
        none, one = np.zeros(count, np.float32), np.ones(count, np.float32)
        row, place = np.zeros(count, np.int32), np.zeros(count, np.int64)
        return replace(
            self._nothing,
            rows_S=row,
            flags_S=row,
            repetition_S=one,
            frequency_S=none,
            presence_S=none,
            first_S=place,
            length_S=place,
        )

    def _wanted(self, rows_S: Int64, length_S: Int64, bad_words: BadWords | None) -> Adjustments:
        picked = self._rows[rows_S]
        # Only a repetition penalty asks about the prompt.
        first_S = np.where(picked["repetition"] != 1, 0, picked["prompt"])
        return Adjustments(
            mirror_RL=self._mirror_RL,
            history_RV=self._history_RV,
            bias_RV=self._bias_RV,
            rows_S=rows_S.astype(np.int32),
            flags_S=(BIASED * picked["biased"] + PENALISED * picked["penalised"]).astype(np.int32),
            repetition_S=_column(picked, "repetition"),
            frequency_S=_column(picked, "frequency"),
            presence_S=_column(picked, "presence"),
            first_S=first_S,
            length_S=length_S,
            bad_words=bad_words,
            masked=np.empty(0, np.int64),
            bits_MW=None,
        )

    def _free(self, row: int) -> None:
        """End tokens may come from now on."""
        bias_V = token_bias(self._waiting[row], self._vocab)
        del self._waiting[row]
        if bias_V is not None:
            self._writes.append(RowWrite(row, bias_V, None))
        self._rows["biased"][row], self._rows["free_from"][row] = bias_V is not None, 0

    def take_writes(self) -> list[RowWrite]:
        """What was told since the last time, to be written when the step that it was told for begins."""
        writes, self._writes = self._writes, []
        return writes

    # --- in the order of the steps on the device ----------------------------------------------------------

    def write(self, writes: list[RowWrite]) -> None:
        for write in writes:
            if write.bias_V is not None:
                self._bias_RV[write.row] = to_device(write.bias_V, self._bias_RV.device)
            if write.history_V is not None:
                self._history_RV[write.row] = to_device(write.history_V, self._history_RV.device)

    def count(self, wanted: Adjustments, tokens_S: Tensor) -> None:
        """Tokens that have come out, one a row; -1 for none."""
        if not len(wanted.rows_S):
            return
        penalised = np.flatnonzero(wanted.flags_S & PENALISED)
        if penalised.size:
            starts = wanted.rows_S[penalised].astype(np.int64) * self._vocab
            index, starts_P = (to_device(array, tokens_S.device) for array in (penalised, starts))
            at = starts_P + tokens_S[index].clamp(min=0)
            self._history_RV.view(-1).index_add_(0, at, torch.ones_like(at, dtype=torch.int32))


def token_bias(
    sampling: SamplingParams, vocab: int, withheld: tuple[int, ...] = ()
) -> npt.NDArray[np.float32] | None:
    """What is added to each token's logit, [V], or None. ``withheld`` tokens must not come."""
    forbidden = [word[0] for word in sampling.bad_words if len(word) == 1] + list(withheld)
    if not sampling.logit_bias and not forbidden and sampling.allowed_token_ids is None:
        return None
    bias = np.zeros(vocab, np.float32)
    if sampling.allowed_token_ids is not None:
        bias[:] = -np.inf
        bias[list(sampling.allowed_token_ids)] = 0
    for token, value in sampling.logit_bias.items():
        bias[token] += value
    bias[forbidden] = -np.inf
    return bias


def _history(request: NewRequest, vocab: int) -> npt.NDArray[np.int32]:
    ids = np.array(request.token_ids, np.int64)
    prompt, output = ids[: request.num_prompt_tokens], ids[request.num_prompt_tokens :]
    history = np.bincount(output, minlength=vocab).astype(np.int32)
    history[prompt] |= IN_PROMPT
    return history


def _column(rows: npt.NDArray[np.void], name: str) -> npt.NDArray[Any]:
    return rows[name].copy()  # torch takes no field of a record
