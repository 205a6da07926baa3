"""Paged attention in plain torch: the reference, and what runs on CPU.

Keys and values live in the pages only, [page, kv_head, slot, dim] for each layer; what a step attends to is
gathered through the block tables. Slots that no table reaches, and those behind a request's length, may hold
anything, NaN included.

Legend: T tokens of the step, R requests, Q query heads, K key/value heads, G = Q / K, D head size, L context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.layers import rotate
from sheaf_runtime.worker.batch import StepInputs

# Decodes of unequal length share one padded launch until this many elements of K would be copied for nothing;
# by then the launches of a further group are cheaper.
MAX_PADDING = 1 << 16
# No group gathers more elements of K than this, so that scratch memory stays small (64 MiB in float32).
MAX_GROUP = 1 << 24


@dataclass(frozen=True)
class _Group:
    """Requests attended in one launch: many with one query token each, or one with many."""

    tokens: slice
    requests: int
    queries: int  # query tokens of each request
    page_rows: Tensor  # which [slot, dim] rows to gather, ordered request, head, page
    length: int  # longest context of the group
    mask: Tensor | None  # added to the scores; None: nothing to mask, or `causal`
    causal: bool
    stale: Tensor | None  # gathered [dim] rows behind a context's end


class TorchAttention:
    """Call ``prepare`` once a step, then ``write_kv`` and ``attend`` for each layer in turn."""

    def __init__(self, caches: list[tuple[Tensor, Tensor]], num_heads: int, dtype: torch.dtype) -> None:
        self._num_pages, self._kv_heads, self._block_size, self._head_dim = caches[0][0].shape
        self._group_size = num_heads // self._kv_heads
        # Every page of a head is one row to gather, every slot one row to write.
        page, slot = self._block_size * self._head_dim, self._head_dim
        self._pages = [(k.view(-1, page), v.view(-1, page)) for k, v in caches]
        self._slots = [(k.view(-1, slot), v.view(-1, slot)) for k, v in caches]
        self._dtype = dtype
        self._device = caches[0][0].device
        self._groups: list[_Group] = []
        self._written = torch.empty(0)

    def prepare(self, inputs: StepInputs) -> None:
        page, slot = np.divmod(inputs.slot_mapping_T, self._block_size)
        heads = np.arange(self._kv_heads)
        rows = (page[:, None] * self._kv_heads + heads) * self._block_size + slot[:, None]
        self._written = self._on_device(rows.reshape(-1))
        self._groups = [self._group(inputs, start, stop) for start, stop in self._partition(inputs)]

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        keys, values = self._slots[layer]
        qk = rotate(qkv_TND[:, : -self._kv_heads], cos_T1D, sin_T1D)
        keys.index_copy_(0, self._written, qk[:, -self._kv_heads :].reshape(-1, self._head_dim))
        values.index_copy_(0, self._written, qkv_TND[:, -self._kv_heads :].reshape(-1, self._head_dim))
        return qk[:, : -self._kv_heads]

    def attend(self, layer: int, q_TQD: Tensor) -> Tensor:
        keys, values = self._pages[layer]
        out_TQD = torch.empty(q_TQD.shape, dtype=q_TQD.dtype, device=q_TQD.device)
        for group in self._groups:
            self._attend_group(group, q_TQD, keys, values, out_TQD)
        return out_TQD

    def _attend_group(
        self, group: _Group, q_TQD: Tensor, keys: Tensor, values: Tensor, out_TQD: Tensor
    ) -> None:
        kv_heads, dim = self._kv_heads, self._head_dim
        q = q_TQD[group.tokens].view(-1, kv_heads, self._group_size, dim)
        out = out_TQD[group.tokens].view(-1, kv_heads, self._group_size, dim)
        k, v = self._gather(group, keys), self._gather(group, values)
        if group.queries == 1:
            # The query heads that share a key head stand where a sequence's queries would: no copy of K.
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
            out.copy_(y)
            return
        # One request: key heads as the batch, their query heads side by side over the same K.
        q = q.permute(1, 2, 0, 3)
        shape = (kv_heads, self._group_size, group.length, dim)
        k, v = k.squeeze(0).unsqueeze(1).expand(shape), v.squeeze(0).unsqueeze(1).expand(shape)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, is_causal=group.causal)
        out.copy_(y.permute(2, 0, 1, 3))

    def _gather(self, group: _Group, pages: Tensor) -> Tensor:
        """[request, kv_head, length, dim]; ``embedding`` is torch's fastest gather of rows on CPU."""
        rows = F.embedding(group.page_rows, pages).view(-1, self._head_dim)
        if group.stale is not None:
            rows.index_fill_(0, group.stale, 0.0)
        return rows.view(group.requests, self._kv_heads, -1, self._head_dim)[:, :, : group.length]

    # --- once a step ----------------------------------------------------------------------------------

    def _partition(self, inputs: StepInputs) -> list[tuple[int, int]]:
        """Cut the requests into groups [start, stop). Decodes come first, sorted by length."""
        lengths = inputs.context_len
        queries = np.diff(inputs.query_start)
        decodes = int((queries == 1).sum())
        pages = -(-lengths // self._block_size)
        page_elements = self._kv_heads * self._block_size * self._head_dim
        groups, stop = [], decodes
        while stop > 0:  # from the longest down
            start, padding, longest = stop - 1, 0, pages[stop - 1]
            while start > 0:
                padding += (longest - pages[start - 1]) * page_elements
                if padding > MAX_PADDING or (stop - start + 1) * longest * page_elements > MAX_GROUP:
                    break
                start -= 1
            groups.append((start, stop))
            stop = start
        return groups + [(i, i + 1) for i in range(decodes, len(lengths))]

    def _group(self, inputs: StepInputs, start: int, stop: int) -> _Group:
        first, last = int(inputs.query_start[start]), int(inputs.query_start[stop])
        lengths = inputs.context_len[start:stop]
        longest = int(lengths.max())
        queries = (last - first) // (stop - start)
        num_pages = -(-longest // self._block_size)
        table = inputs.block_table_RP[start:stop, None, :num_pages].astype(np.int64)
        page_rows = table * self._kv_heads + np.arange(self._kv_heads)[:, None]
        mask: Tensor | None = None
        stale: Tensor | None = None
        causal = queries > 1 and queries == longest
        if queries == 1 and int(lengths.min()) < longest:
            behind = np.arange(num_pages * self._block_size) >= lengths[:, None]
            mask = self._mask(behind[:, None, None, :longest])
            every_head = np.broadcast_to(behind[:, None], (stop - start, self._kv_heads, behind.shape[1]))
            stale = self._on_device(np.flatnonzero(every_head))
        elif queries > 1 and not causal:
            position = np.arange(longest - queries, longest)[:, None]
            mask = self._mask(np.arange(longest) > position)
        return _Group(
            tokens=slice(first, last),
            requests=stop - start,
            queries=queries,
            page_rows=self._on_device(page_rows.reshape(-1)),
            length=longest,
            mask=mask,
            causal=causal,
            stale=stale,
        )

    def _mask(self, hidden: npt.NDArray[np.bool_]) -> Tensor:
        mask = torch.zeros(hidden.shape, dtype=self._dtype)
        return mask.masked_fill_(torch.from_numpy(hidden), -torch.inf).to(self._device)

    def _on_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
