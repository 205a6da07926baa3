"""The Triton backend: attention, element-wise layers and sampling as kernels of ``sheaf_kernels``.

Imports Triton, so it is itself imported only where the backend is chosen (see ``worker.backend``).

Legend: T tokens of the step, R requests, N = Q + 2K heads, Q query heads, K key/value heads, D head size,
S requests that get a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sheaf_kernels.adjust import BIASED, PENALISED, Wishes
from sheaf_kernels.experts import grouped_linear, sort_pairs
from sheaf_kernels.head_norm import head_norm
from sheaf_kernels.paged_attention import PLANS, allocate_plan, paged_attention
from sheaf_kernels.rms_norm import rms_norm
from sheaf_kernels.rope_kv_write import rope_kv_write
from sheaf_kernels.sample import likeliest, sample
from sheaf_kernels.split_kv import SplitPlan
from sheaf_kernels.swiglu import swiglu
from torch import Tensor

from sheaf_runtime.models.config import Activation, AttentionConfig
from sheaf_runtime.models.layers import Angles, Layers, Ops, activate
from sheaf_runtime.worker.adjust import Adjustments
from sheaf_runtime.worker.bad_words import ban
from sheaf_runtime.worker.batch import GroupInputs, StepInputs
from sheaf_runtime.worker.chunks import most_pieces
from sheaf_runtime.worker.kv_layout import KVLayout
from sheaf_runtime.worker.masks import packed_width
from sheaf_runtime.worker.sampler import SamplingRows, likely_margin


def triton_ops() -> Ops:
    return Ops(rms_norm=rms_norm, head_norm=head_norm, activate=_activate, experts=_run_experts)


def _activate(x_TC: Tensor, activation: Activation, gated: bool) -> Tensor:
    if gated and activation == "silu":
        return swiglu(x_TC)
    return activate(x_TC, activation, gated)


def _run_experts(
    x_TC: Tensor,
    weights_TK: Tensor,
    chosen_TK: Tensor,
    gate_up: tuple[Tensor, Tensor | None],
    down: tuple[Tensor, Tensor | None],
    act: Callable[[Tensor], Tensor],
    weigh_input: bool,
) -> Tensor:
    """``models.layers.GroupedExperts`` without a visit to the host: how many tokens chose which expert is
    known on the device alone."""
    groups = sort_pairs(chosen_TK.contiguous(), len(gate_up[0]))
    scale_P = weights_TK.flatten().contiguous()
    before, after = (scale_P, None) if weigh_input else (None, scale_P)
    inner = grouped_linear(x_TC, *gate_up, groups, by_token=True, in_order=False, scale_in_P=before)
    out_PC = grouped_linear(act(inner), *down, groups, by_token=False, in_order=True, scale_out_P=after)
    return out_PC.view(*chosen_TK.shape, -1).sum(1)


@dataclass(frozen=True)
class _Step:
    """What groups of one reach attend for, on the device, and the plans that some sequence needs."""

    query_start: Tensor
    context_len_S: Tensor
    plans: list[SplitPlan]


class TritonAttention:
    """Call ``prepare`` once a step, then ``write_kv`` and ``attend`` for each layer in turn.

    Single query tokens, drafts and longer chunks are launches of their own, each with a plan, and one for
    each window, or size of chunks that attention is within.
    """

    def __init__(
        self,
        caches: list[tuple[Tensor, Tensor]],
        layout: KVLayout,
        config: AttentionConfig,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        self._caches = caches
        self._heads = config.num_heads
        _, self._kv_heads, _, head_dim = caches[0][0].shape
        self._device = caches[0][0].device
        self._scale = config.scale
        self._softcap = config.softcap or 0.0
        self._group_of = layout.group_of
        self._reach_of = [(group.window or 0, group.chunk) for group in layout.groups]
        self._plans = {
            (window, chunk): [
                allocate_plan(
                    kind,
                    max_seqs=(
                        max_num_seqs
                        if chunk is None
                        else most_pieces(max_num_seqs, max_num_batched_tokens, chunk)
                    ),
                    num_q_heads=self._heads,
                    num_kv_heads=self._kv_heads,
                    head_dim=head_dim,
                    dtype=caches[0][0].dtype,
                    device=self._device,
                    window=window,
                )
                for kind in PLANS
            ]
            for window, chunk in dict.fromkeys(self._reach_of)
        }
        self._steps: dict[tuple[int, int | None], _Step] = {}

    def run(self, layers: Layers, x_TC: Tensor, angles: list[Angles], rows_S: Tensor | None) -> Tensor:
        self._started()
        return layers(x_TC, angles, rows_S)

    def prepare(self, inputs: StepInputs, started: Callable[[], None]) -> None:
        self._started = started
        self._block_tables = [self._to_device(np.ascontiguousarray(g.block_table_RP)) for g in inputs.groups]
        self._slot_mappings = [self._to_device(g.slot_mapping_T) for g in inputs.groups]
        self._steps = {}
        for reach, group in zip(self._reach_of, inputs.groups, strict=True):
            if reach not in self._steps:  # groups of one reach have the same sequences
                self._steps[reach] = self._planned(self._plans[reach], group)

    def _planned(self, plans: list[SplitPlan], group: GroupInputs) -> _Step:
        queries = np.diff(group.query_start)
        step = _Step(
            query_start=self._to_device(group.query_start.astype(np.int32)),
            context_len_S=self._to_device(group.context_len.astype(np.int32)),
            plans=[plan for plan in plans if ((queries >= plan.least) & (queries <= plan.most)).any()],
        )
        for plan in step.plans:
            plan.update(step.query_start, step.context_len_S, int(group.context_len.max()))
        return step

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        q_TQD, k_TKD = qkv_TND[:, : self._heads], qkv_TND[:, self._heads : -self._kv_heads]
        v_TKD = qkv_TND[:, -self._kv_heads :]
        half = cos_T1D.shape[-1] // 2
        # The kernel wants each angle once; the sine's first half is the negative of its second.
        cos_TH, sin_TH = cos_T1D[:, 0, :half], sin_T1D[:, 0, half:]
        slots_T = self._slot_mappings[self._group_of[layer]]
        rope_kv_write(q_TQD, k_TKD, v_TKD, cos_TH, sin_TH, slots_T, *self._caches[layer])
        return q_TQD

    def attend(
        self, layer: int, q_TQD: Tensor, sinks_Q: Tensor | None = None, rows_S: Tensor | None = None
    ) -> Tensor:
        out_TQD = torch.empty(q_TQD.shape, dtype=q_TQD.dtype, device=q_TQD.device)
        group = self._group_of[layer]
        step, table_SM = self._steps[self._reach_of[group]], self._block_tables[group]
        args = (q_TQD, *self._caches[layer], table_SM, step.query_start, step.context_len_S)
        for plan in step.plans:
            paged_attention(*args, self._scale, out_TQD, plan, softcap=self._softcap, sinks_Q=sinks_Q)
        return out_TQD if rows_S is None else out_TQD[rows_S]

    def _to_device(self, array: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def wishes_of(logits_SV: Tensor, wanted: Adjustments) -> Wishes | None:
    """``wanted`` on the device; None where nobody wants anything. Words of several tokens are banned already
    in ``logits_SV``: a bias, a mask or a penalty brings none of them back."""
    if wanted.none:
        return None

    def there(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(logits_SV.device, non_blocking=True)

    if wanted.bad_words is not None:
        ban(logits_SV, wanted.mirror_RL.view(-1), wanted.bad_words)
    mask_S = np.full(len(wanted.rows_S), -1, np.int32)
    mask_S[wanted.masked] = np.arange(len(wanted.masked))
    bits_MW = wanted.bits_MW
    if bits_MW is None:
        bits_MW = np.zeros((1, packed_width(logits_SV.shape[1])), np.int32)
    return Wishes(
        there(wanted.rows_S.astype(np.int32)),
        there((BIASED * wanted.biased_S + PENALISED * wanted.penalised_S).astype(np.int32)),
        wanted.history_RV,
        wanted.bias_RV,
        there(wanted.repetition_S),
        there(wanted.frequency_S),
        there(wanted.presence_S),
        there(mask_S),
        there(bits_MW),
    )


def choose_with_triton(logits_SV: Tensor, wanted: Adjustments, rows: SamplingRows | None) -> Tensor:
    """``worker.backend.choose_tokens`` without a visit to the host."""
    wishes = wishes_of(logits_SV, wanted)
    if rows is None:
        return likeliest(logits_SV, wishes)
    parameters = (
        rows.temperature,
        np.minimum(rows.top_k, logits_SV.shape[1]).astype(np.int32),
        rows.top_p,
        likely_margin(rows),
        rows.uniform,
    )
    device = logits_SV.device
    there = (torch.from_numpy(p).to(device, non_blocking=True) for p in parameters)
    return sample(logits_SV, *there, wishes=wishes)
