"""Paged attention in plain torch: the reference, and what runs on CPU.

Keys and values live in the pages only, [page, kv_head, slot, dim] for each layer; what a step attends to is
gathered through the block tables. Slots that no table reaches, those behind a request's length and those
before its window may hold anything, NaN included.

Legend: T tokens of the step, R requests, Q query heads, K key/value heads, G = Q / K, D head size, H = D / 2,
L keys gathered for each request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.config import AttentionConfig
from sheaf_runtime.models.layers import Angles, Computed, Layers, Lookups, Want
from sheaf_runtime.models.rope import both_halves, rotate
from sheaf_runtime.worker.batch import GroupInputs, StepInputs
from sheaf_runtime.worker.kv_layout import KVLayout

# Decodes of unequal length share one padded launch until this many elements of K would be copied for nothing;
# by then the launches of a further part are cheaper.
MAX_PADDING = 1 << 16
# No part gathers more elements of K than this, so that scratch memory stays small (64 MiB in float32).
MAX_PART = 1 << 24


@dataclass(frozen=True)
class _Part:
    """Requests attended in one launch: many with one query token each, or one with many."""

    tokens: slice
    requests: int
    queries: int  # query tokens of each request
    page_rows: Tensor  # which [slot, dim] rows to gather, ordered request, head, page
    length: int  # most keys of a request, from its first page on
    mask: Tensor | None  # added to the scores; None: nothing to mask, or `causal`
    causal: bool
    stale: Tensor | None  # gathered [dim] rows that hold no key of the request


@dataclass
class _Group:
    """A KV group and, for this step, where it writes and what it reads."""

    window: int | None
    written: Tensor
    parts: list[_Part]


class TorchAttention:
    """See ``backend.PagedAttention``; ``write_kv`` and ``attend`` are called for each layer in turn."""

    def __init__(
        self, caches: list[tuple[Tensor, Tensor]], layout: KVLayout, config: AttentionConfig
    ) -> None:
        """``caches`` holds (keys, values) of each layer."""
        _, self._kv_heads, self._block_size, self._head_dim = caches[0][0].shape
        self._group_size = config.num_heads // self._kv_heads
        self._scale = config.scale
        self._softcap = config.softcap
        # What torch's own attention cannot do is done step by step, with every mask written out.
        self._stepwise = config.softcap is not None or config.sinks
        # Every page of a head is one row to gather, every slot one row to write.
        page, slot = self._block_size * self._head_dim, self._head_dim
        self._pages = [(k.view(-1, page), v.view(-1, page)) for k, v in caches]
        self._slots = [(k.view(-1, slot), v.view(-1, slot)) for k, v in caches]
        self._dtype = caches[0][0].dtype
        self._device = caches[0][0].device
        self._group_of = layout.group_of
        self._angles: dict[int, Angles] = {}
        self._groups = [_Group(group.window, torch.empty(0), []) for group in layout.groups]

    def run(self, layers: Layers, given: Lookups, want: Want) -> Computed:
        self._started()
        return layers(given)

    def plan(self, inputs: StepInputs, angles: list[Angles] | None) -> Callable[[Callable[[], None]], None]:
        return partial(self._begin, inputs)  # masks are torch's, whose threads are the device's

    def _begin(self, inputs: StepInputs, started: Callable[[], None]) -> None:
        self._started = started
        self._angles = {}
        heads = np.arange(self._kv_heads)
        for group, where in zip(self._groups, inputs.groups, strict=True):
            page, slot = np.divmod(where.slot_mapping_T, self._block_size)
            rows = (page[:, None] * self._kv_heads + heads) * self._block_size + slot[:, None]
            group.written = self._on_device(rows.reshape(-1))
            group.parts = self._parts(where, group.window)

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        angles = self._angles.get(id(cos_TH))  # the layers of a step share a few
        if angles is None:
            angles = self._angles[id(cos_TH)] = both_halves(cos_TH, sin_TH)
        keys, values = self._slots[layer]
        written = self._groups[self._group_of[layer]].written
        qk = rotate(qkv_TND[:, : -self._kv_heads], *angles)
        keys.index_copy_(0, written, qk[:, -self._kv_heads :].reshape(-1, self._head_dim))
        values.index_copy_(0, written, qkv_TND[:, -self._kv_heads :].reshape(-1, self._head_dim))
        return qk[:, : -self._kv_heads]

    def attend(
        self, layer: int, q_TQD: Tensor, sinks_Q: Tensor | None = None, rows_S: Tensor | None = None
    ) -> Tensor:
        keys, values = self._pages[layer]
        out_TQD = torch.empty(q_TQD.shape, dtype=q_TQD.dtype, device=q_TQD.device)
        for part in self._groups[self._group_of[layer]].parts:
            self._attend_part(part, q_TQD, keys, values, sinks_Q, out_TQD)
        return out_TQD if rows_S is None else out_TQD[rows_S]

    def _attend_part(
        self,
        part: _Part,
        q_TQD: Tensor,
        keys: Tensor,
        values: Tensor,
        sinks_Q: Tensor | None,
        out_TQD: Tensor,
    ) -> None:
        q = q_TQD[part.tokens].view(-1, self._kv_heads, self._group_size, self._head_dim)
        out = out_TQD[part.tokens].view(-1, self._kv_heads, self._group_size, self._head_dim)
        k, v = self._gather(part, keys), self._gather(part, values)
        if self._stepwise:
            out.copy_(self._attend_stepwise(part, q, k, v, sinks_Q))
        elif part.queries == 1:
            # The query heads that share a key head stand where a sequence's queries would: no copy of K.
            out.copy_(F.scaled_dot_product_attention(q, k, v, attn_mask=part.mask, scale=self._scale))
        else:
            # One request: key heads as the batch, their query heads side by side over the same K.
            q = q.permute(1, 2, 0, 3)
            shape = (self._kv_heads, self._group_size, part.length, self._head_dim)
            k, v = k.squeeze(0).unsqueeze(1).expand(shape), v.squeeze(0).unsqueeze(1).expand(shape)
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=part.mask, is_causal=part.causal, scale=self._scale
            )
            out.copy_(y.permute(2, 0, 1, 3))

    def _attend_stepwise(
        self, part: _Part, q_TKGD: Tensor, k_RKLD: Tensor, v_RKLD: Tensor, sinks_Q: Tensor | None
    ) -> Tensor:
        """Softmax in float32, over capped scores and with the sinks: [T, K, G, D]."""
        requests, kv_heads, length, dim = k_RKLD.shape
        by_head = q_TKGD.view(requests, part.queries, *q_TKGD.shape[1:]).transpose(1, 2)
        rows = by_head.reshape(requests, kv_heads, -1, dim)  # query tokens times G
        scores = (rows.float() @ k_RKLD.float().transpose(-1, -2)).mul_(self._scale)
        if self._softcap is not None:
            scores.div_(self._softcap).tanh_().mul_(self._softcap)
        scores = scores.view(requests, kv_heads, part.queries, self._group_size, length)
        if part.mask is not None:
            hidden = part.mask if part.queries == 1 else part.mask[None, None]
            scores += hidden.view(requests, 1, part.queries, 1, length)
        highest = scores.amax(-1, keepdim=True)
        if sinks_Q is not None:
            sinks = sinks_Q.float().view(1, kv_heads, 1, self._group_size, 1)
            highest = torch.maximum(highest, sinks)
        weights = (scores - highest).exp_()
        total = weights.sum(-1, keepdim=True)
        if sinks_Q is not None:
            total += (sinks - highest).exp()
        weights = (weights / total).to(v_RKLD.dtype).view(requests, kv_heads, -1, length)
        y = (weights @ v_RKLD).view(requests, kv_heads, part.queries, self._group_size, dim)
        return y.transpose(1, 2).reshape(q_TKGD.shape)

    def _gather(self, part: _Part, pages: Tensor) -> Tensor:
        """[request, kv_head, length, dim]; ``embedding`` is torch's fastest gather of rows on CPU."""
        rows = F.embedding(part.page_rows, pages).view(-1, self._head_dim)
        if part.stale is not None:
            rows.index_fill_(0, part.stale, 0.0)
        return rows.view(part.requests, self._kv_heads, -1, self._head_dim)[:, :, : part.length]

    # --- once a step ----------------------------------------------------------------------------------

    def _parts(self, where: GroupInputs, window: int | None) -> list[_Part]:
        """Cut the requests into parts. Decodes come first; their lengths grow, but where they begin with a
        window's or a chunk's first page."""
        queries = np.diff(where.query_start)
        # The first page that the earliest query of each request sees.
        earliest = where.context_len - queries + 1 - (window or 0)
        first = np.maximum(earliest, 0) // self._block_size if window else np.zeros_like(queries)
        pages = -(-where.context_len // self._block_size) - first
        page_elements = self._kv_heads * self._block_size * self._head_dim
        # A request of more tokens may end with a piece of one.
        decodes = int(np.logical_and.accumulate(queries == 1).sum())
        parts, stop = [], decodes
        while stop > 0:  # from the longest down
            start, longest, held = stop - 1, pages[stop - 1], pages[stop - 1]
            while start > 0:
                longest, held = max(longest, pages[start - 1]), held + pages[start - 1]
                padded = (stop - start + 1) * longest
                if (padded - held) * page_elements > MAX_PADDING or padded * page_elements > MAX_PART:
                    break
                start -= 1
            parts.append((start, stop))
            stop = start
        parts += [(i, i + 1) for i in range(decodes, len(pages))]
        return [self._part(where, window, first, *part) for part in parts]

    def _part(
        self,
        where: GroupInputs,
        window: int | None,
        first: npt.NDArray[np.int64],
        start: int,
        stop: int,
    ) -> _Part:
        from_token, to_token = int(where.query_start[start]), int(where.query_start[stop])
        queries = (to_token - from_token) // (stop - start)
        first = first[start:stop]
        # From here on positions count from each request's first page.
        lengths = where.context_len[start:stop] - first * self._block_size
        longest = int(lengths.max())
        num_pages = -(-longest // self._block_size)
        table = where.block_table_RP[start:stop]
        column = np.minimum(first[:, None] + np.arange(num_pages), table.shape[1] - 1)
        pages = np.take_along_axis(table, column, axis=1)[:, None].astype(np.int64)
        page_rows = pages * self._kv_heads + np.arange(self._kv_heads)[:, None]
        mask: Tensor | None = None
        stale: Tensor | None = None
        causal = False
        if queries == 1:
            position = np.arange(num_pages * self._block_size)
            hidden = position >= lengths[:, None]
            if window is not None:
                hidden |= position < lengths[:, None] - window
            if hidden[:, :longest].any():
                mask = self._mask(hidden[:, None, None, :longest])
                every_head = np.broadcast_to(hidden[:, None], (stop - start, self._kv_heads, hidden.shape[1]))
                stale = self._on_device(np.flatnonzero(every_head))
        else:
            position = np.arange(longest - queries, longest)[:, None]
            key = np.arange(longest)
            causal = queries == longest and (window is None or window >= longest) and not self._stepwise
            if not causal:
                hidden = key > position
                if window is not None:
                    hidden |= key <= position - window
                mask = self._mask(hidden)
                if window is not None and (unseen := int(hidden[0].argmin())):
                    heads = np.arange(self._kv_heads)[:, None] * num_pages * self._block_size
                    stale = self._on_device((heads + np.arange(unseen)).reshape(-1))
        return _Part(
            tokens=slice(from_token, to_token),
            requests=stop - start,
            queries=queries,
            page_rows=self._on_device(page_rows.reshape(-1)),
            length=longest,
            mask=mask,
            causal=causal,
            stale=stale,
        )

    def _mask(self, hidden: npt.NDArray[np.bool_]) -> Tensor:
        mask = torch.zeros(hidden.shape, dtype=torch.float32 if self._stepwise else self._dtype)
        return mask.masked_fill_(torch.from_numpy(hidden), -torch.inf).to(self._device)

    def _on_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
