# ruff: noqa: E501 (a table of source lines)
"""The parity checks are themselves checked: each planted bug must make one fail.

A mutant is the kernel's own source with one place changed, imported from a file of its own. Mutants stay inside
their buffers: interpreted kernels use real addresses, and would take the test process with them.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sheaf_kernels import (
    adjust,
    experts,
    head_norm,
    paged_attention,
    paging,
    radix,
    rms_norm,
    rope_kv_write,
    sample,
    split_kv,
    swiglu,
)
from sheaf_kernels.parity import (
    AttentionCase,
    ExpertsCase,
    RopeCase,
    check_adjust,
    check_experts,
    check_head_norm,
    check_paged_attention,
    check_rms_norm,
    check_rope_kv_write,
    check_sample,
    check_swiglu,
)

F32 = torch.float32
# Mutants compute with NaN, of which numpy warns before the check sees it.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def decode(op: ModuleType) -> None:
    """Short tiles, of one split, of three, and of more than the merge reads at a time; a chunk to leave alone."""
    case = AttentionCase((1, 2, 9, 1, 1), (5, 9, 20, 700, 150), num_multiprocessors=20)
    check_paged_attention(case, F32, "cpu", op, kinds=("short",))


def prefill(op: ModuleType) -> None:
    """Long tiles, none of them split; a single token to leave alone."""
    check_paged_attention(AttentionCase((1, 40, 33), (10, 110, 33)), F32, "cpu", op, kinds=("long",))


def chunked(op: ModuleType) -> None:
    """Drafts and chunks on a prefix: of one split; of two tiles with several splits each; of several."""
    case = AttentionCase((1, 9, 20, 10), (5, 80, 300, 300), num_multiprocessors=20)
    check_paged_attention(case, F32, "cpu", op, kinds=("draft32", "draft64"))


def windowed(op: ModuleType) -> None:
    """Windows with an edge inside a tile, within and before a chunk's; a cap, and sinks over several splits."""
    case = AttentionCase(
        (1, 9, 20, 1),
        (450, 480, 435, 9),
        head_dim=16,
        num_multiprocessors=20,
        window=300,  # longer than two of the shortest splits of such a window
        softcap=2.0,
        sinks=True,
    )
    check_paged_attention(case, F32, "cpu", op)


def rope(op: ModuleType) -> None:
    check_rope_kv_write(RopeCase(num_q_heads=9), F32, "cpu", op)


def norm(op: ModuleType) -> None:
    check_rms_norm(3, 70, True, F32, "cpu", op)


def head_normed(op: ModuleType) -> None:
    check_head_norm(3, 9, 24, F32, "cpu", op)


def gated(op: ModuleType) -> None:
    check_swiglu(2, 70, F32, "cpu", op)


def routed(op: ModuleType) -> None:
    """Tokens into experts: some with two tiles, one with none; biases, and weights of the input."""
    case = ExpertsCase(tokens=20, top_k=2, experts=5, bias=True, scale="in", favourite=True)
    check_experts(case, F32, "cpu", op)
    check_experts(ExpertsCase(tokens=3), F32, "cpu", op)


def gathered(op: ModuleType) -> None:
    """Pairs back into their order, weighted."""
    check_experts(ExpertsCase(by_token=False, in_order=True, bias=True, scale="out"), F32, "cpu", op)


def adjusted(op: ModuleType) -> None:
    check_adjust(8, 45, F32, "cpu", op)


def sampled(op: ModuleType) -> None:
    check_sample(18, 12, F32, "cpu", op, seed=1)


def sampled_in_chunks(op: ModuleType) -> None:
    """Chunks, groups and passes of four tokens."""
    sizes = op.CHUNK_V, op.BLOCK_N
    op.CHUNK_V = op.BLOCK_N = 4
    try:
        check_sample(13, 11, F32, "cpu", op, seed=1)
        # Equal logits within a chunk, and in two.
        tied, zero = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]]), torch.zeros(1)
        assert op.sample(tied, zero, zero.int(), zero.double() + 1, zero, zero.double()).tolist() == [1]
    finally:
        op.CHUNK_V, op.BLOCK_N = sizes


def sampled_by_bits(op: ModuleType) -> None:
    """Digits of one bit: many passes a search. The last of five."""
    bits, op.DIGIT_BITS = op.DIGIT_BITS, 1
    one, falling = torch.ones(1), torch.linspace(0, -1, 20)[None]
    try:
        args = (one, one.int() * 5, one.double(), one * -torch.inf, one.double() * 0.99)
        assert op.sample(falling, *args).tolist() == [4]
    finally:
        op.DIGIT_BITS = bits


def reached(op: ModuleType) -> None:
    """Half of the mass is the first of two equals: nothing more is kept. Nine tenths go far down. Zeros are
    equal, whatever their sign."""
    one = torch.ones(1)
    args = (one, one.int() * 0, one.double() / 2, one * -torch.inf, one.double() * 0.9)
    assert op.sample(torch.zeros(1, 2), *args).tolist() == [0]
    args = (one, one.int(), one.double(), one * -torch.inf, one.double() * 0.9)
    assert op.sample(torch.tensor([[-1.0, -0.0, 0.0]]), *args).tolist() == [1]
    args = (one, one.int() * 0, one.double() * 0.9, one * -torch.inf, one.double() * 0.99)
    falling = torch.linspace(0, -1, 20)[None]
    assert op.sample(falling, *args).tolist() == sample.sample_reference(falling, *args).tolist()


def not_numbers(op: ModuleType) -> None:
    logits = torch.ones(4, 9)
    logits[0, 8], logits[1], logits[2, 3] = torch.inf, -torch.inf, torch.nan
    size, op.CHUNK_V = op.CHUNK_V, 4
    try:
        assert op.likeliest(logits).tolist() == [-1, -1, -1, 0]
    finally:
        op.CHUNK_V = size


def mutate(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}"
    path = folder / f"mutant_{module.__name__.rsplit('.')[-1]}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = mutant  # dataclasses look their module up
    spec.loader.exec_module(mutant)
    return mutant


MUTANTS: list[tuple[str, ModuleType, Callable[[ModuleType], None], str, str]] = [
    ("causal mask dropped", paged_attention, prefill, 'score = tl.where((tile + n)[None, :] <= last_key[:, None], score, float("-inf"))', "pass"),
    ("causal mask off by one", paged_attention, prefill, "<= last_key[:, None]", "< last_key[:, None]"),
    ("causal mask of a draft off by one", paged_attention, decode, "<= last_key[:, None]", "< last_key[:, None]"),
    ("future visible", paged_attention, prefill, "last_key = before + first_query + m // G", "last_key = before + first_query + m // G + 1"),
    ("values in masked slots read", paged_attention, prefill, "kv_mask = kv_mask & valid[:, None]", "pass"),
    ("scale forgotten", paged_attention, decode, "PRECISION) * scale_log2", "PRECISION)"),
    ("log2(e) forgotten", paged_attention, decode, "scale * LOG2_E,", "scale,"),
    ("sum not rescaled", paged_attention, prefill, "row_sum * decay + tl.sum(p, axis=1)", "row_sum + tl.sum(p, axis=1)"),
    ("accumulator not rescaled", paged_attention, prefill, "dot_operand(v), acc * decay[:, None]", "dot_operand(v), acc"),
    ("unmasked loop too long", paged_attention, prefill, "(before + first_query + 1) // BLOCK_N", "(before + first_query + BLOCK_N) // BLOCK_N"),
    ("unmasked loop lost", paged_attention, prefill, "range(seen_from, masked_from, BLOCK_N)", "range(masked_from, masked_from, BLOCK_N)"),
    ("tail lost", paged_attention, prefill, "range(masked_from, end, BLOCK_N,", "range(masked_from, masked_from, BLOCK_N,"),
    ("last token lost", paged_attention, decode, "query_len)\n    if split", "query_len) - 1\n    if split"),
    ("row of another sequence", paged_attention, decode, "row = (first_row + first_query)", "row = (s + first_query)"),
    ("heads of another group", paged_attention, prefill, "in_row = (kv_head * G + m % G) * D", "in_row = (kv_head + m % G * K) * D"),
    ("tokens of a draft swapped with heads", paged_attention, decode, "(m // G * q_stride + in_row)", "(m % G * q_stride + in_row)"),
    ("table of another sequence", paged_attention, prefill, "s.to(tl.int64) * block_table_stride", "(s * 0).to(tl.int64) * block_table_stride"),
    ("every split starts at zero", paged_attention, chunked, "start = first_key + split_start(keys, split, splits, MULTIPLE)", "start = first_key"),
    ("window off by one", paged_attention, windowed, "> last_key[:, None] - WINDOW", ">= last_key[:, None] - WINDOW"),
    ("window's edge unmasked", paged_attention, windowed, "seen_from = tl.minimum(tl.maximum(seen_from, start), end)", "seen_from = start"),
    ("window's edge lost", paged_attention, windowed, "range(start, seen_from, BLOCK_N,", "range(seen_from, seen_from, BLOCK_N,"),
    ("keys before the window read", paged_attention, windowed, "valid = valid & (tile + n > tl.min(last_key, axis=0) - WINDOW)", "pass"),
    ("cap forgotten", paged_attention, windowed, "if CAP_LOG2 > 0:", "if CAP_LOG2 > 1e9:"),
    ("sink forgotten", paged_attention, windowed, "if SINKS:  #", "if SINKS & (split < 0):  #"),
    ("sink in every split", paged_attention, windowed, "sink = tl.where(split == 0, sink, float(\"-inf\"))", "pass"),
    ("sink of another head", paged_attention, windowed, "tl.load(sinks_ptr + kv_head * G + m % G)", "tl.load(sinks_ptr + m % G)"),
    ("sink without log2(e)", paged_attention, windowed, ".to(tl.float32) * _LOG2_E", ".to(tl.float32)"),
    ("window's first key a tile late", split_kv, windowed, "tl.maximum(before + first_query - (WINDOW - 1), 0)", "tl.maximum(before + first_query - (WINDOW - 65), 0)"),
    ("every split runs to the end", paged_attention, chunked, "        end = first_key + split_start(keys, split + 1, splits, MULTIPLE)", "        pass"),
    ("splits overlap", paged_attention, chunked, "split_start(keys, split + 1, splits", "split_start(keys, split + 2, splits"),
    ("splits written without merging", paged_attention, chunked, "if splits == 1:", "if splits >= 1:"),
    ("log-sum-exp without the sum", paged_attention, chunked, "row_max + tl.log2(row_sum)", "row_max"),
    ("workspace of another sequence", paged_attention, decode, "slot = tl.load(first_slot_ptr + s) + place", "slot = tl.load(first_slot_ptr) + place"),
    ("last work items not launched", paged_attention, prefill, "work = plan.max_work(tokens, num_seqs)", "work = num_seqs"),
    ("last rows not merged", paged_attention, chunked, 'plan.rows // options["BLOCK_R"])]', '1)]'),
    ("last split lost", split_kv, chunked, "valid = (w < splits)[None, :]", "valid = (w < splits - 1)[None, :]"),
    ("last split of a token lost", split_kv, decode, "valid = (w < splits)[None, :]", "valid = (w < splits - 1)[None, :]"),
    ("first split lost", split_kv, chunked, "w = start + tl.arange(0, BLOCK_W)", "w = start + 1 + tl.arange(0, BLOCK_W)"),
    ("splits beyond the first block lost", split_kv, decode, "range(0, splits, BLOCK_W)", "range(0, BLOCK_W, BLOCK_W)"),
    ("merge without weights", split_kv, chunked, "weight = tl.exp2(lse - new_best[:, None])", "weight = tl.exp2(lse - lse)"),
    ("merged sum not rescaled", split_kv, decode, "weight_sum * decay +", "weight_sum +"),
    ("merged result not rescaled", split_kv, decode, "acc = acc * decay[:, None] +", "acc = acc +"),
    ("merge of heads of another group", split_kv, chunked, "(kv_head * G + m % G) * D", "(kv_head + m % G * K) * D"),
    ("merge into rows of another tile", split_kv, chunked, "    query = first_query + m // G", "    query = m // G"),
    ("merge skips two splits", split_kv, chunked, "if (split > 0) | (splits == 1):", "if (split > 0) | (splits <= 2):"),
    ("plan lists chunks with tokens", split_kv, decode, "(query_len >= LEAST) & (query_len <= MOST)", "(query_len >= LEAST)"),
    ("plan lists tokens with chunks", split_kv, prefill, "(query_len >= LEAST) & (query_len <= MOST)", "(query_len >= 1)"),
    ("plan loses the last tile", split_kv, prefill, "(query_len + BLOCK_Q - 1) // BLOCK_Q", "query_len // BLOCK_Q"),
    ("plan loses the last split", split_kv, chunked, "splits = tl.where(ours, last_tile // chunk + 1, 0)", "splits = tl.where(ours, tl.maximum(last_tile // chunk, 1), 0)"),
    ("plan forgets a sequence", split_kv, decode, "tl.cumsum(work, axis=0) - work", "tl.cumsum(work, axis=0) - 2 * work"),
    ("workspace shared by two sequences", split_kv, decode, "tl.cumsum(slots, axis=0) - slots", "tl.cumsum(slots * 0, axis=0)"),
    ("every work item its sequence's first", split_kv, prefill, "item - tl.max(tl.where(first <= item, first, 0), axis=0)", "item * 0"),
    ("prefix forgotten", split_kv, prefill, "before = tl.load(context_len_ptr + s) - query_len", "before = tl.load(context_len_ptr + s) * 0"),
    ("tile of another chunk", split_kv, chunked, "first_query = last_query - place // most_splits * BLOCK_Q", "first_query = last_query"),
    ("page off by one", paging, decode, "tl.load(pages_ptr + (tile + n) // B,", "tl.load(pages_ptr + (tile + n) // B + 1,"),
    ("slot off by one", paging, decode, "+ (tile + n) % B * D", "+ (tile + n + 1) % B * D"),
    ("keys of the first head read for all", paged_attention, decode, "k_head_ptr = k_cache_ptr + kv_head * (B * D)", "k_head_ptr = k_cache_ptr"),
    ("values of the first head read for all", paged_attention, decode, "v_head_ptr = v_cache_ptr + kv_head * (B * D)", "v_head_ptr = v_cache_ptr"),
    ("heads swapped with slots", paging, decode, "(tile + n) % B * D", "(tile + n) % B * (K * D) % (B * D)"),
    ("page of a whole tile off by one", paging, prefill, "tl.load(pages_ptr + tile // B)", "tl.load(pages_ptr + tile // B + 1)"),
    ("queries turned backwards", rope_kv_write, rope, "round_to(x1 * cos - x2 * sin, q_ptr.dtype.element_ty)", "round_to(x1 * cos + x2 * sin, q_ptr.dtype.element_ty)"),
    ("second half of keys unrotated", rope_kv_write, rope, "round_to(x2 * cos + x1 * sin, k_cache_ptr.dtype.element_ty)", "round_to(x2, k_cache_ptr.dtype.element_ty)"),
    ("angle of another token", rope_kv_write, rope, "tl.load(cos_ptr + token * cos_stride", "tl.load(cos_ptr + 0 * cos_stride"),
    ("padding written to the null page", rope_kv_write, rope, "slot_index = tl.load(slot_mapping_ptr + token)", "slot_index = tl.maximum(tl.load(slot_mapping_ptr + token), 0)"),
    ("second half of values lost", rope_kv_write, rope, "tl.load(from_ptr + H, mask=mask)", "tl.load(from_ptr, mask=mask)"),
    ("slots swapped with heads", rope_kv_write, rope, "(slot_index // B * K + head) * (B * D) + slot_index % B * D", "slot_index * (K * D) + head * D"),
    ("last query heads lost", rope_kv_write, rope, "(Q + BLOCK_HEADS - 1) // BLOCK_HEADS", "Q // BLOCK_HEADS"),
    ("residual lost", rms_norm, norm, "h += tl.load(residual_ptr", "h += 0 * tl.load(residual_ptr"),
    ("eps forgotten", rms_norm, norm, "/ C + eps", "/ C"),
    ("mean over the padded row", rms_norm, norm, "tl.sum(h * h, axis=0) / C", "tl.sum(h * h, axis=0) / BLOCK_C"),
    ("weight forgotten", rms_norm, norm, "round_to(weight * normed, dtype)", "round_to(normed, dtype)"),
    ("eps of a head forgotten", head_norm, head_normed, "/ D + eps", "/ D"),
    ("mean over the padded head", head_norm, head_normed, "axis=1) / D", "axis=1) / BLOCK_D"),
    ("weight of a head forgotten", head_norm, head_normed, "round_to(weight * normed, dtype)", "round_to(normed, dtype)"),
    ("last heads left", head_norm, head_normed, "triton.cdiv(heads, block_heads)", "heads // block_heads"),
    ("temperature forgotten", sample, sampled, "scale = _LOG2_E / temperature", "scale = _LOG2_E * (temperature / temperature)"),
    ("log2(e) forgotten", sample, sampled, "scale = _LOG2_E / temperature", "scale = 1.0 / temperature"),
    ("one more than k", sample, sampled, "(top_k - 1).to(tl.float64)", "top_k.to(tl.float64)"),
    ("floor above the k-th", sample, sampled, "image(group_best_G), top_k, FLOOR_BIT", "image(group_best_G), top_k - 1, FLOOR_BIT"),
    ("floor of top-p too high", sample, reached, "tl.log2(V / spare) / scale", "tl.log2(V / spare) / scale * 0.01"),
    ("min-p forgotten", sample, sampled, "floor = image(best + margin)", "floor = image(best - 1e30)"),
    ("min-p's mass not taken", sample, sampled, "    elif not all_likely:", "    elif top_k > V:"),
    ("min-p drawn by probability", sample, sampled, "ranked = (top_k < V) | (top_p < 1.0)", "ranked = (top_k < V) | (top_p < 2.0)"),
    ("what equals the floor lost", sample, sampled, "(image(logit) >= floor), [", "(image(logit) > floor), ["),
    ("groups that equal the floor lost", sample, sampled, "(image(group_best_G) >= floor)", "(image(group_best_G) > floor)"),
    ("last groups not listed", sample, sampled_in_chunks, "range(0, groups, G)", "range(0, groups - 1, G)"),
    ("infinity chosen", sample, not_numbers, '(best == float("inf")) | ', ""),
    ("banned rows chosen", sample, not_numbers, '(best == float("-inf")) | ', ""),
    ("NaN overlooked", sample, not_numbers, "| (not numbers)", ""),
    ("NaN of a chunk overlooked", sample, not_numbers, 'best = tl.where(numbers == 1, best, float("nan"))', "pass"),
    ("negative logits in float order", radix, sampled, "-(bits & 0x7FFFFFFF)", "bits"),
    ("negative zero below zero", radix, reached, "-(bits & 0x7FFFFFFF)", "-(bits & 0x7FFFFFFF) - 1"),
    ("ties to the highest id", radix, sampled, "(0xFFFFFFFF - v.to(tl.int64)).to(tl.uint64)", "(v.to(tl.int64)).to(tl.uint64)"),
    ("order of ids forgotten", radix, sampled, "tl.where(by_value, image(logit).to(tl.int64) + 0x80000000, 0)", "image(logit).to(tl.int64) + 0x80000000"),
    ("mass above forgotten", radix, sampled, "mass_above += tl.sum(", "mass_above += 0 * tl.sum("),
    ("count above forgotten", radix, sampled_by_bits, "count_above += tl.sum(", "count_above += 0 * tl.sum("),
    ("kept mass without its last token", radix, sampled, "return lo, mass_above + own", "return lo, mass_above"),
    ("kept mass of the last token alone", radix, sampled, "return lo, mass_above + own", "return lo, own"),
    ("reaching is not enough", radix, reached, "total_D >= target if REACH", "total_D > target if REACH"),
    ("later passes lost", radix, sampled_in_chunks, "sums += tl.where(inside, mass, 0.0)", "sums = tl.where(inside, mass, 0.0)"),
    ("vocabulary chunk lost", sample, sampled_in_chunks, "best_C = tl.load(best_ptr + row * C + c, mask=c < C,", "best_C = tl.load(best_ptr + row * C + c, mask=c < C - 1,"),
    ("mass of a vocabulary chunk lost", sample, sampled_in_chunks, "mass_C = tl.load(mass_ptr + row * C + c, mask=c < C,", "mass_C = tl.load(mass_ptr + row * C + c, mask=c < C - 1,"),
    ("tie to the last chunk", sample, sampled_in_chunks, "tl.min(tl.where(best_C == best, first_C, V), axis=0)", "tl.max(tl.where(best_C == best, first_C, -1), axis=0)"),
    ("tie to the last of a chunk", sample, sampled_in_chunks, "tl.min(tl.where(logit == best, v, V), axis=0)", "tl.max(tl.where(logit == best, v, -1), axis=0)"),
    ("chunks of another row", sample, sampled_in_chunks, "to = row * C + chunk", "to = chunk"),
    ("chunk masses of unequal scale", sample, sampled_in_chunks, " * tl.exp2((best_C - best) * scale)", ""),
    ("chunk masses without temperature", sample, sampled_in_chunks, "* (_LOG2_E / temperature))", "* _LOG2_E)"),
    ("mass of earlier chunks forgotten", sample, sampled_in_chunks, "(before + tl.cumsum(mass, axis=0) > target)", "(tl.cumsum(mass, axis=0) > target)"),
    ("history of another row", adjust, adjusted, "held = tl.load(rows_ptr + row).to(tl.int64) * V", "held = row * V"),
    ("bias forgotten", adjust, adjusted, "if (flags & 1) != 0:", "if (flags & 4) != 0:"),
    ("bias of rows without one", adjust, adjusted, "if (flags & 1) != 0:", "if flags >= 0:"),
    ("penalties of rows without one", adjust, adjusted, "if (flags & 2) != 0:", "if flags >= 0:"),
    ("mask of another row", adjust, adjusted, "bits_ptr + mask * bits_stride", "bits_ptr + row * bits_stride"),
    ("mask's bits backwards", adjust, adjusted, "(words >> (v % 32))", "(words >> (31 - v % 32))"),
    ("mask upside down", adjust, adjusted, "& 1) == 0, float", "& 1) == 1, float"),
    ("prompt counts as output", adjust, adjusted, "count = (history & _COUNT)", "count = (history & (2 * _COUNT + 1))"),
    ("repetition against the sign", adjust, adjusted, "tl.where(x > 0, x / repetition, x * repetition)", "tl.where(x < 0, x / repetition, x * repetition)"),
    ("repetition of what is not there", adjust, adjusted, "x = tl.where(history != 0, penalised, x)", "x = penalised"),
    ("repetition of output alone", adjust, adjusted, "x = tl.where(history != 0, penalised, x)", "x = tl.where(count > 0, penalised, x)"),
    ("presence by count", adjust, adjusted, "(count > 0).to(tl.float32)", "count"),
    ("pairs of earlier experts counted short", experts, routed, "(chosen < expert)", "(chosen < expert - 1)"),
    ("pairs in another order", experts, routed, "at = place + tl.cumsum(mine.to(tl.int32), axis=0) - 1", "at = place + tl.sum(mine.to(tl.int32), axis=0) - tl.cumsum(mine.to(tl.int32), axis=0)"),
    ("weight of another expert", experts, routed, "weight_ptr + expert.to(tl.int64) * (N * C)", "weight_ptr + (expert * 0).to(tl.int64) * (N * C)"),
    ("bias of another expert", experts, routed, "bias_ptr + expert.to(tl.int64) * N", "bias_ptr + (expert * 0).to(tl.int64) * N"),
    ("bias forgotten", experts, routed, "acc += bias", "acc += 0 * bias"),
    ("weight of the result forgotten", experts, gathered, "if SCALE_OUT:\n        acc *=", "if SCALE_IN:\n        acc *="),
    ("second tile of an expert over the first", experts, routed, "(tile - ends_E + tiles_E) * BLOCK_M", "(tile - tile) * BLOCK_M"),
    ("last tiles not launched", experts, routed, "tiles = pairs // rows + min(experts, pairs)", "tiles = pairs // rows"),
    ("row of another token", experts, routed, "pair // TOP_K if BY_TOKEN", "pair % TOP_K if BY_TOKEN"),
    ("weight of the input forgotten", experts, routed, "        if SCALE_IN:", "        if SCALE_IN and SCALE_OUT:"),
    ("weight of another pair", experts, gathered, "scale_ptr + pair,", "scale_ptr + m,"),
    ("results left in sorted order", experts, gathered, "pair if IN_ORDER", "m.to(tl.int64) if IN_ORDER"),
    ("last channels lost", experts, routed, "range(0, C, BLOCK_C)", "range(0, C - BLOCK_C, BLOCK_C)"),
    ("gate and up swapped", swiglu, gated, "y = gate / (1.0 + tl.exp(-gate)) * up", "y = up / (1.0 + tl.exp(-up)) * gate"),
    ("sigmoid without the gate", swiglu, gated, "y = gate / (", "y = 1.0 / ("),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "check", "old", "new"),
    [m[1:] for m in MUTANTS],
    ids=[f"{m[1].__name__.rsplit('.')[-1]}-{m[2].__name__}-{m[0]}".replace(" ", "_") for m in MUTANTS],
)
def test_parity_check_kills(
    module: ModuleType,
    check: Callable[[ModuleType], None],
    old: str,
    new: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant = mutate(module, old, new, tmp_path)
    if module in (paging, split_kv):
        # Attention is the module under test, with what it takes from the other one replaced.
        for name in vars(paged_attention).keys() & vars(mutant).keys():
            if not name.startswith("__"):
                monkeypatch.setattr(paged_attention, name, vars(mutant)[name])
        mutant = paged_attention
    if module in (radix, adjust):
        for name in vars(sample).keys() & vars(mutant).keys():
            if not name.startswith("__"):
                monkeypatch.setattr(sample, name, vars(mutant)[name])
        mutant = sample
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize(
    ("module", "check"),
    [
        (paged_attention, decode),
        (paged_attention, prefill),
        (paged_attention, chunked),
        (paged_attention, windowed),
        (rope_kv_write, rope),
        (rms_norm, norm),
        (head_norm, head_normed),
        (sample, adjusted),
        (sample, sampled),
        (sample, sampled_in_chunks),
        (sample, sampled_by_bits),
        (sample, reached),
        (sample, not_numbers),
        (swiglu, gated),
        (experts, routed),
        (experts, gathered),
    ],
    ids=[
        "decode",
        "prefill",
        "chunked",
        "windowed",
        "rope",
        "norm",
        "head norm",
        "adjust",
        "sample",
        "chunks",
        "bits",
        "reached",
        "not numbers",
        "swiglu",
        "routed",
        "gathered",
    ],
)
def test_parity_check_passes_the_original(module: ModuleType, check: Callable[[ModuleType], None]) -> None:
    check(module)
