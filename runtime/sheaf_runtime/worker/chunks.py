"""Attention within chunks, told as causal attention over shorter contexts.

A token that sees its own chunk alone sees all of a context that begins where the chunk does. So each request
is cut where a chunk begins, and each piece is a request of its own to attention, with that part of the table.
No kernel knows of it.

Legend: R requests, S pieces (S >= R), P pages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def cut(
    query_start: Int64, context_len: Int64, block_table_RP: Int32, *, chunk: int, block_size: int
) -> tuple[Int64, Int64, Int32]:
    """(query_start [S + 1], context_len [S], block_table_SP) of the pieces, in the order of their tokens.

    ``chunk`` is a multiple of ``block_size``.
    """
    if context_len.max() <= chunk:
        return query_start, context_len, block_table_RP
    start = context_len - np.diff(query_start)
    first, last = start // chunk, (context_len - 1) // chunk
    pieces = last - first + 1
    owner = np.repeat(np.arange(len(pieces)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[owner]
    begin = number * chunk
    end = np.minimum(context_len[owner], begin + chunk)
    queries = end - np.maximum(start[owner], begin)
    # Behind a piece's end the table may say anything.
    pages = -(-int((end - begin).max()) // block_size)
    column = np.minimum((begin // block_size)[:, None] + np.arange(pages), block_table_RP.shape[1] - 1)
    return (
        np.concatenate(([0], np.cumsum(queries))),
        end - begin,
        block_table_RP[owner[:, None], column],
    )


def most_pieces(requests: int, tokens: int, chunk: int) -> int:
    """Of a step of so many requests and tokens: each chunk that begins within a request makes one more."""
    return min(tokens, 2 * requests + tokens // chunk)
