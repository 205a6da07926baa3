"""The worker's mirror of the running requests, and the step inputs built from it.

Each request owns a fixed row. Token ids live on the device, so that a sampled token is the next step's input
without a visit to the host; block tables and lengths live on the host, where plans arrive.

Legend: T tokens of the step, R requests of the step, P pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.worker.plan import NewRequest, Scheduled, StepPlan
from sheaf_runtime.worker.sampler import SamplingRows, uniform

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

    ``logit_rows_S`` are rows of T; ``cells_S`` is where each token goes in the mirror.
    """

    requests: list[Scheduled]
    logit_rows_S: Tensor
    cells_S: Tensor
    sampling: SamplingRows


@dataclass
class _Row:
    index: int
    epoch: int
    request: NewRequest
    num_pages: list[int]  # of each KV group


class Batch:
    """``max_len`` is the most tokens that one request can hold, prompt and output."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_len: int,
        block_size: int,
        num_groups: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
    ) -> None:
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
        self._rows[new.req_id] = _Row(index, new.epoch, new, [len(pages) for pages in new.block_ids])

    def step_inputs(self, scheduled: list[Scheduled]) -> tuple[StepInputs, SampleTargets]:
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
        targets = SampleTargets(
            requests=[order[i] for i in chosen],
            logit_rows_S=self._to_device(query_start[chosen + 1] - 1),
            cells_S=self._to_device(rows[chosen] * self._width + context_len[chosen]),
            sampling=self._sampling([order[i] for i in chosen]),
        )
        return inputs, targets

    def _sampling(self, requests: list[Scheduled]) -> SamplingRows:
        news = [self._rows[s.req_id].request for s in requests]
        params = [new.sampling for new in news]
        positions = [
            s.start + s.num_tokens - new.num_prompt_tokens for s, new in zip(requests, news, strict=True)
        ]
        banned = [
            (i, (*p.stop_token_ids, *(() if p.ignore_eos else self._eos)))
            for i, (p, position) in enumerate(zip(params, positions, strict=True))
            if position < p.min_tokens
        ]
        return SamplingRows(
            temperature=np.array([0.0 if p.greedy else p.temperature for p in params], dtype=np.float32),
            top_k=np.array([p.top_k for p in params], dtype=np.int64),
            top_p=np.array([p.top_p for p in params], dtype=np.float64),
            uniform=uniform([p.seed or 0 for p in params], positions),
            banned=[(i, ids) for i, ids in banned if ids],
        )

    def append(self, cells_S: Tensor, tokens_S: Tensor) -> None:
        """Write sampled tokens into the mirror."""
        self._token_ids.view(-1).index_copy_(0, cells_S, tokens_S.to(torch.int32))

    def _to_device(self, array: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
