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
from sheaf_kernels import paged_decode, paged_prefill, paging, rms_norm, rope_kv_write, sample, swiglu
from sheaf_kernels.parity import (
    AttentionCase,
    RopeCase,
    check_paged_decode,
    check_paged_prefill,
    check_rms_norm,
    check_rope_kv_write,
    check_sample,
    check_swiglu,
)

F32 = torch.float32
# Mutants compute with NaN, of which numpy warns before the check sees it.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def decode(op: ModuleType) -> None:
    # The single split comes first: a stale work item points at it.
    check_paged_decode(AttentionCase((1, 2, 1, 1), (5, 9, 700, 150)), F32, "cpu", op)


def prefill(op: ModuleType) -> None:
    check_paged_prefill(AttentionCase((1, 40, 33), (10, 110, 33)), F32, "cpu", op)


def rope(op: ModuleType) -> None:
    check_rope_kv_write(RopeCase(num_q_heads=9), F32, "cpu", op)


def norm(op: ModuleType) -> None:
    check_rms_norm(3, 70, True, F32, "cpu", op)


def gated(op: ModuleType) -> None:
    check_swiglu(2, 70, F32, "cpu", op)


def sampled(op: ModuleType) -> None:
    check_sample(26, 12, F32, "cpu", op, seed=1)


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
    ("mask dropped", paged_decode, decode, 'score = tl.where(valid[None, :], score, float("-inf"))', "pass"),
    (
        "values in masked slots read",
        paged_decode,
        decode,
        "mask=kv_mask, other=0.0)\n        p =",
        "mask=(d < D)[None, :], other=0.0)\n        p =",
    ),
    ("scale forgotten", paged_decode, decode, "PRECISION) * scale_log2", "PRECISION)"),
    ("log2(e) forgotten", paged_decode, decode, "scale * LOG2_E,", "scale,"),
    ("sum not rescaled", paged_decode, decode, "row_sum = row_sum * decay", "row_sum = row_sum"),
    ("accumulator not rescaled", paged_decode, decode, "acc * decay[:, None]", "acc"),
    ("last token lost", paged_decode, decode, "tl.load(context_len_ptr + s))", "tl.load(context_len_ptr + s) - 1)"),
    ("row of another sequence", paged_decode, decode, "row = tl.load(query_start_ptr + s).to(tl.int64)\n\n", "row = s.to(tl.int64)\n\n"),
    ("heads of another group", paged_decode, decode, "(kv_head * G + m[:, None]) * D", "(kv_head + m[:, None] * K) * D"),
    ("table of another sequence", paged_decode, decode, "s.to(tl.int64) * block_table_stride", "(w % 2) * block_table_stride"),
    ("every split starts at zero", paged_decode, decode, "start = (w - first_work) * chunk", "start = 0 * chunk"),
    ("splits written without merging", paged_decode, decode, "if splits == 1:", "if splits >= 1:"),
    ("last split lost", paged_decode, decode, "end = tl.load(first_work_ptr + s + 1)\n", "end = tl.load(first_work_ptr + s + 1) - 1\n"),
    ("first split lost", paged_decode, decode, "for start in range(first, end, BLOCK_W)", "for start in range(first + 1, end, BLOCK_W)"),
    ("merge without weights", paged_decode, decode, "weight = tl.exp2(lse - new_best)", "weight = tl.exp2(lse - lse)"),
    ("log-sum-exp without the sum", paged_decode, decode, "row_max + tl.log2(row_sum)", "row_max"),
    ("merge skips two splits", paged_decode, decode, "if end - first <= 1:", "if end - first <= 3:"),
    ("plan lists prompts", paged_decode, decode, "mask=real & (end_row - first_row == 1)", "mask=real"),
    ("plan loses the last chunk", paged_decode, decode, "splits = (length + chunk - 1) // chunk", "splits = length // chunk"),
    ("plan forgets a sequence", paged_decode, decode, "tl.where(index < s, splits, 0)", "tl.where(index < s - 1, splits, 0)"),
    ("stale work items left", paged_decode, decode, "item = tl.where(s == num_seqs, -1, s)", "item = tl.where(s == num_seqs, 0, s)"),
    ("causal mask dropped", paged_prefill, prefill, 'score = tl.where((tile + n)[None, :] <= last_key[:, None], score, float("-inf"))', "pass"),
    ("causal mask off by one", paged_prefill, prefill, "<= last_key[:, None]", "< last_key[:, None]"),
    ("future visible", paged_prefill, prefill, "last_key = before + query", "last_key = before + query + 1"),
    ("values in masked slots read", paged_prefill, prefill, "kv_mask = kv_mask & valid[:, None]", "pass"),
    ("scale forgotten", paged_prefill, prefill, "PRECISION) * scale_log2", "PRECISION)"),
    ("sum not rescaled", paged_prefill, prefill, "row_sum = row_sum * decay", "row_sum = row_sum"),
    ("accumulator not rescaled", paged_prefill, prefill, "acc * decay[:, None]", "acc"),
    ("unmasked loop too long", paged_prefill, prefill, "(before + first_query + 1) // BLOCK_N", "(before + first_query + BLOCK_N) // BLOCK_N"),
    ("unmasked loop lost", paged_prefill, prefill, "range(0, masked_from, BLOCK_N)", "range(masked_from, masked_from, BLOCK_N)"),
    ("tail lost", paged_prefill, prefill, "range(masked_from, end, BLOCK_N)", "range(masked_from, masked_from, BLOCK_N)"),
    ("prefix forgotten", paged_prefill, prefill, "before = tl.load(context_len_ptr + s) - query_len", "before = tl.load(context_len_ptr + s) * 0"),
    ("last tile not launched", paged_prefill, prefill, 'check["T"] // block_q + check["S"]', 'check["T"] // block_q + check["S"] - 1'),
    ("search stops early", paged_prefill, prefill, "+ middle <= tile_index", "+ middle < tile_index"),
    ("heads of another group", paged_prefill, prefill, "q_head = kv_head * G + m % G", "q_head = kv_head + m % G * K"),
    ("table of another sequence", paged_prefill, prefill, "tl.cast(s, tl.int64) * block_table_stride", "tl.cast(s * 0, tl.int64)"),
    ("page off by one", paging, decode, "tl.load(pages_ptr + (tile + n) // B,", "tl.load(pages_ptr + (tile + n) // B + 1,"),
    ("slot off by one", paging, decode, "+ (tile + n) % B * D", "+ (tile + n + 1) % B * D"),
    ("first head read for all", paging, decode, "(page * K + kv_head)", "(page * K)"),
    ("heads swapped with slots", paging, decode, "(page * K + kv_head) * (B * D) + (tile + n) % B * D", "page * (K * B * D) + kv_head * D + (tile + n) % B * (K * D)"),
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
    ("temperature forgotten", sample, sampled, "scale = _LOG2_E / temperature", "scale = _LOG2_E * (temperature / temperature)"),
    ("log2(e) forgotten", sample, sampled, "scale = _LOG2_E / temperature", "scale = 1.0 / temperature"),
    ("one more than k", sample, sampled, "(top_k - 1).to(tl.float64)", "top_k.to(tl.float64)"),
    ("top-k lost to top-p", sample, sampled, "least = tl.maximum(least, low)", "least = low"),
    ("negative logits in float order", sample, sampled, "(bits ^ ((bits >> 31) & 0x7FFFFFFF))", "bits"),
    ("negative zero below zero", sample, sampled, "logit = tl.where(logit == 0.0, 0.0, logit)", "pass"),
    ("ties to the highest id", sample, sampled, "(0xFFFFFFFF - v.to(tl.int64)).to(tl.uint64)", "(v.to(tl.int64)).to(tl.uint64)"),
    ("always drawn by probability", sample, sampled, "by_id = (top_k == V) & (top_p >= 1.0)", "by_id = (top_k == V) & (top_p >= 2.0)"),
    ("mass above forgotten", sample, sampled, "above += tl.sum(", "above += 0 * tl.sum("),
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
    if module is paging:
        op = paged_decode if check is decode else paged_prefill
        monkeypatch.setattr(op, "page_offsets", mutant.page_offsets)
        mutant = op
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize(
    ("module", "check"),
    [
        (paged_decode, decode),
        (paged_prefill, prefill),
        (rope_kv_write, rope),
        (rms_norm, norm),
        (sample, sampled),
        (swiglu, gated),
    ],
    ids=["decode", "prefill", "rope", "norm", "sample", "swiglu"],
)
def test_parity_check_passes_the_original(module: ModuleType, check: Callable[[ModuleType], None]) -> None:
    check(module)
