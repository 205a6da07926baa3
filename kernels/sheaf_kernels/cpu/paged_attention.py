"""Attention over a paged KV cache, and the write that fills it.

    out[t, h] = softmax(scale * q[t, h] K^T) V       over the keys that token t sees, in float32

Keys of a page are panels of a linear layer (linear.py): [page, kv_head, slot / L, D, L] in float32, and in
bfloat16 [page, kv_head, slot / L, D / 2, L, 2], so that L keys are met at once and nothing is gathered.
Values are [page, kv_head, slot, D], and in bfloat16 [page, kv_head, slot / 2, D, 2]. A work item is the query
heads of one key/value head, for up to 48 rows of one request or for one chunk of 512 keys of a single query;
threads take up items as they become free.

Softmax goes by blocks of 64 keys and chunks of 512 at fixed positions, so a row's result does not depend on
the batch, on how a prompt was cut, or on the number of threads.

Shapes: T tokens, R requests, Q query and K key/value heads, D head size (a multiple of 16, at most 256),
P pages, B slots of a page (a multiple of 16).
q_TQD, out_TQD, table_RP (int32), query_start [R + 1], context_len [R].
Source: Kwon et al., arXiv 2309.06180; Dao, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_long, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sheaf_kernels.cpu.checks import describe, fits, refuse
from sheaf_kernels.cpu.library import DTYPES, load
from sheaf_kernels.cpu.program import output, recording

CHUNK = 512  # keys whose softmax is begun anew, as in csrc/attention.c
MULTIPLE = 16  # of head sizes and of a page: the widest vector
MAX_HEAD_DIM = 256
MAX_GROUP = 48  # query heads that share a key/value head
_ITEM_INTS = 5


def problem(head_dim: int, group: int, block_size: int, dtype: torch.dtype) -> str | None:
    """Why there is no kernel for a model, or None."""
    if dtype not in DTYPES:
        return f"kernels exist for float32 and bfloat16, not for {str(dtype).removeprefix('torch.')}"
    if head_dim % MULTIPLE or head_dim > MAX_HEAD_DIM:
        wanted = f"multiples of {MULTIPLE} up to {MAX_HEAD_DIM}"
        return f"the model's head size is {head_dim}, kernels exist for {wanted}"
    if group > MAX_GROUP:
        return f"{group} query heads share a key/value head, kernels take up to {MAX_GROUP}"
    if block_size % MULTIPLE:
        return f"--block-size is {block_size}, kernels exist for multiples of {MULTIPLE}"
    return None


def key_panels(keys_PKBD: torch.Tensor) -> torch.Tensor:
    """Keys [page, kv_head, slot, D] as the cache holds them, in the same shape."""
    P, K, B, D = keys_PKBD.shape
    pair = 2 if keys_PKBD.dtype == torch.bfloat16 else 1
    lanes = load().lanes
    panels = keys_PKBD.reshape(P, K, B // lanes, lanes, D // pair, pair).transpose(3, 4)
    return panels.reshape(P, K, B, D)


def value_pairs(values_PKBD: torch.Tensor) -> torch.Tensor:
    """Values [page, kv_head, slot, D] as the cache holds them, in the same shape."""
    if values_PKBD.dtype is not torch.bfloat16:
        return values_PKBD
    P, K, B, D = values_PKBD.shape
    return values_PKBD.reshape(P, K, B // 2, 2, D).transpose(3, 4).reshape(P, K, B, D)


def rope_kv_write(
    qkv_TND: torch.Tensor,
    cos_TH: torch.Tensor,
    sin_TH: torch.Tensor,
    slots_T: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Rotate channel d with d + D/2 of the Q query and K key heads in place, store keys and values in their
    slots (page * B + slot), return the queries [T, Q, D]. cos and sin are float32 [T, D/2]; N = Q + 2K."""
    T, heads, D = qkv_TND.shape
    K, B = keys.shape[1], keys.shape[2]
    if not fits(qkv_TND, keys.dtype, 3) or qkv_TND.stride(1) != D or keys.shape[3] != D or heads <= 2 * K:
        raise refuse(
            "rope_kv_write", f"qkv must be {keys.dtype} [T, Q + {2 * K}, {D}], got {describe(qkv_TND)}"
        )
    for name, angles in (("cos", cos_TH), ("sin", sin_TH)):
        if not fits(angles, torch.float32, 2) or angles.shape != (T, D // 2) or not angles.is_contiguous():
            raise refuse(
                "rope_kv_write",
                f"{name} must be float32 [{T}, {D // 2}] in one piece, got {describe(angles)}",
            )
    if not fits(slots_T, torch.int64, 1) or len(slots_T) != T:
        raise refuse("rope_kv_write", f"slots must be int64 [{T}], got {describe(slots_T)}")
    library = load()
    library.functions.sheaf_rope_kv_write(
        recording(),
        qkv_TND.data_ptr(),
        qkv_TND.stride(0),
        cos_TH.data_ptr(),
        sin_TH.data_ptr(),
        slots_T.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        T,
        heads - 2 * K,
        K,
        D,
        B,
        keys.dtype is torch.bfloat16,
        library.threads,
    )
    return qkv_TND[:, : heads - 2 * K]


class PlanAddresses(ctypes.Structure):
    """What a kernel is given of a plan: ``plan`` in csrc/attention.c."""

    _fields_ = (
        ("table", c_void_p),
        ("query_start", c_void_p),
        ("context_len", c_void_p),
        ("items", c_void_p),
        ("partials", c_void_p),
        ("table_stride", c_long),
        ("count", c_int),
        ("window", c_int),
    )


@dataclass(frozen=True)
class Plan:
    """One step's requests in one KV group, and the work items they make. Arrays are kept, since kernels read
    them in every layer. A program reads ``addresses`` where they lay when it was recorded; ``takes`` says how
    another step's plan comes there."""

    addresses: PlanAddresses
    tokens: int
    arrays: tuple[npt.NDArray[Any] | torch.Tensor, ...]

    def takes(self, other: Plan) -> tuple[int, int, int]:
        """A ``Feed``'s piece that brings the other's requests to this one's place."""
        size = ctypes.sizeof(PlanAddresses)
        return ctypes.addressof(self.addresses), ctypes.addressof(other.addresses), size

    def copy(self) -> Plan:
        """The same at another place."""
        return Plan(PlanAddresses.from_buffer_copy(self.addresses), self.tokens, self.arrays)


def make_plan(
    table_RP: npt.NDArray[np.int32],
    query_start: npt.NDArray[np.int64],
    context_len: npt.NDArray[np.int64],
    *,
    group: int,
    kv_heads: int,
    head_dim: int,
    window: int = 0,
) -> Plan:
    """``window`` 0 sees everything. Entries of the table before a window's first page are not read."""
    library = load()
    table_RP = np.ascontiguousarray(table_RP, dtype=np.int32)
    query_start = np.ascontiguousarray(query_start, dtype=np.int64)
    context_len = np.ascontiguousarray(context_len, dtype=np.int64)
    queries = np.diff(query_start)
    if (queries < 1).any() or (context_len < queries).any():
        raise refuse("make_plan", "each request has at least one query, and no more than its context is long")
    splits = int(context_len.max()) // CHUNK + 2 if len(queries) * kv_heads < 4 * library.threads else 1
    most = int((queries // (MAX_GROUP // group) + 1).sum()) + len(queries) * splits
    items = np.empty((most, _ITEM_INTS), np.int32)
    at = PlanAddresses(
        table=table_RP.ctypes.data,
        query_start=query_start.ctypes.data,
        context_len=context_len.ctypes.data,
        items=items.ctypes.data,
        table_stride=table_RP.shape[1],
        window=window,
    )
    at.count = library.functions.sheaf_attention_items(
        at.query_start, at.context_len, len(queries), group, kv_heads, window, library.threads, at.items, most
    )
    assert at.count >= 0, "more work items than there can be"
    floats = library.functions.sheaf_attention_scratch(at.items, at.count, kv_heads, head_dim)
    partials = torch.empty(floats)
    at.partials = partials.data_ptr() if floats else None
    return Plan(at, int(query_start[-1]), (table_RP, query_start, context_len, items, partials))


def paged_attention(
    q_TQD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: Plan,
    scale: float,
    *,
    softcap: float = 0.0,
    sinks_Q: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, Q, D]. ``softcap`` 0 is none; ``sinks_Q`` are scores that take part in the softmax and add
    nothing."""
    T, Q, D = q_TQD.shape
    if not fits(q_TQD, keys.dtype, 3) or q_TQD.stride(1) != D or keys.shape[3] != D or Q % keys.shape[1]:
        raise refuse(
            "paged_attention", f"q must be {keys.dtype} [T, Q, {keys.shape[3]}], got {describe(q_TQD)}"
        )
    if plan.tokens != T:
        raise refuse("paged_attention", f"the plan is for {plan.tokens} tokens, q has {T}")
    if sinks_Q is not None and (not fits(sinks_Q, keys.dtype, 1) or len(sinks_Q) != Q):
        raise refuse("paged_attention", f"sinks must be {keys.dtype} [{Q}], got {describe(sinks_Q)}")
    out_TQD = output((T, Q, D), keys.dtype)
    library = load()
    library.functions.sheaf_paged_attention(
        recording(),
        q_TQD.data_ptr(),
        q_TQD.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
        ctypes.addressof(plan.addresses),
        None if sinks_Q is None else sinks_Q.data_ptr(),
        out_TQD.data_ptr(),
        Q,
        keys.shape[1],
        D,
        keys.shape[2],
        scale,
        softcap,
        keys.dtype is torch.bfloat16,
        library.threads,
    )
    return out_TQD
