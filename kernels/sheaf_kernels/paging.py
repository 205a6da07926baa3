"""Where a token's keys and values lie.

Caches are [P, K, B, D]: P pages, K key-value heads, B slots a page, D head size. Token t of a sequence is
slot t % B of page block_table[t // B]."""

import torch
import triton
import triton.language as tl


@triton.jit
def page_offsets(
    pages_ptr,
    tile,
    n,
    valid,
    K: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Element offsets (int64) of tokens tile + n from the head's place in page 0; ``tile`` is a multiple of
    BLOCK_N.

    A page index times its stride overflows 32 bits in a cache over 2^31 elements, hence the cast after the
    load. Tokens that are not valid are looked for in page 0.
    """
    if B % BLOCK_N == 0:
        # The whole tile lies in one page: one scalar load.
        page = tl.load(pages_ptr + tile // B).to(tl.int64)
    else:
        page = tl.load(pages_ptr + (tile + n) // B, mask=valid, other=0).to(tl.int64)
    return page * (K * B * D) + (tile + n) % B * D


def gather_kv_reference(
    k_cache_PKBD: torch.Tensor,
    v_cache_PKBD: torch.Tensor,
    block_table_M: torch.Tensor,
    context_len: int,
    num_q_heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first C = ``context_len`` keys and values of one sequence, repeated for its Q query heads."""
    page_size = k_cache_PKBD.shape[2]
    token = torch.arange(context_len, device=k_cache_PKBD.device)
    page, slot = block_table_M[token // page_size].long(), token % page_size
    group = num_q_heads // k_cache_PKBD.shape[1]
    k_CQD = k_cache_PKBD[page, :, slot].repeat_interleave(group, dim=1)
    v_CQD = v_cache_PKBD[page, :, slot].repeat_interleave(group, dim=1)
    return k_CQD, v_CQD
