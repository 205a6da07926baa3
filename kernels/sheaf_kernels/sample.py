"""From logits to one token a row, without a sort: wishes, greedy, temperature, min-p, top-k, top-p.

    x = logits, as the row's wishes adjust them (``adjust``)
    greedy (temperature 0)   the largest x; the lowest token id among equals
    otherwise                min-p keeps what has x >= max(x) + margin, margin = temperature * ln(min_p)
                             p = softmax(x / temperature) over what is kept
                             top-k keeps the k likeliest tokens; of these, top-p keeps the shortest prefix in
                             descending order whose share of their mass reaches top_p;
                             u in [0, 1) draws the first token whose cumulative mass exceeds u times the
                             mass that is kept
    -1                       where max(x) is no finite number

Equal logits come in order of token id: exactly k tokens are kept, and top-p may end between equals. The
cumulative order is descending probability where top-k or top-p filter, and token id where neither does.
That is the order of the sampler on CPU: equal numbers u draw equal tokens there and here, but for rounding.

Two launches. The first splits the rows over all multiprocessors and reads each logit once. It writes, of each
chunk of tokens, the largest x, the first token that has it, and the mass; of each group of 32 tokens the
largest x; and x itself where there are wishes. The second has one program a row. Greedy rows take the best
chunk; a row that nothing filters finds the chunk in which its draw falls by the chunks' masses, and reads
that chunk alone.

A filtered row first takes from the summaries a floor that every token it may keep reaches:

    min-p    max(x) + margin
    top-k    the k-th largest of the groups: k groups have a token that large
    top-p    max(x) - T * ln(V / (mass that may be left out)): all that is below adds up to less

Then it lists the tokens on or above the floor, reading only groups that have some, and works on these: the
last token that top-k keeps, the last that top-p keeps, and the drawn one are one search each (``radix``).

The kernels have no random state: u is an argument, a pure function of (seed, output position) that the
caller computes, the same for every device. A row's result does not depend on the other rows.

Shapes: S rows, V vocabulary.  logits_SV; temperature_S (float32), top_k_S (int32, 0 keeps all), top_p_S,
uniform_S (float64), margin_S (float32, -inf keeps all); token_S (int64). C chunks: best_SC (float32),
first_SC (int32), mass_SC (float32). G groups: group_best_SG (float32), listed_SG (int32). ids_SV (int32).
Source: pivots instead of a sort as in FlashInfer, arXiv 2501.01005.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sheaf_kernels.adjust import Wishes, adjust_reference, adjusted
from sheaf_kernels.checks import FLOATS, Checker
from sheaf_kernels.numerics import INTERPRETED, next_power_of_2
from sheaf_kernels.radix import image, kth_image, narrow, search

_LOG2_E = tl.constexpr(1.4426950408889634)
_LARGEST = tl.constexpr(3.0e38)
CHUNK_V = 1024  # tokens of a program of the first launch
GROUP_V = 32  # 64 or 128 bytes: what a multiprocessor reads at a time
BLOCK_N = 1024  # tokens that a pass of the second launch has in flight
SURVEY_WARPS = 4
FLOOR_BIT = 8  # the floor of top-k is exact to so many of the last bits of a float32
# Bits of the key that a pass fixes. The interpreter pays by the operation, not by the element.
DIGIT_BITS = 8 if INTERPRETED else 4


def distribution_reference(
    logits_V: torch.Tensor, temperature: float, top_k: int, top_p: float, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(order_N, mass_N): token ids in cumulative order and their probabilities, 0 where filtered out."""
    vocab = len(logits_V)
    wide_V = logits_V.float()
    likely_V = wide_V >= wide_V.max() + torch.tensor(margin, dtype=torch.float32)
    logits_V = wide_V.double().masked_fill(~likely_V, -torch.inf)
    order = logits_V.sort(descending=True, stable=True).indices
    top_k = top_k if 0 < top_k < vocab else vocab
    if temperature == 0:
        return order[:1], torch.ones_like(logits_V[:1])
    if top_k == vocab and top_p >= 1:
        order = torch.arange(vocab, device=logits_V.device)
        return order, (logits_V / temperature).softmax(-1)
    p_N = (logits_V[order[:top_k]] / temperature).softmax(-1)
    kept_N = p_N.cumsum(-1) - p_N < top_p
    kept_N[0] = True
    return order[:top_k], p_N * kept_N


def sample_reference(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    margin_S: torch.Tensor,
    uniform_S: torch.Tensor,
    *,
    wishes: Wishes | None = None,
) -> torch.Tensor:
    """token_S, by sorting, in float64."""
    if wishes is not None:
        logits_SV = adjust_reference(logits_SV, wishes)
    token_S = torch.full((len(logits_SV),), -1, device=logits_SV.device)
    for s, logits_V in enumerate(logits_SV):
        if not logits_V.max().isfinite():
            continue
        order, mass = distribution_reference(
            logits_V, float(temperature_S[s]), int(top_k_S[s]), float(top_p_S[s]), float(margin_S[s])
        )
        total_N = mass.cumsum(-1)
        index = torch.searchsorted(total_N, uniform_S[s] * total_N[-1], right=True)
        # u < 1, but rounding may put the point on the total: step back to the last token with mass.
        token_S[s] = order[torch.minimum(index, mass.nonzero().max())]
    return token_S


@triton.jit
def survey_kernel(
    logits_ptr, temperature_ptr, rows_ptr, flags_ptr, history_ptr, bias_ptr, repetition_ptr, frequency_ptr,
    presence_ptr, mask_ptr, bits_ptr, adjusted_ptr, best_ptr, first_ptr, mass_ptr, group_best_ptr,
    logits_stride, bits_stride,
    V: tl.constexpr, C: tl.constexpr, CHUNK_V: tl.constexpr, GROUP_V: tl.constexpr,
    WISHES: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """One chunk of one row per program. Its mass is relative to its own largest logit."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    v = chunk * CHUNK_V + tl.arange(0, CHUNK_V)
    valid = v < V
    logit = tl.load(logits_ptr + row * logits_stride + v, mask=valid, other=float("-inf")).to(tl.float32)
    if WISHES:
        logit = adjusted(
            logit, v, valid, row, rows_ptr, flags_ptr, history_ptr, bias_ptr, repetition_ptr, frequency_ptr,
            presence_ptr, mask_ptr, bits_ptr, bits_stride, V,
        )  # fmt: skip
        tl.store(adjusted_ptr + row * V + v, logit, mask=valid)
    # Whether a maximum is NaN where an element is depends on the device.
    numbers = tl.min((logit == logit).to(tl.int32), axis=0)
    logit = tl.where(logit == logit, logit, float("-inf"))
    best = tl.max(logit, axis=0)
    best = tl.where(numbers == 1, best, float("nan"))
    to = row * C + chunk
    tl.store(best_ptr + to, best)
    tl.store(first_ptr + to, tl.min(tl.where(logit == best, v, V), axis=0))
    if DRAWN:
        temperature = tl.load(temperature_ptr + row)
        if temperature > 0.0:
            # A chunk may be banned as a whole, and -inf minus -inf is NaN.
            finite = tl.minimum(tl.maximum(best, -_LARGEST), _LARGEST)
            mass = tl.exp2((logit - finite) * (_LOG2_E / temperature))
            tl.store(mass_ptr + to, tl.sum(mass, axis=0))
            GROUPS: tl.constexpr = CHUNK_V // GROUP_V
            group_best = tl.max(tl.reshape(logit, [GROUPS, GROUP_V]), axis=1)
            tl.store(group_best_ptr + to * GROUPS + tl.arange(0, GROUPS), group_best)


@triton.jit
def list_candidates(
    row_ptr, group_best_G, floor, listed_ptr, ids_ptr,
    V: tl.constexpr, GROUP_V: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the ids of the tokens whose image reaches ``floor``, in ascending order; returns their number."""
    G: tl.constexpr = BLOCK // GROUP_V
    keep_G = (group_best_G > float("-inf")) & (image(group_best_G) >= floor)
    place_G = tl.cumsum(keep_G.to(tl.int32), axis=0) - 1
    tl.store(listed_ptr + place_G, tl.arange(0, BLOCK_G), mask=keep_G)
    groups = tl.sum(keep_G.to(tl.int32), axis=0)
    tl.debug_barrier()  # what one thread has written, others read
    count = tl.full([], 0, tl.int32)
    for start in range(0, groups, G):
        i = start + tl.arange(0, G)
        group = tl.load(listed_ptr + i, mask=i < groups, other=0)
        v = group[:, None] * GROUP_V + tl.arange(0, GROUP_V)[None, :]
        valid = (i < groups)[:, None] & (v < V)
        logit = tl.load(row_ptr + v, mask=valid, other=float("-inf")).to(tl.float32)
        keep = tl.reshape((logit > float("-inf")) & (image(logit) >= floor), [BLOCK])
        place = count + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(ids_ptr + place, tl.reshape(v, [BLOCK]), mask=keep)
        count += tl.sum(keep.to(tl.int32), axis=0)
    tl.debug_barrier()
    return count


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
def choose_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, margin_ptr, uniform_ptr, best_ptr, first_ptr, mass_ptr,
    group_best_ptr, listed_ptr, ids_ptr, token_ptr, logits_stride,
    V: tl.constexpr, C: tl.constexpr, CHUNK_V: tl.constexpr, GROUP_V: tl.constexpr, FLOOR_BIT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    DRAWN: tl.constexpr,
):  # fmt: skip
    """One row per program."""
    G: tl.constexpr = C * (CHUNK_V // GROUP_V)
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    best_C = tl.load(best_ptr + row * C + c, mask=c < C, other=float("-inf"))
    numbers = tl.min((best_C == best_C).to(tl.int32), axis=0) == 1
    best = tl.max(tl.where(best_C == best_C, best_C, float("-inf")), axis=0)
    if (best == float("-inf")) | (best == float("inf")) | (not numbers):
        tl.store(token_ptr + row, tl.full([], -1, tl.int64))
        return
    first_C = tl.load(first_ptr + row * C + c, mask=c < C, other=V)
    first = tl.min(tl.where(best_C == best, first_C, V), axis=0).to(tl.int64)
    if not DRAWN:
        tl.store(token_ptr + row, first)
        return
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        tl.store(token_ptr + row, first)
        return
    row_ptr = logits_ptr + row * logits_stride
    scale = _LOG2_E / temperature
    mass_C = tl.load(mass_ptr + row * C + c, mask=c < C, other=0.0) * tl.exp2((best_C - best) * scale)
    mass_C = mass_C.to(tl.float64)
    kept = tl.sum(mass_C, axis=0)
    uniform = tl.load(uniform_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    margin = tl.load(margin_ptr + row)
    top_k = tl.where((top_k <= 0) | (top_k > V), V, top_k)
    ranked = (top_k < V) | (top_p < 1.0)
    all_likely = margin == float("-inf")
    if all_likely & (not ranked):
        token = draw_by_id(row_ptr, mass_C, uniform * kept, best, scale, V, CHUNK_V, BLOCK_C)
        tl.store(token_ptr + row, token.to(tl.int64))
        return

    g = tl.arange(0, BLOCK_G)
    group_best_G = tl.load(group_best_ptr + row * G + g, mask=g < G, other=float("-inf"))
    floor = image(best + margin)
    if top_k < V:
        floor = tl.maximum(floor, kth_image(image(group_best_G), top_k, FLOOR_BIT))
    elif all_likely & (top_p < 1.0):
        # Half of what may be left out: the other half is for rounding.
        spare = ((1.0 - top_p) * kept * 0.5).to(tl.float32)
        floor = image(best - tl.log2(V / spare) / scale)
    ids_ptr += row * V
    count = list_candidates(
        row_ptr, group_best_G, floor, listed_ptr + row * G, ids_ptr, V, GROUP_V, BLOCK_G, BLOCK
    )

    least, everything = tl.full([], 0, tl.uint64), tl.full([], 0xFFFFFFFFFFFFFFFF, tl.uint64)
    if top_k < V:
        least, kept = search(
            row_ptr, ids_ptr, count, least, (top_k - 1).to(tl.float64), best, scale, ranked,
            COUNT=True, REACH=False, BLOCK=BLOCK, BITS=BITS,
        )  # fmt: skip
    elif not all_likely:
        _, _, kept = narrow(row_ptr, ids_ptr, count, least, everything, best, scale, ranked, BLOCK)
    if top_p < 1.0:
        least, kept = search(
            row_ptr, ids_ptr, count, least, top_p * kept, best, scale, ranked,
            COUNT=False, REACH=True, BLOCK=BLOCK, BITS=BITS,
        )  # fmt: skip
    drawn, _ = search(
        row_ptr, ids_ptr, count, least, uniform * kept, best, scale, ranked,
        COUNT=False, REACH=False, BLOCK=BLOCK, BITS=BITS,
    )  # fmt: skip
    tl.store(token_ptr + row, 0xFFFFFFFF - (drawn & 0xFFFFFFFF).to(tl.int64))


@dataclass(frozen=True)
class Survey:
    """What the first launch found: the rows as wished for, and their summaries."""

    logits_SV: torch.Tensor
    best_SC: torch.Tensor
    first_SC: torch.Tensor
    mass_SC: torch.Tensor
    group_best_SG: torch.Tensor


def survey(
    check: Checker, logits_SV: torch.Tensor, temperature_S: torch.Tensor | None, wishes: Wishes | None
) -> Survey:
    """Without a temperature nothing is drawn, and mass_SC and group_best_SG are not written."""
    rows, vocab, device = check["S"], check["V"], logits_SV.device
    chunks = triton.cdiv(vocab, CHUNK_V)
    groups = chunks * (CHUNK_V // group_size())
    best_SC, mass_SC = torch.empty(2, rows, chunks, dtype=torch.float32, device=device)
    first_SC = torch.empty(rows, chunks, dtype=torch.int32, device=device)
    group_best_SG = torch.empty(rows, groups, dtype=torch.float32, device=device)
    if wishes is None:
        adjusted_SV, tensors = logits_SV, [logits_SV] * 9
    else:
        wishes.checked(check)
        adjusted_SV = torch.empty(rows, vocab, dtype=torch.float32, device=device)
        tensors = [getattr(wishes, field) for field in wishes.__dataclass_fields__]
    survey_kernel[(rows, chunks)](
        logits_SV, best_SC if temperature_S is None else temperature_S, *tensors, adjusted_SV,
        best_SC, first_SC, mass_SC, group_best_SG, logits_SV.stride(0), tensors[-1].stride(0),
        V=vocab, C=chunks, CHUNK_V=CHUNK_V, GROUP_V=group_size(),
        WISHES=wishes is not None, DRAWN=temperature_S is not None, num_warps=SURVEY_WARPS,
    )  # fmt: skip
    return Survey(adjusted_SV, best_SC, first_SC, mass_SC, group_best_SG)


def group_size() -> int:
    return min(GROUP_V, CHUNK_V)


def choose_warps(drawn: bool) -> int:
    return 16 if drawn else 1


def choose(found: Survey, draws: tuple[torch.Tensor, ...] | None, token_S: torch.Tensor) -> None:
    """Fill token_S. ``draws``: temperature, top_k, top_p, margin, uniform; None: all rows are greedy."""
    logits_SV = found.logits_SV
    rows, vocab = logits_SV.shape
    chunks, groups = found.best_SC.shape[1], found.group_best_SG.shape[1]
    # 4 bytes for each logit: what a flat distribution would list whole. Most rows touch a few lines of it.
    size = (rows, groups + vocab) if draws is not None else (rows, 0)
    scratch = torch.empty(size, dtype=torch.int32, device=logits_SV.device).flatten()
    choose_kernel[(rows,)](
        logits_SV, *(draws or [logits_SV] * 5), found.best_SC, found.first_SC, found.mass_SC,
        found.group_best_SG, scratch, scratch[rows * groups :], token_S, logits_SV.stride(0),
        V=vocab, C=chunks, CHUNK_V=CHUNK_V, GROUP_V=group_size(), FLOOR_BIT=FLOOR_BIT,
        BLOCK_C=next_power_of_2(chunks), BLOCK_G=next_power_of_2(groups), BLOCK=BLOCK_N,
        BITS=DIGIT_BITS, DRAWN=draws is not None, num_warps=choose_warps(draws is not None),
    )  # fmt: skip


def sample(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    margin_S: torch.Tensor,
    uniform_S: torch.Tensor,
    *,
    wishes: Wishes | None = None,
) -> torch.Tensor:
    """token_S, as ``sample_reference`` gives it. Raises TypeError or ValueError naming the argument."""
    check = Checker("sample")
    check.tensor("logits", logits_SV, "S V", FLOATS)
    check.tensor("temperature", temperature_S, "S", [torch.float32])
    check.tensor("top_k", top_k_S, "S", [torch.int32])
    check.tensor("top_p", top_p_S, "S", [torch.float64])
    check.tensor("margin", margin_S, "S", [torch.float32])
    check.tensor("uniform", uniform_S, "S", [torch.float64])
    token_S = torch.empty(check["S"], dtype=torch.int64, device=logits_SV.device)
    if check["S"]:
        found = survey(check, logits_SV, temperature_S, wishes)
        choose(found, (temperature_S, top_k_S, top_p_S, margin_S, uniform_S), token_S)
    return token_S


def likeliest(logits_SV: torch.Tensor, wishes: Wishes | None = None) -> torch.Tensor:
    """token_S of rows that are all greedy. Raises TypeError or ValueError naming the argument."""
    check = Checker("likeliest")
    check.tensor("logits", logits_SV, "S V", FLOATS)
    token_S = torch.empty(check["S"], dtype=torch.int64, device=logits_SV.device)
    if check["S"]:
        choose(survey(check, logits_SV, None, wishes), None, token_S)
    return token_S
