"""From logits to one token a row, without a sort: greedy, temperature, top-k, top-p.

    greedy (temperature 0)   the largest logit; the lowest token id among equals
    otherwise                p = softmax(logits / temperature)
                             top-k keeps the k likeliest tokens; of these, top-p keeps the shortest prefix in
                             descending order whose share of their mass reaches top_p;
                             u in [0, 1) draws the first token whose cumulative mass exceeds u times the
                             mass that is kept

The cumulative order is descending probability where top-k or top-p filter, and token id where neither does.
That is the order of the sampler on CPU: equal numbers u draw equal tokens there and here, but for rounding.

All three steps are one question: where does a running total over the tokens in some order first exceed a
target? (For top-k the total counts tokens, for top-p and the draw it adds probability.) ``search`` answers
it. Each token has a 64-bit key, larger for tokens that come earlier: the logit's bits in an order that
integers share, above the complement of the token id, which breaks ties. A pass over the row fixes two bits of
the key: the totals of the four sub-ranges say in which one the target falls. It ends when one token is left,
after about ten passes.

The kernel has no random state: u is an argument, a pure function of (seed, output position) that the
caller computes, the same for every device.

Shapes: S rows, V vocabulary.  logits_SV; temperature_S (float32), top_k_S (int32, 0 keeps all), top_p_S,
uniform_S (float64); token_S (int64).
Source: pivots instead of a sort as in FlashInfer, arXiv 2501.01005.
"""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import INTERPRETED, next_power_of_2

_LOG2_E = tl.constexpr(1.4426950408889634)
MAX_BLOCK_V = 1024
NUM_WARPS = 8
# Bits of the key that a pass over the row fixes. The interpreter pays by the operation, not by the element.
DIGIT_BITS = 8 if INTERPRETED else 2


def distribution_reference(
    logits_V: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(order_N, mass_N): token ids in cumulative order and their probabilities, 0 where filtered out."""
    vocab = len(logits_V)
    logits_V = logits_V.double()
    order = logits_V.sort(descending=True, stable=True).indices
    top_k = top_k if 0 < top_k < vocab else vocab
    if temperature == 0:
        return order[:1], torch.ones_like(logits_V[:1])
    if top_k == vocab and top_p >= 1:
        order = torch.arange(vocab, device=logits_V.device)
    p_N = (logits_V[order[:top_k]] / temperature).softmax(-1)
    return order[:top_k], p_N * (p_N.cumsum(-1) - p_N < top_p)


def sample_reference(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    """token_S, by sorting, in float64."""
    token_S = torch.empty(len(logits_SV), dtype=torch.int64, device=logits_SV.device)
    for s, logits_V in enumerate(logits_SV):
        order, mass = distribution_reference(
            logits_V, float(temperature_S[s]), int(top_k_S[s]), float(top_p_S[s])
        )
        total_N = mass.cumsum(-1)
        index = torch.searchsorted(total_N, uniform_S[s] * total_N[-1], right=True)
        # u < 1, but rounding may put the point on the total: step back to the last token with mass.
        token_S[s] = order[torch.minimum(index, mass.nonzero().max())]
    return token_S


@triton.jit
def token_keys(logit, v, by_id):
    """uint64 keys of tokens ``v``: larger for larger logits, then for lower ids; by id alone if ``by_id``."""
    logit = tl.where(logit == 0.0, 0.0, logit)  # -0.0 equals 0.0 but has other bits
    bits = logit.to(tl.int32, bitcast=True)
    # Negative floats order backwards: flip all bits but their sign, then move the whole range above zero.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 0x80000000
    ordered = tl.where(by_id, 0, ordered)
    return (ordered.to(tl.uint64) << 32) | (0xFFFFFFFF - v.to(tl.int64)).to(tl.uint64)


@triton.jit
def load_block(row_ptr, start, best, scale, by_id, V: tl.constexpr, BLOCK_V: tl.constexpr):
    """Keys, masses (float32, 1 for the likeliest token) and validity of BLOCK_V tokens."""
    v = start + tl.arange(0, BLOCK_V)
    valid = v < V
    logit = tl.load(row_ptr + v, mask=valid, other=float("-inf")).to(tl.float32)
    return token_keys(logit, v, by_id), tl.exp2((logit - best) * scale), valid


@triton.jit
def mass_from(row_ptr, least, best, scale, by_id, V: tl.constexpr, BLOCK_V: tl.constexpr):
    """The mass of the tokens whose key is at least ``least``, in float64."""
    acc = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, V, BLOCK_V):
        key, mass, valid = load_block(row_ptr, start, best, scale, by_id, V, BLOCK_V)
        acc += tl.where(valid & (key >= least), mass, 0.0)
    return tl.sum(acc, axis=0).to(tl.float64)


@triton.jit
def search(
    row_ptr, least, target, best, scale, by_id,
    COUNT: tl.constexpr, REACH: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The token at which a total over the tokens, in descending order of key, exceeds ``target``.

    The total counts tokens (COUNT) or adds mass, and with REACH it is enough to reach the target. Only
    tokens with mass and with a key of at least ``least`` take part; there must be one. Returns (low, shift):
    the token is the only one of them whose key >> shift is low >> shift. If rounding keeps the total below
    the target, it is the last one.
    """
    D: tl.constexpr = 2**BITS
    digit_D = tl.arange(0, D)
    low = tl.full([], 0, tl.uint64)
    shift = tl.full([], 64 - BITS, tl.int32)
    above = tl.full([], 0.0, tl.float64)
    left = tl.full([], 2, tl.int32)
    while (left > 1) & (shift >= 0):
        width = shift.to(tl.uint64)
        mass_acc = tl.zeros([D, BLOCK_V], tl.float32)
        count_acc = tl.zeros([D, BLOCK_V], tl.int32)
        for start in range(0, V, BLOCK_V):
            key, mass, valid = load_block(row_ptr, start, best, scale, by_id, V, BLOCK_V)
            # Two shifts: one of 64 bits is undefined.
            inside = valid & (key >= least) & (mass > 0) & ((key >> width) >> BITS == (low >> width) >> BITS)
            digit = ((key >> width) & (D - 1)).to(tl.int32)
            hit = inside[None, :] & (digit[None, :] == digit_D[:, None])
            count_acc += hit.to(tl.int32)
            if not COUNT:
                mass_acc += tl.where(hit, mass[None, :], 0.0)
        count = tl.sum(count_acc, axis=1)
        amount = count.to(tl.float64) if COUNT else tl.sum(mass_acc, axis=1).to(tl.float64)
        # total[d]: of everything down to and including sub-range d, the highest first.
        from_above = digit_D[None, :] >= digit_D[:, None]
        total = above + tl.sum(tl.where(from_above, amount[None, :], 0.0), axis=1)
        enough = total >= target if REACH else total > target
        chosen = tl.max(tl.where(enough & (count > 0), digit_D, -1), axis=0)
        lowest = tl.min(tl.where(count > 0, digit_D, D), axis=0)
        chosen = tl.where(chosen < 0, lowest, chosen)
        above += tl.sum(tl.where(digit_D > chosen, amount, 0.0), axis=0)
        left = tl.sum(tl.where(digit_D == chosen, count, 0), axis=0)
        low = low | (chosen.to(tl.uint64) << width)
        shift -= BITS
    return low, shift + BITS


@triton.jit
def sample_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, uniform_ptr, token_ptr, logits_stride,
    V: tl.constexpr, BLOCK_V: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    temperature = tl.load(temperature_ptr + row)

    zero = tl.full([], 0, tl.uint64)
    first_acc = tl.zeros([BLOCK_V], tl.uint64)
    best_acc = tl.full([BLOCK_V], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        logit = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
        best_acc = tl.maximum(best_acc, logit)
        first_acc = tl.maximum(first_acc, tl.where(v < V, token_keys(logit, v, False), zero))
    if temperature == 0.0:
        first = tl.max(first_acc, axis=0)
        tl.store(token_ptr + row, 0xFFFFFFFF - (first & 0xFFFFFFFF).to(tl.int64))
        return
    best = tl.max(best_acc, axis=0)
    scale = _LOG2_E / temperature

    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    top_k = tl.where((top_k <= 0) | (top_k > V), V, top_k)
    by_id = (top_k == V) & (top_p >= 1.0)
    least = zero
    if top_k < V:
        least, _ = search(
            row_ptr, least, (top_k - 1).to(tl.float64), best, scale, by_id,
            COUNT=True, REACH=False, V=V, BLOCK_V=BLOCK_V, BITS=BITS,
        )  # fmt: skip
    kept = mass_from(row_ptr, least, best, scale, by_id, V, BLOCK_V)
    if top_p < 1.0:
        low, _ = search(
            row_ptr, least, top_p * kept, best, scale, by_id,
            COUNT=False, REACH=True, V=V, BLOCK_V=BLOCK_V, BITS=BITS,
        )  # fmt: skip
        # The sub-range may reach below what top-k kept.
        least = tl.maximum(least, low)
        kept = mass_from(row_ptr, least, best, scale, by_id, V, BLOCK_V)

    low, shift = search(
        row_ptr, least, tl.load(uniform_ptr + row) * kept, best, scale, by_id,
        COUNT=False, REACH=False, V=V, BLOCK_V=BLOCK_V, BITS=BITS,
    )  # fmt: skip
    found_acc = tl.zeros([BLOCK_V], tl.uint64)
    width = shift.to(tl.uint64)
    for start in range(0, V, BLOCK_V):
        key, mass, valid = load_block(row_ptr, start, best, scale, by_id, V, BLOCK_V)
        match = valid & (key >= least) & (mass > 0) & (key >> width == low >> width)
        found_acc = tl.maximum(found_acc, tl.where(match, key, zero))
    found = tl.max(found_acc, axis=0)
    tl.store(token_ptr + row, 0xFFFFFFFF - (found & 0xFFFFFFFF).to(tl.int64))


def sample(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    """token_S, as ``sample_reference`` gives it. Raises TypeError or ValueError naming the argument.

    Every row needs a finite logit; NaN is not allowed. A logit of -inf bans its token.
    """
    check = Checker("sample")
    check.tensor("logits", logits_SV, "S V", FLOATS)
    check.tensor("temperature", temperature_S, "S", [torch.float32])
    check.tensor("top_k", top_k_S, "S", [torch.int32])
    check.tensor("top_p", top_p_S, "S", [torch.float64])
    check.tensor("uniform", uniform_S, "S", [torch.float64])
    token_S = torch.empty(check["S"], dtype=torch.int64, device=logits_SV.device)
    if check["S"] == 0:
        return token_S
    sample_kernel[(check["S"],)](
        logits_SV, temperature_S, top_k_S, top_p_S, uniform_S, token_S, logits_SV.stride(0),
        V=check["V"], BLOCK_V=min(next_power_of_2(check["V"]), MAX_BLOCK_V),
        BITS=DIGIT_BITS, num_warps=NUM_WARPS,
    )  # fmt: skip
    return token_S
