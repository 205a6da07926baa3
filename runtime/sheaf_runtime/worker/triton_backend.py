"""The Triton backend: attention, element-wise layers and sampling as kernels of ``sheaf_kernels``.

Imports Triton, so it is itself imported only where the backend is chosen (see ``worker.backend``).

Legend: T tokens of the step, R requests, N = Q + 2K heads, Q query heads, K key/value heads, D head size,
H = D / 2, S requests that get a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sheaf_kernels.adjust import Wishes
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
from sheaf_runtime.models.layers import Angles, Computed, Layers, Lookups, Ops, Want, activate
from sheaf_runtime.worker.adjust import Adjustments
from sheaf_runtime.worker.bad_words import ban
from sheaf_runtime.worker.batch import GroupInputs, StepInputs
from sheaf_runtime.worker.chunks import most_pieces
from sheaf_runtime.worker.kv_layout import KVLayout
from sheaf_runtime.worker.masks import packed_width
from sheaf_runtime.worker.sampler import SamplingRows, likely_margin
from sheaf_runtime.worker.step_buffer import There


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
    longest: int
    plans: list[SplitPlan]


class TritonAttention:
    """Call ``plan`` and what it returns once a step, then ``write_kv`` and ``attend`` for each layer in turn.

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
                    device=caches[0][0].device,
                    window=window,
                )
                for kind in PLANS
            ]
            for window, chunk in dict.fromkeys(self._reach_of)
        }
        self._steps: dict[tuple[int, int | None], _Step] = {}

    def run(self, layers: Layers, given: Lookups, want: Want) -> Computed:
        self._started()
        return layers(given)

    def plan(self, inputs: StepInputs, angles: list[Angles] | None) -> Callable[[Callable[[], None]], None]:
        there = inputs.there
        tables = [there(group.block_table_RP) for group in inputs.groups]
        slots = [there(group.slot_mapping_T) for group in inputs.groups]
        steps: dict[tuple[int, int | None], _Step] = {}
        for reach, group in zip(self._reach_of, inputs.groups, strict=True):
            if reach not in steps:  # groups of one reach have the same sequences
                steps[reach] = self._planned(self._plans[reach], group, there)

        def begin(started: Callable[[], None]) -> None:
            self._block_tables, self._slot_mappings, self._steps = tables, slots, steps
            self._started = started
            for step in steps.values():
                for plan in step.plans:
                    plan.update(step.query_start, step.context_len_S, step.longest)

        return begin

    def _planned(self, plans: list[SplitPlan], group: GroupInputs, there: There) -> _Step:
        queries = np.diff(group.query_start)
        return _Step(
            query_start=there(group.query_start),
            context_len_S=there(group.context_len),
            longest=int(group.context_len.max()),
            plans=[plan for plan in plans if ((queries >= plan.least) & (queries <= plan.most)).any()],
        )

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        q_TQD, k_TKD = qkv_TND[:, : self._heads], qkv_TND[:, self._heads : -self._kv_heads]
        v_TKD = qkv_TND[:, -self._kv_heads :]
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


def wishes_of(logits_SV: Tensor, wanted: Adjustments, there: There) -> Wishes | None:
    """``wanted`` on the device; None where nobody wants anything. Words of several tokens are banned already
    in ``logits_SV``: a bias, a mask or a penalty brings none of them back."""
    if wanted.none:
        return None

    if wanted.bad_words is not None:
        ban(logits_SV, wanted.mirror_RL.view(-1), wanted.bad_words)
    mask_S = np.full(len(wanted.rows_S), -1, np.int32)
    mask_S[wanted.masked] = np.arange(len(wanted.masked))
    bits_MW = wanted.bits_MW
    if bits_MW is None:
        bits_MW = np.zeros((1, packed_width(logits_SV.shape[1])), np.int32)
    return Wishes(
        there(wanted.rows_S),
        there(wanted.flags_S),
        wanted.history_RV,
        wanted.bias_RV,
        there(wanted.repetition_S),
        there(wanted.frequency_S),
        there(wanted.presence_S),
        there(mask_S),
        there(bits_MW),
    )


def choose_with_triton(
    logits_SV: Tensor, wanted: Adjustments, rows: SamplingRows | None, there: There
) -> Tensor:
    """``worker.backend.choose_tokens`` without a visit to the host."""
    wishes = wishes_of(logits_SV, wanted, there)
    if rows is None:
        return likeliest(logits_SV, wishes)
    parameters = (rows.temperature, rows.top_k, rows.top_p, likely_margin(rows), rows.uniform)
    return sample(logits_SV, *map(there, parameters), wishes=wishes)
