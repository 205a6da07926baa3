"""From logits to one token a row, without a sort: greedy, temperature, top-k, top-p.

    greedy (temperature 0)   the largest logit; the lowest token id among equals
    otherwise                p = softmax(logits / temperature)
                             top-k keeps the k likeliest tokens; of these, top-p keeps the shortest prefix in
                             descending order whose share of their mass reaches top_p;
                             u in [0, 1) draws the first token whose cumulative mass exceeds u times the
                             mass that is kept

The cumulative order is descending probability where top-k or top-p filter, and token id where neither does.
That is the order of the sampler on CPU: equal numbers u draw equal tokens there and here, but for rounding.

Two launches. The first splits the vocabulary over programs: of each chunk of tokens it keeps the largest
logit, the first token that has it, and the mass. The second has one program a row, which combines the chunks.
That is all for greedy rows; a row that nothing filters finds the chunk in which its draw falls by the chunks'
masses, and reads that chunk alone.

Rows with top-k or top-p read the whole row again, many times, in that one program. Their steps are one
question: where does a running total over the tokens in some order first exceed a target? (For top-k the total
counts tokens, for top-p and the draw it adds probability.) ``search`` answers it. Each token has a key of 64
bits, larger for tokens that come earlier: the logit's bits in an order that integers share, above the
complement of the token id, which breaks ties. A pass over the row fixes two bits of the key: the totals of
the four sub-ranges say in which one the target falls. It ends when one token is left, after about ten passes.
top-k, top-p and the draw are a search each; a pass takes the row's bytes over what one multiprocessor can
read.

The kernel has no random state: u is an argument, a pure function of (seed, output position) that the
caller computes, the same for every device.

Shapes: S rows, V vocabulary.  logits_SV; temperature_S (float32), top_k_S (int32, 0 keeps all), top_p_S,
uniform_S (float64); token_S (int64). C chunks: best_SC (float32), first_SC (int32), mass_SC (float32).
Source: pivots instead of a sort as in FlashInfer, arXiv 2501.01005.
"""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import INTERPRETED, next_power_of_2

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3.0e38)
CHUNK_V = 1024  # tokens of a program of the first launch
MAX_BLOCK_V = 2048  # tokens that a pass reads at a time
NUM_WARPS = 16
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
def chunk_kernel(
    logits_ptr, temperature_ptr, best_ptr, first_ptr, mass_ptr, logits_stride,
    V: tl.constexpr, C: tl.constexpr, CHUNK_V: tl.constexpr,
):  # fmt: skip
    """One chunk of one row per program. Its mass is relative to its own largest logit."""
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    v = chunk * CHUNK_V + tl.arange(0, CHUNK_V)
    logit = tl.load(logits_ptr + row * logits_stride + v, mask=v < V, other=float("-inf")).to(tl.float32)
    best = tl.max(logit, axis=0)
    to = row * C + chunk
    tl.store(best_ptr + to, best)
    tl.store(first_ptr + to, tl.min(tl.where(logit == best, v, V), axis=0))
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0.0:
        # A chunk may be banned as a whole, and -inf minus -inf is NaN.
        mass = tl.exp2((logit - tl.maximum(best, _LOWEST)) * (_LOG2_E / temperature))
        tl.store(mass_ptr + to, tl.sum(mass, axis=0))


@triton.jit
def draw_by_id(
    row_ptr, mass_C, target, best, scale,
    V: tl.constexpr, CHUNK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The first token, by id, at which the running mass exceeds ``target``: the chunk first, then within."""
    c = tl.arange(0, BLOCK_C)
    # If rounding keeps the total below the target, it is the last with mass.
    last_chunk = tl.max(tl.where(mass_C > 0, c, -1), axis=0)
    beyond = (tl.cumsum(mass_C, axis=0) > target) & (mass_C > 0)
    chunk = tl.minimum(tl.min(tl.where(beyond, c, BLOCK_C), axis=0), last_chunk)
    before = tl.sum(tl.where(c < chunk, mass_C, 0.0), axis=0)
    v = chunk * CHUNK_V + tl.arange(0, CHUNK_V)
    logit = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
    mass = tl.exp2((logit - best) * scale).to(tl.float64)
    last = tl.max(tl.where(mass > 0, v, -1), axis=0)
    beyond = (before + tl.cumsum(mass, axis=0) > target) & (mass > 0)
    return tl.minimum(tl.min(tl.where(beyond, v, V), axis=0), last)


@triton.jit
def token_keys(logit, v):
    """uint64 keys of tokens ``v``: larger for larger logits, then for lower ids."""
    logit = tl.where(logit == 0.0, 0.0, logit)  # -0.0 equals 0.0 but has other bits
    bits = logit.to(tl.int32, bitcast=True)
    # Negative floats order backwards: flip all bits but their sign, then move the whole range above zero.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 0x80000000
    return (ordered.to(tl.uint64) << 32) | (0xFFFFFFFF - v.to(tl.int64)).to(tl.uint64)


@triton.jit
def load_block(row_ptr, start, best, scale, V: tl.constexpr, BLOCK_V: tl.constexpr):
    """Keys, masses (float32, 1 for the likeliest token) and validity of BLOCK_V tokens."""
    v = start + tl.arange(0, BLOCK_V)
    valid = v < V
    logit = tl.load(row_ptr + v, mask=valid, other=float("-inf")).to(tl.float32)
    return token_keys(logit, v), tl.exp2((logit - best) * scale), valid


@triton.jit
def mass_from(row_ptr, least, best, scale, V: tl.constexpr, BLOCK_V: tl.constexpr):
    """The mass of the tokens whose key is at least ``least``, in float64."""
    acc = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, V, BLOCK_V):
        key, mass, valid = load_block(row_ptr, start, best, scale, V, BLOCK_V)
        acc += tl.where(valid & (key >= least), mass, 0.0)
    return tl.sum(acc, axis=0).to(tl.float64)


@triton.jit
def search(
    row_ptr, least, target, best, scale,
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
            key, mass, valid = load_block(row_ptr, start, best, scale, V, BLOCK_V)
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
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, uniform_ptr, best_ptr, first_ptr, mass_ptr,
    token_ptr, logits_stride,
    V: tl.constexpr, C: tl.constexpr, CHUNK_V: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    temperature = tl.load(temperature_ptr + row)

    c = tl.arange(0, BLOCK_C)
    best_C = tl.load(best_ptr + row * C + c, mask=c < C, other=float("-inf"))
    best = tl.max(best_C, axis=0)
    if temperature == 0.0:
        first_C = tl.load(first_ptr + row * C + c, mask=c < C, other=V)
        tl.store(token_ptr + row, tl.min(tl.where(best_C == best, first_C, V), axis=0).to(tl.int64))
        return
    scale = _LOG2_E / temperature
    mass_C = tl.load(mass_ptr + row * C + c, mask=c < C, other=0.0) * tl.exp2((best_C - best) * scale)
    mass_C = mass_C.to(tl.float64)
    kept = tl.sum(mass_C, axis=0)
    uniform = tl.load(uniform_ptr + row)

    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    top_k = tl.where((top_k <= 0) | (top_k > V), V, top_k)
    if (top_k == V) & (top_p >= 1.0):
        token = draw_by_id(row_ptr, mass_C, uniform * kept, best, scale, V, CHUNK_V, BLOCK_C)
        tl.store(token_ptr + row, token.to(tl.int64))
        return
    least = tl.full([], 0, tl.uint64)
    if top_k < V:
        least, _ = search(
            row_ptr, least, (top_k - 1).to(tl.float64), best, scale,
            COUNT=True, REACH=False, V=V, BLOCK_V=BLOCK_V, BITS=BITS,
        )  # fmt: skip
        kept = mass_from(row_ptr, least, best, scale, V, BLOCK_V)
    if top_p < 1.0:
        low, _ = search(
            row_ptr, least, top_p * kept, best, scale,
            COUNT=False, REACH=True, V=V, BLOCK_V=BLOCK_V, BITS=BITS,
        )  # fmt: skip
        # The sub-range may reach below what top-k kept.
        least = tl.maximum(least, low)
        kept = mass_from(row_ptr, least, best, scale, V, BLOCK_V)

    low, shift = search(
        row_ptr, least, uniform * kept, best, scale,
        COUNT=False, REACH=False, V=V, BLOCK_V=BLOCK_V, BITS=BITS,
    )  # fmt: skip
    zero = tl.full([], 0, tl.uint64)
    found_acc = tl.zeros([BLOCK_V], tl.uint64)
    width = shift.to(tl.uint64)
    for start in range(0, V, BLOCK_V):
        key, mass, valid = load_block(row_ptr, start, best, scale, V, BLOCK_V)
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
    rows, vocab = check["S"], check["V"]
    chunks = triton.cdiv(vocab, CHUNK_V)
    best_SC, mass_SC = torch.empty(2, rows, chunks, dtype=torch.float32, device=logits_SV.device)
    first_SC = torch.empty(rows, chunks, dtype=torch.int32, device=logits_SV.device)
    chunk_kernel[(chunks, rows)](
        logits_SV, temperature_S, best_SC, first_SC, mass_SC, logits_SV.stride(0),
        V=vocab, C=chunks, CHUNK_V=CHUNK_V, num_warps=4,
    )  # fmt: skip
    sample_kernel[(rows,)](
        logits_SV, temperature_S, top_k_S, top_p_S, uniform_S, best_SC, first_SC, mass_SC,
        token_S, logits_SV.stride(0),
        V=vocab, C=chunks, CHUNK_V=CHUNK_V, BLOCK_C=next_power_of_2(chunks),
        BLOCK_V=min(next_power_of_2(vocab), MAX_BLOCK_V), BITS=DIGIT_BITS, num_warps=NUM_WARPS,
    )  # fmt: skip
    return token_S
