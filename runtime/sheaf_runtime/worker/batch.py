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

from sheaf_runtime.worker.chunks import cut
from sheaf_runtime.worker.failures import is_device_failure
from sheaf_runtime.worker.plan import NewRequest, Scheduled, StepPlan
from sheaf_runtime.worker.pooling import PoolTarget
from sheaf_runtime.worker.sampling_state import SamplingState

logger = logging.getLogger(__name__)
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupInputs:
    """Where one KV group's keys and values are, and what attends to what there. ``slot_mapping`` is
    page * block_size + slot. Entries of the table before a window's first page mean nothing.

    ``context_len`` counts a request's tokens in the cache after this step. In a group of chunks R counts the
    pieces that ``chunks.cut`` makes of the requests.
    """

    query_start: Int64  # [R + 1]
    context_len: Int64  # [R]
    block_table_RP: Int32
    slot_mapping_T: Int64


@dataclass(frozen=True)
class StepInputs:
    """One step's tokens, flattened, requests in an order of the batch's own: single tokens (decodes) first,
    shorter contexts first. Host arrays are numpy, device tensors torch."""

    tokens_T: Tensor
    positions_T: Tensor
    prompt_lens_T: Tensor  # of the request that the token belongs to
    groups: tuple[GroupInputs, ...]


@dataclass(frozen=True)
class SampleTargets:
    """The requests of the step that get a token: S of them.

    ``rows_S`` are rows of the mirror that hold ``length_S`` tokens so far; ``logit_rows_S`` are rows of T.
    ``logprobs`` has what each request asked for.
    """

    requests: list[Scheduled]
    rows_S: Int64
    length_S: Int64
    logit_rows_S: Tensor
    logprobs: list[int | None]

    def one(self, index: int) -> SampleTargets:
        part = slice(index, index + 1)
        return SampleTargets(
            self.requests[part],
            self.rows_S[part],
            self.length_S[part],
            self.logit_rows_S[part],
            self.logprobs[part],
        )


@dataclass(frozen=True)
class ScoreTarget:
    """N prompt tokens of one request whose log-probabilities the step can tell, with ``top`` likely tokens
    beside each: ``tokens_N`` follow ``rows`` of T."""

    request: Scheduled
    top: int
    rows: slice
    tokens_N: Tensor


@dataclass
class _Row:
    """``failed`` says why the request can get no token."""

    index: int
    epoch: int
    request: NewRequest
    num_pages: list[int]  # of each KV group
    failed: str | None = None


class Batch:
    """``max_len`` is the most tokens that one request can hold, prompt and output; ``chunks`` has the KV
    groups' own, None where a group has none."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_len: int,
        vocab_size: int,
        block_size: int,
        chunks: tuple[int | None, ...],
        eos_token_ids: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._block_size = block_size
        self._device = device
        self._width = max_len + 1  # the last sampled token has a cell too, though it is never computed
        self._token_ids = torch.zeros(max_num_seqs, self._width, dtype=torch.int32, device=device)
        width = -(-max_len // block_size)
        self._chunks = chunks
        self._tables = [np.zeros((max_num_seqs, width), dtype=np.int32) for _ in chunks]
        self.sampling = SamplingState(
            max_num_seqs=max_num_seqs,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            mirror_RL=self._token_ids,
        )
        self._rows: dict[int, _Row] = {}
        self._free = list(range(max_num_seqs - 1, -1, -1))

    def apply(self, plan: StepPlan) -> None:
        """Ended requests leave, new ones enter, new pages are appended."""
        for req_id in plan.ended:
            if (row := self._rows.pop(req_id, None)) is not None:
                self.sampling.leave(row.index)
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
        for table, pages in zip(self._tables, new.block_ids, strict=True):
            table[index, : len(pages)] = pages
        self._rows[new.req_id] = _Row(index, new.epoch, new, [len(pages) for pages in new.block_ids])
        try:
            self._token_ids[index, : len(new.token_ids)] = torch.tensor(new.token_ids, dtype=torch.int32)
            self.sampling.enter(index, new)
        except Exception as error:  # whatever this request asks for, the others of the step go on
            self.fail(new.req_id, "prepared", error)

    def fail(self, req_id: int, stage: str, error: Exception) -> None:
        """The request gets an error instead of its next token. Raises ``error`` if it is the device's."""
        if is_device_failure(error):
            raise error
        logger.error("a request could not be %s", stage, exc_info=error)
        row = self._rows[req_id]
        row.failed = f"the request could not be {stage}: {type(error).__name__}: {error}"
        self.sampling.leave(row.index)

    def failure(self, req_id: int) -> str | None:
        return self._rows[req_id].failed

    def step_inputs(
        self, scheduled: list[Scheduled]
    ) -> tuple[StepInputs, SampleTargets, list[ScoreTarget], list[PoolTarget]]:
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
        groups = []
        for chunk, table in zip(self._chunks, self._tables, strict=True):
            attended = query_start, context_len, table[rows, :num_pages]
            if chunk is not None:
                attended = cut(*attended, chunk=chunk, block_size=self._block_size)
            slots_T = table[rows[owner], block].astype(np.int64) * self._block_size + slot
            groups.append(GroupInputs(*attended, slot_mapping_T=slots_T))
        cells = self._to_device(rows[owner] * self._width + positions)
        inputs = StepInputs(
            tokens_T=self._token_ids.view(-1)[cells],
            positions_T=self._to_device(positions),
            prompt_lens_T=self._to_device(prompt_lens[owner]),
            groups=tuple(groups),
        )
        draws = [s.sample and row.request.pooling is None for s, row in zip(order, mirrored, strict=True)]
        chosen = np.flatnonzero(draws)
        targets = SampleTargets(
            requests=[order[i] for i in chosen],
            rows_S=rows[chosen],
            length_S=context_len[chosen],
            logit_rows_S=self._to_device(query_start[chosen + 1] - 1),
            logprobs=[mirrored[i].request.sampling.logprobs for i in chosen],
        )
        return inputs, targets, self._to_score(order, query_start), self._to_pool(order, query_start)

    def _to_pool(self, order: list[Scheduled], query_start: Int64) -> list[PoolTarget]:
        return [
            PoolTarget(
                item,
                request.pooling,
                request.num_prompt_tokens,
                first=int(query_start[i]),
                last=int(query_start[i + 1]) - 1,
            )
            for i, item in enumerate(order)
            if (request := self._rows[item.req_id].request).pooling is not None
        ]

    def _to_score(self, order: list[Scheduled], query_start: Int64) -> list[ScoreTarget]:
        targets = []
        for item, first in zip(order, query_start, strict=False):
            row = self._rows[item.req_id]
            top = row.request.sampling.prompt_logprobs
            # What follows the last token of the prompt is output.
            count = min(item.num_tokens, row.request.num_prompt_tokens - 1 - item.start)
            if top is None or count < 1 or row.failed is not None:
                continue
            tokens_N = self._token_ids[row.index, item.start + 1 : item.start + 1 + count]
            targets.append(ScoreTarget(item, top, slice(first, first + count), tokens_N))
        return targets

    def append(self, targets: SampleTargets, tokens_S: Tensor) -> None:
        """Write sampled tokens into the mirror; where there is none (-1), any id serves until the request has
        ended."""
        cells_S = self._to_device(targets.rows_S * self._width + targets.length_S)
        self._token_ids.view(-1).index_copy_(0, cells_S, tokens_S.clamp(min=0).to(torch.int32))
        self.sampling.count(targets.rows_S, tokens_S)

    def _to_device(self, array: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
