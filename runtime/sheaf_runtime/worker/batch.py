"""The worker's mirror of the running requests, and the step inputs built from it.

Each request owns a fixed row. Token ids live on the device, so that a sampled token is the next step's input
without a visit to the host; block tables and lengths live on the host, where plans arrive.

Legend: T tokens of the step, R requests of the step, P pages.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.adjust import Adjustments, BadWords, Penalised, adjust, token_bias
from sheaf_runtime.worker.plan import NewRequest, Scheduled, StepPlan
from sheaf_runtime.worker.sampler import SamplingRows, uniform

logger = logging.getLogger(__name__)
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupInputs:
    """Where one KV group's keys and values are. ``slot_mapping`` is page * block_size + slot. Entries of the
    table before a window's first page mean nothing."""

    block_table_RP: Int32
    slot_mapping_T: Int64


@dataclass(frozen=True)
class StepInputs:
    """One step's tokens, flattened, requests in an order of the batch's own: single tokens (decodes) first,
    shorter contexts first.

    ``context_len`` counts a request's tokens in the cache after this step. Host arrays are numpy, device
    tensors torch.
    """

    tokens_T: Tensor
    positions_T: Tensor
    prompt_lens_T: Tensor  # of the request that the token belongs to
    query_start: Int64  # [R + 1]
    context_len: Int64  # [R]
    groups: tuple[GroupInputs, ...]


@dataclass(frozen=True)
class SampleTargets:
    """The requests of the step that get a token: S of them.

    ``logit_rows_S`` are rows of T; ``cells_S`` is where each token goes in the mirror. ``logprobs`` has what
    each request asked for. ``failed`` names rows that could not be prepared, and why.
    """

    requests: list[Scheduled]
    logit_rows_S: Tensor
    cells_S: Tensor
    sampling: SamplingRows
    adjustments: Adjustments
    logprobs: list[int | None]
    failed: dict[int, str]


@dataclass(frozen=True)
class ScoreTargets:
    """Prompt tokens whose log-probabilities the step can tell: N places, those of a request together.

    ``logit_rows_N`` are rows of T; ``tokens_N`` follow them. ``counts`` and ``tops`` belong to ``requests``:
    how many places, and how many likely tokens beside each.
    """

    requests: list[Scheduled]
    counts: list[int]
    tops: list[int]
    logit_rows_N: Tensor
    tokens_N: Tensor


@dataclass
class _Row:
    """``bias`` is what ``adjust.token_bias`` made of it; ``failed`` says why it could not be prepared."""

    index: int
    epoch: int
    request: NewRequest
    num_pages: list[int]  # of each KV group
    bias: Tensor | None = None
    failed: str | None = None


class Batch:
    """``max_len`` is the most tokens that one request can hold, prompt and output."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_len: int,
        vocab_size: int,
        block_size: int,
        num_groups: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._eos = eos_token_ids
        self._device = device
        self._width = max_len + 1  # the last sampled token has a cell too, though it is never computed
        self._token_ids = torch.zeros(max_num_seqs, self._width, dtype=torch.int32, device=device)
        width = -(-max_len // block_size)
        self._tables = [np.zeros((max_num_seqs, width), dtype=np.int32) for _ in range(num_groups)]
        self._rows: dict[int, _Row] = {}
        self._free = list(range(max_num_seqs - 1, -1, -1))

    def apply(self, plan: StepPlan) -> None:
        """Ended requests leave, new ones enter, new pages are appended."""
        for req_id in plan.ended:
            if (row := self._rows.pop(req_id, None)) is not None:
                self._free.append(row.index)
        for new in plan.new:
            self._enter(new)
        for item in plan.scheduled:
            for group, pages in enumerate(item.new_block_ids):
                if pages:
                    row = self._rows[item.req_id]
                    first = row.num_pages[group]
                    self._tables[group][row.index, first : first + len(pages)] = pages
                    row.num_pages[group] += len(pages)

    def _enter(self, new: NewRequest) -> None:
        assert new.req_id not in self._rows
        index = self._free.pop()
        self._token_ids[index, : len(new.token_ids)] = torch.tensor(new.token_ids, dtype=torch.int32)
        for table, pages in zip(self._tables, new.block_ids, strict=True):
            table[index, : len(pages)] = pages
        row = _Row(index, new.epoch, new, [len(pages) for pages in new.block_ids])
        self._rows[new.req_id] = row
        try:
            row.bias = token_bias(new.sampling, self._vocab_size, self._device)
        except Exception as error:  # whatever this request asks for, the others of the step go on
            logger.exception("a request could not be prepared")
            row.failed = f"the request could not be prepared: {type(error).__name__}: {error}"

    def step_inputs(
        self, scheduled: list[Scheduled]
    ) -> tuple[StepInputs, SampleTargets, ScoreTargets | None]:
        """``scheduled`` is not empty; ``apply`` has run."""
        order = sorted(scheduled, key=lambda s: (s.num_tokens > 1, s.start + s.num_tokens))
        mirrored = [self._rows[s.req_id] for s in order]
        rows = np.array([row.index for row in mirrored])
        prompt_lens = np.array([row.request.num_prompt_tokens for row in mirrored])
        start = np.array([s.start for s in order])
        count = np.array([s.num_tokens for s in order])
        query_start = np.concatenate(([0], np.cumsum(count)))
        context_len = start + count
        num_pages = -(-int(context_len.max()) // self._block_size)

        owner = np.repeat(np.arange(len(order)), count)
        positions = np.arange(query_start[-1]) + (start - query_start[:-1])[owner]
        block, slot = np.divmod(positions, self._block_size)
        groups = tuple(
            GroupInputs(
                block_table_RP=table[rows, :num_pages],
                slot_mapping_T=table[rows[owner], block].astype(np.int64) * self._block_size + slot,
            )
            for table in self._tables
        )
        cells = self._to_device(rows[owner] * self._width + positions)
        inputs = StepInputs(
            tokens_T=self._token_ids.view(-1)[cells],
            positions_T=self._to_device(positions),
            prompt_lens_T=self._to_device(prompt_lens[owner]),
            query_start=query_start,
            context_len=context_len,
            groups=groups,
        )
        chosen = np.array([i for i, s in enumerate(order) if s.sample], dtype=np.int64)
        sampled = [order[i] for i in chosen]
        held = [self._rows[s.req_id] for s in sampled]
        failed = {i: row.failed for i, row in enumerate(held) if row.failed is not None}
        params = [_GREEDY if i in failed else row.request.sampling for i, row in enumerate(held)]
        targets = SampleTargets(
            requests=sampled,
            logit_rows_S=self._to_device(query_start[chosen + 1] - 1),
            cells_S=self._to_device(rows[chosen] * self._width + context_len[chosen]),
            sampling=_sampling(params, held, context_len[chosen]),
            adjustments=self._adjustments(params, held, context_len[chosen]),
            logprobs=[p.logprobs for p in params],
            failed=failed,
        )
        return inputs, targets, self._to_score(order, query_start)

    def _adjustments(self, params: list[SamplingParams], held: list[_Row], length_S: Int64) -> Adjustments:
        """``length_S``: tokens so far, the new one's place."""
        banned = []
        for i, (p, row) in enumerate(zip(params, held, strict=True)):
            ends = (*p.stop_token_ids, *(() if p.ignore_eos else self._eos))
            if ends and length_S[i] - row.request.num_prompt_tokens < p.min_tokens:
                banned.append((i, ends))
        repeated = [i for i, p in enumerate(params) if p.repetition_penalty != 1]
        counted = [i for i, p in enumerate(params) if p.frequency_penalty or p.presence_penalty]
        return Adjustments(
            banned=banned,
            bias=[(i, row.bias) for i, row in enumerate(held) if row.bias is not None and not row.failed],
            bad_words=self._bad_words(params, held, length_S),
            seen=self._history(repeated, held, length_S, [0] * len(held)),
            generated=self._history(counted, held, length_S, [r.request.num_prompt_tokens for r in held]),
            repetition_S=np.array([p.repetition_penalty for p in params], np.float32),
            frequency_S=np.array([p.frequency_penalty for p in params], np.float32),
            presence_S=np.array([p.presence_penalty for p in params], np.float32),
        )

    def _history(
        self, chosen: list[int], held: list[_Row], length_S: Int64, first_S: list[int]
    ) -> Penalised | None:
        """The mirror's cells of the chosen rows, from position ``first_S`` on."""
        cells = [held[i].index * self._width + np.arange(first_S[i], length_S[i]) for i in chosen]
        rows = np.repeat(np.array(chosen, np.int64), [len(c) for c in cells])
        return Penalised(rows, np.concatenate(cells)) if rows.size else None

    def _bad_words(self, params: list[SamplingParams], held: list[_Row], length_S: Int64) -> BadWords | None:
        """Those of several tokens whose last could come now; single tokens are a bias."""
        found = [
            (i, word)
            for i, (p, row) in enumerate(zip(params, held, strict=True))
            for word in p.bad_words
            if 1 < len(word) <= length_S[i] - row.request.num_prompt_tokens + 1
        ]
        if not found:
            return None
        longest = max(len(word) for _, word in found) - 1
        prefix = np.full((len(found), longest), -1, np.int64)
        cells = np.full((len(found), longest), -1, np.int64)
        for w, (i, word) in enumerate(found):
            size = len(word) - 1
            prefix[w, :size] = word[:-1]
            cells[w, :size] = held[i].index * self._width + np.arange(length_S[i] - size, length_S[i])
        rows = np.array([i for i, _ in found], np.int64)
        return BadWords(rows, np.array([word[-1] for _, word in found], np.int64), prefix, cells)

    def _to_score(self, order: list[Scheduled], query_start: Int64) -> ScoreTargets | None:
        requests, counts, tops, at, cells = [], [], [], [], []
        for i, item in enumerate(order):
            row = self._rows[item.req_id]
            top = row.request.sampling.prompt_logprobs
            # What follows the last token of the prompt is output.
            count = min(item.num_tokens, row.request.num_prompt_tokens - 1 - item.start)
            if top is None or count < 1:
                continue
            requests.append(item)
            counts.append(count)
            tops.append(top)
            at.append(query_start[i] + np.arange(count))
            cells.append(row.index * self._width + item.start + 1 + np.arange(count))
        if not requests:
            return None
        tokens = self._token_ids.view(-1)[self._to_device(np.concatenate(cells))]
        return ScoreTargets(requests, counts, tops, self._to_device(np.concatenate(at)), tokens)

    def adjust(self, logits_SV: Tensor, wanted: Adjustments) -> Tensor:
        """The logits as the requests want them; ``logits_SV`` may be overwritten."""
        return adjust(logits_SV, self._token_ids.view(-1), wanted)

    def append(self, cells_S: Tensor, tokens_S: Tensor) -> None:
        """Write sampled tokens into the mirror; where there is none (-1), any id serves until the request has
        ended."""
        self._token_ids.view(-1).index_copy_(0, cells_S, tokens_S.clamp(min=0).to(torch.int32))

    def _to_device(self, array: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


_GREEDY = SamplingParams(temperature=0.0)


def _sampling(params: list[SamplingParams], held: list[_Row], length_S: Int64) -> SamplingRows:
    positions = [int(n) - row.request.num_prompt_tokens for n, row in zip(length_S, held, strict=True)]
    return SamplingRows(
        temperature=np.array([0.0 if p.greedy else p.temperature for p in params], dtype=np.float32),
        top_k=np.array([p.top_k for p in params], dtype=np.int64),
        top_p=np.array([p.top_p for p in params], dtype=np.float64),
        min_p=np.array([p.min_p for p in params], dtype=np.float32),
        uniform=uniform([p.seed or 0 for p in params], positions),
    )
