"""The worker's mirror of the running requests, and the step inputs built from it.

Each request owns a fixed row. Token ids live on the device (``mirror``); block tables and lengths live on the
host, where plans arrive. ``prepare`` makes all of a step that does not depend on the tokens of the steps
before it, and so may run while these compute. What it wants written on the device (prompts, biases) waits in
the step for its turn: then no step under way reads the rows that this one's requests have taken over.

Legend: T tokens of the step, R requests of the step, P pages.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.models.layers import StepAdapters, Want
from sheaf_runtime.worker.adapters import Adapters
from sheaf_runtime.worker.adjust import Adjustments
from sheaf_runtime.worker.chunks import cut, most_pieces
from sheaf_runtime.worker.drafts import draft_cells
from sheaf_runtime.worker.failures import is_device_failure
from sheaf_runtime.worker.mirror import TokenMirror
from sheaf_runtime.worker.plan import NewRequest, Scheduled, StepPlan
from sheaf_runtime.worker.pooling import PoolTarget
from sheaf_runtime.worker.sampler import SamplingRows
from sheaf_runtime.worker.sampling_state import RowWrite, SamplingState
from sheaf_runtime.worker.step_buffer import StepBuffer, StepBuffers, There, padded_bytes

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

    query_start: Int32  # [R + 1]
    context_len: Int32  # [R]
    block_table_RP: Int32
    slot_mapping_T: Int64


@dataclass(frozen=True)
class StepInputs:
    """One step's tokens, flattened, requests in an order of the batch's own: single tokens (decodes) first,
    shorter contexts first. All lies in the step's buffer, which has it ``there`` on the device once it is
    uploaded, and the tokens once the step has begun. Tensors are the device's."""

    tokens_T: Tensor
    positions_T: Tensor
    prompt_lens_T: Tensor  # of the request that the token belongs to
    rows_S: Tensor | None  # tokens of which ``want`` is wanted, None: all
    want: Want
    groups: tuple[GroupInputs, ...]
    there: There
    adapters: StepAdapters | None = None
    drafts: bool = False  # some of the tokens are


@dataclass
class Row:
    """``failed`` says why the request can get no token."""

    index: int
    epoch: int
    request: NewRequest
    num_pages: list[int]  # of each KV group
    failed: str | None = None


@dataclass(frozen=True)
class SampleTargets:
    """The requests of the step that get a token: S of them, and what they want of the sampler. One with
    drafts is there once for each, and once more.

    ``next_cells_S`` of the mirror get the tokens; ``logit_rows_S`` are rows of T. ``logprobs`` has what each
    request asked for. ``parameters`` None: all are greedy. ``plain``: the likeliest tokens are all that is
    wanted, unless there are masks.
    """

    requests: list[Scheduled]
    places: list[int]  # drafts of the request that come before
    mirrored: list[Row]
    next_cells: list[int]
    next_cells_S: Int64
    logit_rows_S: Tensor
    logprobs: list[int | None]
    wanted: Adjustments
    parameters: SamplingRows | None
    there: There
    plain: bool

    def one(self, index: int) -> SampleTargets:
        part = slice(index, index + 1)
        return SampleTargets(
            self.requests[part],
            self.places[part],
            self.mirrored[part],
            self.next_cells[part],
            self.next_cells_S[part],
            self.logit_rows_S[part],
            self.logprobs[part],
            self.wanted.one(index),
            None if self.parameters is None else self.parameters.one(index),
            self.there,
            self.plain,
        )


@dataclass(frozen=True)
class ScoreTarget:
    """N prompt tokens of one request whose log-probabilities the step can tell, with ``top`` likely tokens
    beside each: ``tokens_N`` follow ``rows`` of T."""

    request: Scheduled
    mirrored: Row
    top: int
    rows: slice
    tokens_N: Tensor


@dataclass(frozen=True)
class Prepared:
    """A step before its turn on the device. ``entered``, ``drafts`` and ``writes`` come first there.
    ``inputs`` None: nothing is computed."""

    plan: StepPlan
    buffer: StepBuffer
    entered: list[tuple[int, Int32]]  # rows of the mirror and their tokens
    drafts: tuple[Int64, Int32] | None  # cells of the mirror and their tokens
    writes: list[RowWrite]
    cells_T: Int64  # of the mirror, and the step's tokens in its buffer
    tokens_T: Int32
    inputs: StepInputs | None
    targets: SampleTargets | None
    to_score: list[ScoreTarget]
    to_pool: list[PoolTarget]


class Batch:
    """``max_len`` is the most tokens that one request can hold, prompt and output, ``max_drafts`` how many of
    them a step may propose; ``chunks`` has the KV groups' own, None where a group has none. ``apart``: see
    ``StepBuffers``; block tables then have all their columns in every step, so that nothing is at another
    place for longer requests.

    ``prepare`` and ``release`` are one thread's, ``begin``, ``append`` and ``fail`` the device's.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_len: int,
        vocab_size: int,
        block_size: int,
        chunks: tuple[int | None, ...],
        eos_token_ids: tuple[int, ...],
        device: torch.device,
        apart: bool,
        adapters: Adapters | None = None,
        max_drafts: int = 0,
    ) -> None:
        self._adapters = adapters
        self._block_size = block_size
        # The last sampled token has a cell too, though it is never computed.
        self._mirror = TokenMirror(max_num_seqs, max_len + 1, device, apart=apart)
        width = -(-max_len // block_size)
        self._chunks = chunks
        self._tables = [np.zeros((max_num_seqs, width), dtype=np.int32) for _ in chunks]
        self._whole_tables = apart
        self.sampling = SamplingState(
            max_num_seqs=max_num_seqs,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            mirror_RL=self._mirror.ids_RL,
        )
        targets = min(max_num_batched_tokens, max_num_seqs * (1 + max_drafts))
        most = _most_bytes(max_num_seqs, max_num_batched_tokens, targets, width, chunks)
        self._buffers = StepBuffers(most, device, apart=apart)
        self._rows: dict[int, Row] = {}
        self._free = list(range(max_num_seqs - 1, -1, -1))
        self._failed: deque[Row] = deque()  # on the device, and still known to the sampling state

    # --- ahead of the step's turn -------------------------------------------------------------------------

    def prepare(self, plan: StepPlan) -> Prepared:
        """Ended requests leave, new ones enter, new pages are appended."""
        while self._failed:
            row = self._failed.popleft()
            if self._rows.get(row.request.req_id) is row:
                self.sampling.leave(row.index)
        for req_id in plan.ended:
            if (ended := self._rows.pop(req_id, None)) is not None:
                self.sampling.leave(ended.index)
                self._free.append(ended.index)
        entered = [self._enter(new) for new in plan.new]
        for item in plan.scheduled:
            for group, pages in enumerate(item.new_block_ids):
                if pages:
                    row = self._rows[item.req_id]
                    first = row.num_pages[group]
                    self._tables[group][row.index, first : first + len(pages)] = pages
                    row.num_pages[group] += len(pages)
        buffer = self._buffers.lease()
        if not plan.scheduled:
            none = np.empty(0, np.int64)
            writes = self.sampling.take_writes()
            return Prepared(
                plan, buffer, entered, None, writes, none, none.astype(np.int32), None, None, [], []
            )
        order = sorted(plan.scheduled, key=lambda s: (s.num_tokens > 1, s.start + s.num_tokens))
        mirrored = [self._rows[s.req_id] for s in order]
        rows = np.array([row.index for row in mirrored])
        start = np.array([s.start for s in order])
        count = np.array([s.num_tokens for s in order])
        query_start = np.zeros(len(order) + 1, np.int64)
        np.cumsum(count, out=query_start[1:])
        context_len = start + count
        tokens = (int(query_start[-1]),)

        owner = np.repeat(np.arange(len(order)), count)
        positions_T, cells_T, prompt_lens_T = (buffer.take(tokens, np.int64) for _ in range(3))
        np.add(np.arange(tokens[0]), (start - query_start[:-1])[owner], out=positions_T)
        np.add((rows * self._mirror.width)[owner], positions_T, out=cells_T)
        prompt_lens_T[...] = np.array([row.request.num_prompt_tokens for row in mirrored])[owner]
        tokens_T = buffer.take(tokens, np.int32)
        groups = self._groups(rows, owner, query_start, context_len, positions_T, buffer)
        targets = self._targets(order, mirrored, query_start, context_len, buffer)
        to_score = self._to_score(order, mirrored, query_start)
        to_pool = _to_pool(order, mirrored, query_start)
        want: Want = "hidden"
        rows_S: Tensor | None = None
        if targets is not None and len(targets.requests) == tokens[0]:
            # Each token is a request's last, so they are in the order of the targets.
            want = "tokens" if targets.plain else "logits"
        elif not to_score and not to_pool:
            none = np.empty(0, np.int64)
            rows_S = buffer.there(none) if targets is None else targets.logit_rows_S
        adapters = None
        if self._adapters is not None:
            own_S = [] if targets is None else _adapters_of(targets.mirrored)
            adapters = self._adapters.of_step(_adapters_of(mirrored), count, own_S, buffer.there)
        drafts = draft_cells(order, rows, self._mirror.width)
        return Prepared(
            plan,
            buffer,
            entered,
            drafts,
            self.sampling.take_writes(),
            cells_T,
            tokens_T,
            StepInputs(
                tokens_T=buffer.there(tokens_T),
                positions_T=buffer.there(positions_T),
                prompt_lens_T=buffer.there(prompt_lens_T),
                rows_S=rows_S,
                want=want,
                groups=groups,
                there=buffer.there,
                adapters=adapters,
                drafts=drafts is not None,
            ),
            targets,
            to_score,
            to_pool,
        )

    def _enter(self, new: NewRequest) -> tuple[int, Int32]:
        assert new.req_id not in self._rows
        index = self._free.pop()
        for table, pages in zip(self._tables, new.block_ids, strict=True):
            table[index, : len(pages)] = pages
        row = Row(index, new.epoch, new, [len(pages) for pages in new.block_ids])
        self._rows[new.req_id] = row
        try:
            ids = np.array(new.token_ids, np.int32)
            if len(ids) > self._mirror.width:
                raise ValueError(
                    f"{len(ids)} tokens are more than the {self._mirror.width} there is room for"
                )
            self.sampling.enter(index, new)
        except Exception as error:  # whatever this request asks for, the others of the step go on
            self._fail_now(row, "prepared", error)
            return index, np.empty(0, np.int32)
        return index, ids

    def _fail_now(self, row: Row, stage: str, error: Exception) -> None:
        self.fail(row, stage, error)
        self.sampling.leave(row.index)

    def _groups(
        self,
        rows: Int64,
        owner: Int64,
        query_start: Int64,
        context_len: Int64,
        positions: Int64,
        buffer: StepBuffer,
    ) -> tuple[GroupInputs, ...]:
        """``owner`` [T] is each token's request."""
        block, slot = np.divmod(positions, self._block_size)
        longest = -(-int(context_len.max()) // self._block_size)
        columns = self._tables[0].shape[1] if self._whole_tables else longest
        groups = []
        for chunk, table in zip(self._chunks, self._tables, strict=True):
            starts, contexts, table_RP = query_start, context_len, table[rows, :columns]
            if chunk is not None:
                starts, contexts, table_RP = cut(
                    starts, contexts, table_RP, chunk=chunk, block_size=self._block_size
                )
            slots_T = buffer.take(positions.shape, np.int64)
            np.multiply(table[rows[owner], block], self._block_size, out=slots_T, dtype=np.int64)
            slots_T += slot
            groups.append(
                GroupInputs(
                    query_start=buffer.put(starts, np.int32),
                    context_len=buffer.put(contexts, np.int32),
                    block_table_RP=buffer.put(table_RP, np.int32),
                    slot_mapping_T=slots_T,
                )
            )
        return tuple(groups)

    def _targets(
        self,
        order: list[Scheduled],
        mirrored: list[Row],
        query_start: Int64,
        context_len: Int64,
        buffer: StepBuffer,
    ) -> SampleTargets | None:
        chosen = [i for i, s in enumerate(order) if s.sample and mirrored[i].request.pooling is None]
        if not chosen:
            return None
        # Rows of drafts lie before the last of their request.
        behind = [place for i in chosen for place in range(len(order[i].draft_token_ids), -1, -1)]
        if len(behind) > len(chosen):
            chosen = [i for i in chosen for _ in range(1 + len(order[i].draft_token_ids))]
        mine, length_S = [mirrored[i] for i in chosen], context_len[chosen] - behind
        rows_S = np.array([row.index for row in mine])
        cells_S = rows_S * self._mirror.width + length_S
        wanted, parameters = self._wishes(mine, rows_S, length_S)
        logprobs = [row.request.sampling.logprobs for row in mine]
        return SampleTargets(
            requests=[order[i] for i in chosen],
            places=[len(order[i].draft_token_ids) - later for i, later in zip(chosen, behind, strict=True)],
            mirrored=mine,
            next_cells=cells_S.tolist(),
            next_cells_S=buffer.put(cells_S, np.int64),
            logit_rows_S=buffer.there(buffer.put(query_start[1:][chosen] - 1 - behind, np.int64)),
            logprobs=logprobs,
            wanted=wanted.packed(buffer.put),
            parameters=None if parameters is None else parameters.packed(buffer.put),
            there=buffer.there,
            plain=parameters is None
            and wanted.none
            and all(asked is None for asked in logprobs)
            and all(row.failed is None for row in mine),
        )

    def _wishes(
        self, mirrored: list[Row], rows_S: Int64, length_S: Int64
    ) -> tuple[Adjustments, SamplingRows | None]:
        """Requests whose wishes cannot be told end with an error; they have none any more."""

        def told(part: slice) -> tuple[Adjustments, SamplingRows | None]:
            rows, length = rows_S[part], length_S[part]
            return self.sampling.adjustments(rows, length), self.sampling.parameters(rows, length)

        try:
            return told(slice(None))
        except Exception as error:
            if is_device_failure(error):
                raise
        for i, row in enumerate(mirrored):
            try:
                told(slice(i, i + 1))
            except Exception as error:
                self._fail_now(row, "given a token", error)
        return told(slice(None))

    def _to_score(self, order: list[Scheduled], mirrored: list[Row], query_start: Int64) -> list[ScoreTarget]:
        targets = []
        for item, row, first in zip(order, mirrored, query_start.tolist(), strict=False):
            top = row.request.sampling.prompt_logprobs
            if top is None or row.failed is not None:
                continue
            # What follows the last token of the prompt is output.
            count = min(item.num_tokens, row.request.num_prompt_tokens - 1 - item.start)
            if count < 1:
                continue
            tokens_N = self._mirror.ids_RL[row.index, item.start + 1 : item.start + 1 + count]
            targets.append(ScoreTarget(item, row, top, slice(first, first + count), tokens_N))
        return targets

    def release(self, step: Prepared) -> None:
        """The step has been collected."""
        self._buffers.give_back(step.buffer)

    # --- in the order of the steps on the device ----------------------------------------------------------

    def begin(self, step: Prepared) -> None:
        """The step's turn: its inputs are uploaded, those who enter written, its tokens put with its
        inputs."""
        step.buffer.upload()
        for row, ids in step.entered:
            self._mirror.enter(row, ids)
        self.sampling.write(step.writes)
        if step.inputs is not None:
            if step.drafts is not None:
                self._mirror.write(*step.drafts, step.inputs.there)
            self._mirror.gather(step.cells_T, step.tokens_T, step.inputs.there)

    def append_likeliest(self, targets: SampleTargets, tokens: list[int]) -> None:
        """The same where that is all that was wanted, in the host's memory."""
        self._mirror.append_here(targets.next_cells, tokens)

    def append(self, targets: SampleTargets, tokens_S: Tensor) -> None:
        """Write sampled tokens (-1: none) into the mirror."""
        self._mirror.append(targets.next_cells_S, tokens_S, targets.there)
        self.sampling.count(targets.wanted, tokens_S)

    def fail(self, row: Row, stage: str, error: Exception) -> None:
        """The request gets an error instead of its next token. Raises ``error`` if it is the device's."""
        if is_device_failure(error):
            raise error
        logger.error("a request could not be %s", stage, exc_info=error)
        row.failed = f"the request could not be {stage}: {type(error).__name__}: {error}"
        self._failed.append(row)


def _adapters_of(rows: list[Row]) -> list[int | None]:
    return [row.request.adapter for row in rows]


def _to_pool(order: list[Scheduled], mirrored: list[Row], query_start: Int64) -> list[PoolTarget]:
    return [
        PoolTarget(
            item,
            row.request.pooling,
            row.request.num_prompt_tokens,
            first=int(query_start[i]),
            last=int(query_start[i + 1]) - 1,
        )
        for i, (item, row) in enumerate(zip(order, mirrored, strict=True))
        if row.request.pooling is not None
    ]


def _most_bytes(
    max_num_seqs: int, tokens: int, targets: int, columns: int, chunks: tuple[int | None, ...]
) -> int:
    """Of the largest step's buffer: what ``prepare`` takes, in its order."""
    T, S = (tokens,), (targets,)
    pieces = [padded_bytes(T, np.int64)] * 3 + [padded_bytes(T, np.int32)]
    for chunk in chunks:
        requests = max_num_seqs if chunk is None else most_pieces(max_num_seqs, tokens, chunk)
        pieces += [padded_bytes(T, np.int64), padded_bytes((requests + 1,), np.int32)]
        pieces += [padded_bytes((requests,), np.int32), padded_bytes((requests, columns), np.int32)]
    pieces += [padded_bytes(S, np.int64)] * 2
    pieces += [padded_bytes(S, np.float32)] * Adjustments.PACKED
    pieces += [padded_bytes(S, np.float64)] * SamplingRows.PACKED
    return sum(pieces)
