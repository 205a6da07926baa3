"""A step's first and last acts: rows of a table by their numbers, and the likeliest token of each row.

    y[t] = factor * table[index[t]]
    y[s] = argmax x[s], the first where several are largest; -1 where the largest is no finite number

A row's result does not depend on the rows beside it.

Shapes: T rows of the step, C channels, S requests that get a token, V vocabulary.
table [*, C], index_T (int32 or int64), y_TC; logits_SV, tokens_S (int64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sheaf_kernels.cpu.checks import describe, fits, refuse, require_dtype
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.program import output, recording


def take_rows_reference(table: torch.Tensor, index_T: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    y_TC = F.embedding(index_T, table)
    return y_TC if factor == 1.0 else y_TC * factor


def take_rows(table: torch.Tensor, index_T: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """Numbers are not checked: they must be those of rows."""
    dtype = table.dtype
    require_dtype("take_rows", dtype)
    if not fits(table, dtype, 2) or not table.is_contiguous():
        raise refuse("take_rows", f"the table must be [*, C] in one piece, got {describe(table)}")
    wide = index_T.dtype is torch.int64
    if not fits(index_T, torch.int64 if wide else torch.int32, 1):
        raise refuse("take_rows", f"the index must be int32 or int64 [T], got {describe(index_T)}")
    rows, channels = len(index_T), table.shape[1]
    y_TC = output((rows, channels), dtype)
    library = load()
    library.functions.sheaf_take_rows(
        recording(),
        table.data_ptr(),
        index_T.data_ptr(),
        y_TC.data_ptr(),
        factor,
        rows,
        channels,
        wide,
        dtype is torch.bfloat16,
        library.threads,
    )
    return y_TC


def likeliest_reference(logits_SV: torch.Tensor) -> torch.Tensor:
    best_S, tokens_S = logits_SV.max(dim=-1)
    return torch.where(best_S.isfinite(), tokens_S, -1)


def likeliest(logits_SV: torch.Tensor) -> torch.Tensor:
    dtype = logits_SV.dtype
    require_dtype("likeliest", dtype)
    if not fits(logits_SV, dtype, 2):
        raise refuse("likeliest", f"logits must be [S, V] with rows in one piece, got {describe(logits_SV)}")
    rows, vocab = logits_SV.shape
    tokens_S = output((rows,), torch.int64)
    library = load()
    library.functions.sheaf_likeliest(
        recording(),
        logits_SV.data_ptr(),
        logits_SV.stride(0),
        tokens_S.data_ptr(),
        rows,
        vocab,
        dtype is torch.bfloat16,
        library.threads,
    )
    return tokens_S
