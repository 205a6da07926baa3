"""Where a running total over tokens, in descending order, first exceeds a target: a search by digits.

Tokens are ordered by key, 64 bits, larger for what comes earlier: above, an integer image of the logit that
keeps its order; below, the complement of the token id, which breaks ties. Where the order is that of the ids
alone the upper half is left out.

The search holds an interval of keys, from that of the last token in it to that of the first. A pass over the
tokens makes a histogram of the digit below the bits in which these two agree, of counts and of mass; the
totals from the highest digit down say in which one the target falls. A second pass finds the last and first
token there. So bits in which all tokens agree cost nothing (the lower half of the image of a bfloat16 is
sixteen of them), and the search ends when one token is left.

Shapes: N tokens, given as ids into ``row_ptr``, a row of logits. Every sum has a fixed order.
"""

import triton
import triton.language as tl


@triton.jit
def image(x):
    """int32 in the order of the float32 x, 0 for both zeros. Zeros at the end of a mantissa stay zeros."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@triton.jit
def kth_image(image_N, k, LEAST_BIT: tl.constexpr):
    """The largest multiple of 2^LEAST_BIT that at least k of the images reach; the smallest int32 where there
    is none."""
    low = tl.full([], 0, tl.int64)
    for i in tl.static_range(0, 32 - LEAST_BIT):
        trial = low + (1 << (31 - i))
        enough = tl.sum((image_N >= (trial - 0x80000000).to(tl.int32)).to(tl.int32), axis=0) >= k
        low = tl.where(enough, trial, low)
    return (low - 0x80000000).to(tl.int32)


@triton.jit
def load_tokens(row_ptr, ids_ptr, start, n, lo, hi, best, scale, by_value, BLOCK: tl.constexpr):
    """Keys of BLOCK of the n tokens, their masses (float32, 1 for the likeliest token), and which have some
    and keys from lo to hi. What is beyond the n has none."""
    i = start + tl.arange(0, BLOCK)
    v = tl.load(ids_ptr + i, mask=i < n, other=0)
    logit = tl.load(row_ptr + v, mask=i < n, other=float("-inf")).to(tl.float32)
    mass = tl.exp2((logit - best) * scale)
    upper = tl.where(by_value, image(logit).to(tl.int64) + 0x80000000, 0)
    key = (upper.to(tl.uint64) << 32) | (0xFFFFFFFF - v.to(tl.int64)).to(tl.uint64)
    return key, mass, (mass > 0) & (key >= lo) & (key <= hi)


@triton.jit
def narrow(row_ptr, ids_ptr, n, lo, hi, best, scale, by_value, BLOCK: tl.constexpr):
    """(lowest key, highest key, mass in float64) of the tokens with keys from lo to hi."""
    lowest = tl.full([BLOCK], 0xFFFFFFFFFFFFFFFF, tl.uint64)
    highest = tl.full([BLOCK], 0, tl.uint64)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        key, mass, inside = load_tokens(row_ptr, ids_ptr, start, n, lo, hi, best, scale, by_value, BLOCK)
        lowest = tl.minimum(lowest, tl.where(inside, key, lowest))
        highest = tl.maximum(highest, tl.where(inside, key, highest))
        sums += tl.where(inside, mass, 0.0)
    return tl.min(lowest, axis=0), tl.max(highest, axis=0), tl.sum(sums, axis=0).to(tl.float64)


@triton.jit
def search(
    row_ptr, ids_ptr, n, least, target, best, scale, by_value,
    COUNT: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """(key, mass): of the token at which a total over the tokens, in descending order of key, exceeds
    ``target``, and the mass of all tokens down to it and including it, in float64.

    The total counts tokens (COUNT) or adds mass, and with REACH it is enough to reach the target. Only
    tokens with mass and with a key of at least ``least`` take part; there must be one. If rounding keeps the
    total below the target, it is the last one.
    """
    D: tl.constexpr = 2**BITS
    digit_D = tl.arange(0, D)
    from_above = digit_D[None, :] >= digit_D[:, None]
    everything = tl.full([], 0xFFFFFFFFFFFFFFFF, tl.uint64)
    lo, hi, own = narrow(row_ptr, ids_ptr, n, least, everything, best, scale, by_value, BLOCK)
    count_above = tl.full([], 0, tl.int32)
    mass_above = tl.full([], 0.0, tl.float64)
    while lo < hi:
        top = tl.full([], 0, tl.uint64)  # the highest bit in which the tokens differ
        for i in tl.static_range(0, 6):
            higher = top + (32 >> i)
            top = tl.where(((lo ^ hi) >> higher) > 0, higher, top)
        shift = (tl.maximum(top.to(tl.int32), BITS - 1) - (BITS - 1)).to(tl.uint64)
        count_D = tl.zeros([D], tl.int32)
        mass_D = tl.zeros([D], tl.float64)
        for start in range(0, n, BLOCK):
            key, mass, inside = load_tokens(row_ptr, ids_ptr, start, n, lo, hi, best, scale, by_value, BLOCK)
            digit = ((key >> shift) & (D - 1)).to(tl.int32)
            hit = inside[None, :] & (digit[None, :] == digit_D[:, None])
            count_D += tl.sum(hit.to(tl.int32), axis=1)
            mass_D += tl.sum(tl.where(hit, mass[None, :], 0.0), axis=1).to(tl.float64)
        # Of everything down to and including digit d, the highest first.
        if COUNT:
            total_D = (count_above + tl.sum(tl.where(from_above, count_D[None, :], 0), axis=1)).to(tl.float64)
        else:
            total_D = mass_above + tl.sum(tl.where(from_above, mass_D[None, :], 0.0), axis=1)
        enough = total_D >= target if REACH else total_D > target
        chosen = tl.max(tl.where(enough & (count_D > 0), digit_D, -1), axis=0)
        lowest = tl.min(tl.where(count_D > 0, digit_D, D), axis=0)
        chosen = tl.where(chosen < 0, lowest, chosen)
        count_above += tl.sum(tl.where(digit_D > chosen, count_D, 0), axis=0)
        mass_above += tl.sum(tl.where(digit_D > chosen, mass_D, 0.0), axis=0)
        one = tl.full([], 1, tl.uint64)
        # Two shifts: one of 64 bits is undefined.
        first = ((((lo >> shift) >> BITS) << BITS) | chosen.to(tl.uint64)) << shift
        lo, hi, own = narrow(
            row_ptr, ids_ptr, n, tl.maximum(lo, first), tl.minimum(hi, first + ((one << shift) - one)),
            best, scale, by_value, BLOCK,
        )  # fmt: skip
    return lo, mass_above + own
