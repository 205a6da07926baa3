"""How one step's attention is cut into programs that fill the card, and how their results are merged.

A tile is BLOCK_Q query tokens of one sequence, with the G = Q / K query heads of one key-value head: BLOCK_M
rows. A split of its keys is one work item; its partial result

    o_w = softmax-weighted sum of V within the split,   lse_w = log2(sum of 2^(scores))

is merged by   out = sum_w 2^(lse_w - max) o_w / sum_w 2^(lse_w - max).  A tile of one split is written
directly, without a visit to the workspace.

Only keys that all rows of a tile see are cut; the last split takes the tile's causal diagonal along, and with
a window the first one its edge, which splits are longer than. So every row has a key in every split, and no
partial result is empty. A tile's keys begin where the window of its first row does, rounded down to where a
page and a tile of keys start.

A tile of x keys has n = ceil(x / chunk) splits, which differ by no more than MULTIPLE keys: a full chunk with
a rest of few keys would make the programs of the rest wait for the others. The tiles of a sequence with most
keys start first.

``plan_kernel`` chooses the chunk on the device, from the true lengths and the number of programs that run at
a time, P: of the chunks with which the work would fill a half, one, one and a half ... WAVES rounds of P it
takes the one with which the last program is expected to be done first,

    min(ceil(items / P) * (longest + COST),  keys / P + items / P * COST + longest + COST)

keys of time later (the first is exact where items are equal, the second bounds what is unequal), and the
largest where several are as good.

The host launches grids whose sizes depend on the numbers of tokens and sequences alone and reads nothing
back, so CUDA graphs can hold them; programs without a work item end at once. With chunks of at least
total / TARGET keys (total: of all tiles; TARGET = P * WAVES) there are

    at most tiles + TARGET work items, since a tile of n keys has at most n / chunk + 1 splits,
    of which at most 2 TARGET are split, since ceil(x) <= 2x where x > 1,

whatever the lengths. Only the latter have a slot in the workspace.

Shapes: S sequences, Q query heads, K key-value heads, D head size, M rows of a tile, I = BLOCK_S entries, N
slots of the workspace.  query_start [S + 1], context_len_S (int32).
Source: Dao et al., Flash-Decoding (2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import Checker
from sheaf_kernels.numerics import next_power_of_2, round_to

CHUNK_MULTIPLE = 64  # chunks start where a page of up to 64 slots and a tile of BLOCK_N keys start
PLAN_WARPS = 8
UNSPLIT = 1 << 30  # tokens: longer than any context
ITEM_COST = 64  # keys that could be read while a program starts and its result is merged
MERGE_ROWS = 32  # rows times splits that a program of the merge reads at a time


@triton.jit(do_not_specialize=["num_seqs"])
def plan_kernel(
    query_start_ptr, context_len_ptr, first_work_ptr, first_slot_ptr, chunk_ptr, num_seqs,
    LEAST: tl.constexpr, MOST: tl.constexpr, BLOCK_Q: tl.constexpr,
    PROGRAMS: tl.constexpr, WAVES: tl.constexpr, COST: tl.constexpr,
    MIN_CHUNK: tl.constexpr, MULTIPLE: tl.constexpr, BLOCK_S: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: each sequence's first work item and first slot. Entries from S on hold the totals."""
    s = tl.arange(0, BLOCK_S)
    first_row = tl.load(query_start_ptr + s, mask=s < num_seqs, other=0)
    query_len = tl.load(query_start_ptr + s + 1, mask=s < num_seqs, other=0) - first_row
    ours = (query_len >= LEAST) & (query_len <= MOST)
    context_len = tl.load(context_len_ptr + s, mask=(s < num_seqs) & ours, other=0)
    tiles = tl.where(ours, (query_len + BLOCK_Q - 1) // BLOCK_Q, 0)
    keys = context_len
    last_tile = tl.where(ours, context_len - query_len + (tiles - 1) * BLOCK_Q, 0)
    if WINDOW > 0:
        keys = tl.minimum(keys, WINDOW + MULTIPLE)
        last_tile = tl.minimum(last_tile, WINDOW + MULTIPLE - 2)  # the most keys before a tile's first row
    total = tl.sum(tiles.to(tl.int64) * keys, axis=0)

    halves = 1 + tl.arange(0, 2 * WAVES)  # J: of a round of all programs
    chunk_J = tl.maximum((2 * total + PROGRAMS * halves - 1) // (PROGRAMS * halves), MIN_CHUNK).to(tl.int32)
    chunk_J = (chunk_J + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    splits_JS = last_tile[None, :] // chunk_J[:, None] + 1
    blocks_S = last_tile // MULTIPLE + 1
    longest_JS = tl.where(ours[None, :], (blocks_S[None, :] + splits_JS - 1) // splits_JS, 0)
    cost_J = tl.max(longest_JS, axis=1).to(tl.int64) * MULTIPLE + COST
    items_J = tl.sum(tiles[None, :] * splits_JS, axis=1).to(tl.int64)
    in_rounds_J = (items_J + PROGRAMS - 1) // PROGRAMS * cost_J
    mixed_J = (total + items_J * COST) // PROGRAMS + cost_J
    time_J = tl.minimum(in_rounds_J, mixed_J)
    chunk = tl.max(tl.where(time_J == tl.min(time_J, axis=0), chunk_J, 0), axis=0)

    splits = tl.where(ours, last_tile // chunk + 1, 0)
    work = tiles * splits
    slots = tl.where(splits > 1, work, 0)
    tl.store(first_work_ptr + s, tl.cumsum(work, axis=0) - work)
    tl.store(first_slot_ptr + s, tl.cumsum(slots, axis=0) - slots)
    tl.store(chunk_ptr, chunk)


@triton.jit
def find_sequence(first_ptr, item, BLOCK_S: tl.constexpr):
    """(s, place): ``item`` is number ``place`` of sequence s. s is BLOCK_S - 1 if no sequence owns it."""
    first = tl.load(first_ptr + tl.arange(0, BLOCK_S))
    s = tl.sum((first <= item).to(tl.int32), axis=0) - 1
    return s, item - tl.max(tl.where(first <= item, first, 0), axis=0)


@triton.jit
def find_tile(
    query_start_ptr, context_len_ptr, chunk, s, place,
    BLOCK_Q: tl.constexpr, WINDOW: tl.constexpr, MULTIPLE: tl.constexpr,
):  # fmt: skip
    """(first_row, query_len, before, first_query, first_key, split, splits): a work item's tile and split.

    ``before`` is the position of the sequence's first query, ``first_key`` where the tile's keys begin. All
    tiles of a sequence have as many work items as the one that can have most; those with ``split >= splits``
    have nothing to do. Tiles come from the last, which has most keys, to the first.
    """
    first_row = tl.load(query_start_ptr + s)
    query_len = tl.load(query_start_ptr + s + 1) - first_row
    before = tl.load(context_len_ptr + s) - query_len
    last_query = (query_len - 1) // BLOCK_Q * BLOCK_Q
    most_keys = before + last_query
    if WINDOW > 0:
        most_keys = tl.minimum(most_keys, WINDOW + MULTIPLE - 2)
    most_splits = most_keys // chunk + 1
    first_query = last_query - place // most_splits * BLOCK_Q
    first_key = before * 0
    if WINDOW > 0:
        first_key = tl.maximum(before + first_query - (WINDOW - 1), 0) // MULTIPLE * MULTIPLE
    splits = (before + first_query - first_key) // chunk + 1
    return first_row, query_len, before, first_query, first_key, place % most_splits, splits


@triton.jit
def split_start(keys, split, splits, MULTIPLE: tl.constexpr):
    """Where a split of a tile begins whose first row sees ``keys`` keys and one: the first ones may be longer
    by MULTIPLE."""
    blocks = keys // MULTIPLE + 1
    return (split * (blocks // splits) + tl.minimum(split, blocks % splits)) * MULTIPLE


@triton.jit
def merge_kernel(
    query_start_ptr, context_len_ptr, first_slot_ptr, chunk_ptr, out_ptr, partial_ptr, lse_ptr, out_stride,
    Q: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr, MULTIPLE: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of a tile per program, BLOCK_W partial results at a time; those of its first slot work."""
    G: tl.constexpr = Q // K
    BLOCK_Q: tl.constexpr = BLOCK_M // G
    slot = tl.program_id(0)
    kv_head = tl.program_id(1)
    s, place = find_sequence(first_slot_ptr, slot, BLOCK_S)
    if s == BLOCK_S - 1:
        return
    first_row, query_len, _, first_query, _, split, splits = find_tile(
        query_start_ptr, context_len_ptr, tl.load(chunk_ptr), s, place, BLOCK_Q, WINDOW, MULTIPLE
    )
    if (split > 0) | (splits == 1):
        return
    m = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    query = first_query + m // G
    row_mask = (m < BLOCK_Q * G) & (query < query_len)
    d = tl.arange(0, BLOCK_D)
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    weight_sum = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(0, splits, BLOCK_W):
        w = start + tl.arange(0, BLOCK_W)
        item = (((slot + w).to(tl.int64) * K + kv_head) * BLOCK_M)[None, :] + m[:, None]
        valid = (w < splits)[None, :]
        mask = row_mask[:, None] & valid
        lse = tl.where(valid, tl.load(lse_ptr + item, mask=mask, other=0.0), float("-inf"))
        o_ptr = partial_ptr + item[:, :, None] * D + d[None, None, :]
        o = tl.load(o_ptr, mask=mask[:, :, None] & (d < D)[None, None, :], other=0.0)
        new_best = tl.maximum(best, tl.max(lse, axis=1))
        weight = tl.exp2(lse - new_best[:, None])
        decay = tl.exp2(best - new_best)
        weight_sum = weight_sum * decay + tl.sum(weight, axis=1)
        acc = acc * decay[:, None] + tl.sum(weight[:, :, None] * o, axis=1)
        best = new_best
    row = (first_row + query).to(tl.int64)
    to_ptr = out_ptr + (row * out_stride + (kv_head * G + m % G) * D)[:, None] + d[None, :]
    out = round_to(acc / weight_sum[:, None], out_ptr.dtype.element_ty)
    tl.store(to_ptr, out, mask=row_mask[:, None] & (d < D)[None, :])


def merge_options(rows: int) -> dict[str, int]:
    """More rows a program where tiles have more: most programs have nothing to merge and only end."""
    block_r = max(rows // 8, 4)
    return {"BLOCK_R": block_r, "BLOCK_W": MERGE_ROWS // block_r, "num_warps": 4}


@dataclass
class SplitPlan:
    """Device buffers for the attention of sequences with ``least`` to ``most`` query tokens, allocated once.

    ``update`` fills them, once per step; attention reads them, and all layers of one window (0: none) share
    the workspace.
    """

    max_seqs: int
    num_q_heads: int
    rows: int  # M
    least: int
    most: int
    window: int
    programs: int  # P, of one key-value head
    waves: int
    min_chunk: int  # tokens
    uniform: bool  # no row's result may depend on where its tile begins
    first_work_I: torch.Tensor
    first_slot_I: torch.Tensor
    chunk: torch.Tensor  # [1], tokens
    partial_NKMD: torch.Tensor
    lse_NKM: torch.Tensor
    merges: bool = True  # whether this step may have a split

    @classmethod
    def allocate(
        cls,
        *,
        max_seqs: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rows: int,
        least: int,
        most: int,
        window: int,
        min_chunk: int,
        programs: int,
        waves: int,
        uniform: bool,
        device: torch.device | str,
    ) -> SplitPlan:
        """``programs``: that run at a time, of all key-value heads. A uniform plan splits nothing."""
        programs = max(programs // num_kv_heads, 1)
        if window:
            # Half of it, the least that an even split has, reaches beyond the window's edge.
            min_chunk = max(min_chunk, 2 * (CHUNK_MULTIPLE + rows // (num_q_heads // num_kv_heads)))
        if uniform:
            min_chunk = UNSPLIT
        lse_shape = (0 if uniform else 2 * programs * waves, num_kv_heads, rows)
        entries = next_power_of_2(max_seqs + 1)
        return cls(
            max_seqs=max_seqs,
            num_q_heads=num_q_heads,
            rows=rows,
            least=least,
            most=most,
            window=window,
            programs=programs,
            waves=waves,
            min_chunk=min_chunk,
            uniform=uniform,
            first_work_I=torch.zeros(entries, dtype=torch.int32, device=device),
            first_slot_I=torch.zeros(entries, dtype=torch.int32, device=device),
            chunk=torch.full((1,), min_chunk, dtype=torch.int32, device=device),
            partial_NKMD=torch.empty(*lse_shape, head_dim, dtype=torch.float32, device=device),
            lse_NKM=torch.empty(lse_shape, dtype=torch.float32, device=device),
            merges=not uniform,
        )

    @property
    def tile_tokens(self) -> int:
        return self.rows // (self.num_q_heads // self.lse_NKM.shape[1])

    def max_work(self, tokens: int, seqs: int) -> int:
        """The most work items of a step, a head: what the grid must hold."""
        tiles = seqs if self.most <= self.tile_tokens else tokens // self.tile_tokens + seqs
        return tiles if self.uniform else tiles + self.programs * self.waves

    def update(
        self, query_start: torch.Tensor, context_len_S: torch.Tensor, longest: int | None = None
    ) -> None:
        """Plan the work of a step, on the device. ``longest`` is the longest context where the host knows it:
        the merge is not launched where that is too short for a split.

        Raises TypeError or ValueError naming the argument.
        """
        check = Checker("SplitPlan.update")
        check.tensor("context_len", context_len_S, "S", [torch.int32])
        check.tensor("query_start", query_start, str(check["S"] + 1), [torch.int32])
        check.tensor("the plan", self.chunk, "1", [torch.int32])
        check.require(
            check["S"] <= self.max_seqs,
            f"the plan is for {self.max_seqs} sequences, context_len has {check['S']}",
        )
        self.merges = not self.uniform and (longest is None or longest > self.min_chunk)
        plan_kernel[(1,)](
            query_start, context_len_S, self.first_work_I, self.first_slot_I, self.chunk, check["S"],
            LEAST=self.least, MOST=self.most, BLOCK_Q=self.tile_tokens,
            PROGRAMS=self.programs, WAVES=self.waves, COST=ITEM_COST,
            MIN_CHUNK=self.min_chunk, MULTIPLE=CHUNK_MULTIPLE,
            BLOCK_S=len(self.first_work_I), WINDOW=self.window, num_warps=PLAN_WARPS,
        )  # fmt: skip
