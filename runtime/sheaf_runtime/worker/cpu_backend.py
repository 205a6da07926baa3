"""The C kernels as a backend, which is what a CPU has where they are made for its model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from sheaf_kernels.cpu.build import UnavailableError
from sheaf_kernels.cpu.elementwise import activate, clamped_swiglu, head_norm, rms_norm
from sheaf_kernels.cpu.int4 import linear_int4, pack_int4
from sheaf_kernels.cpu.int8 import linear_int8, pack_int8
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.linear import linear, pack
from sheaf_kernels.cpu.lookup import likeliest, take_rows
from sheaf_kernels.cpu.paged_attention import Plan, make_plan, paged_attention, rope_kv_write
from sheaf_kernels.cpu.program import CannotRecordError, Feed, Memory, Program
from torch import Tensor

from sheaf_runtime.models.config import AttentionConfig
from sheaf_runtime.models.layers import (
    Angles,
    Computed,
    Layers,
    Lookups,
    Ops,
    Want,
    pack_with_onednn,
)
from sheaf_runtime.models.schemes import PackedLinear
from sheaf_runtime.worker.batch import GroupInputs, Int64, StepInputs
from sheaf_runtime.worker.kv_layout import KVLayout

logger = logging.getLogger(__name__)


def cannot_load() -> str | None:
    """Why the kernels cannot run on this machine. Compiles them where that was not done before."""
    try:
        library = load()
    except UnavailableError as error:
        return str(error)
    logger.info("CPU kernels for %s on %d threads", library.level, library.threads)
    return None


def _pack(weight: Tensor) -> PackedLinear | None:
    if weight.dtype == torch.bfloat16 and weight.shape[1] % 2:
        return pack_with_onednn(weight)
    packed = pack(weight)
    return lambda x_TC, bias: linear(x_TC, packed, bias)


def _pack_int8(weight: Tensor, scale: Tensor) -> PackedLinear:
    packed = pack_int8(weight, scale)
    return lambda x_TC, bias: linear_int8(x_TC, packed, bias)


def _pack_int4(weight: Tensor, zero: Tensor, scale: Tensor) -> PackedLinear:
    packed = pack_int4(weight, zero, scale)
    return lambda x_TC, bias: linear_int4(x_TC, packed, bias)


def _likeliest(logits_TV: Tensor) -> npt.NDArray[np.int64]:
    return likeliest(logits_TV).numpy()


CPU_OPS = Ops(
    rms_norm=rms_norm,
    head_norm=head_norm,
    activate=activate,
    clamped_swiglu=clamped_swiglu,
    take_rows=take_rows,
    likeliest=_likeliest,
    pack_linear=_pack,
    pack_int8=_pack_int8,
    pack_int4=_pack_int4,
)


# Rows up to which Python and the waking of threads take a noticeable part of a step.
RECORDED_ROWS = 64
# Steps with drafts have any number of rows: one is recorded once it has come so often that it had paid.
SELDOM = 16


@dataclass(frozen=True)
class _Recording:
    """The kernel calls of a step of one number of rows, and where they find what they are given."""

    program: Program
    feed: Feed
    given: Lookups
    slots: list[Tensor]
    plans: list[Plan]
    computed: Computed


@dataclass(frozen=True)
class _Planned:
    """A step before its turn. ``pieces``, at ``address``, bring it to ``recording``, where there was one."""

    inputs: StepInputs
    angles: list[Angles]
    slots: list[Tensor]
    plans: list[Plan]
    recording: _Recording | None
    pieces: npt.NDArray[np.int64]
    address: int


class CpuAttention:
    """See ``backend.PagedAttention``. A page's keys lie as ``sheaf_kernels.cpu.paged_attention`` has them.

    Small steps run as a recording of their kernel calls, from token ids to what is wanted: one for each
    number of rows and each want; with adapters they run call by call, as those with drafts do at first. A run
    begins with copies of what the step brings, so that nearly nothing is left to do in Python at its turn:
    then no cache holds anything of Python, and it is ten times as slow.
    """

    def __init__(
        self, caches: list[tuple[Tensor, Tensor]], layout: KVLayout, config: AttentionConfig
    ) -> None:
        self._caches = caches
        self._scale, self._softcap = config.scale, config.softcap or 0.0
        self._group_size = config.num_heads // config.num_kv_heads
        self._group_of = layout.group_of
        self._windows = [group.window or 0 for group in layout.groups]
        self._plans: list[Plan] = []
        self._narrow_plans: list[Plan] = []  # of the rows that ``run`` was given
        self._slots: list[Tensor] = []
        self._recordings: dict[tuple[int, Want], _Recording] = {}
        self._seen: Counter[tuple[int, Want]] = Counter()  # steps with drafts that are not recorded
        self._memory = Memory()
        self._record = True

    def plan(self, inputs: StepInputs, angles: list[Angles] | None) -> Callable[[Callable[[], None]], None]:
        slots = [inputs.there(group.slot_mapping_T) for group in inputs.groups]
        plans = self._make_plans(inputs.groups)
        recording = self._recordings.get((len(inputs.tokens_T), inputs.want))
        return partial(self._begin, _planned(inputs, angles, slots, plans, recording))

    def _make_plans(self, groups: Sequence[GroupInputs]) -> list[Plan]:
        _, kv_heads, _, head_dim = self._caches[0][0].shape
        return [
            make_plan(
                group.block_table_RP,
                group.query_start.astype(np.int64),
                group.context_len.astype(np.int64),
                group=self._group_size,
                kv_heads=kv_heads,
                head_dim=head_dim,
                window=window,
            )
            for group, window in zip(groups, self._windows, strict=True)
        ]

    def _begin(self, planned: _Planned, started: Callable[[], None]) -> None:
        self._planned, self._started = planned, started

    def run(self, layers: Layers, given: Lookups, want: Want) -> Computed:
        planned, rows = self._planned, len(given.tokens_T)
        if rows > RECORDED_ROWS or not self._record or given.adapters is not None:
            return self._run_now(layers, given)
        if planned.recording is None:
            recording = self._recordings.get((rows, want))
            if recording is None:
                if planned.inputs.drafts and self._comes_seldom(rows, want):
                    return self._run_now(layers, given)
                try:
                    recording = self._recordings[rows, want] = self._made(layers, given)
                except CannotRecordError as error:
                    logger.info("small steps are not recorded: the model needs %s", error)
                    self._record = False
                    return self._run_now(layers, given)
            planned = _planned(planned.inputs, planned.angles, planned.slots, planned.plans, recording)
        recording = planned.recording
        assert recording is not None
        recording.feed.give(planned.pieces, planned.address)
        self._started()
        recording.program.run()
        if given.rows_S is None:
            return recording.computed
        return Computed(recording.computed.hidden_TC[given.rows_S])

    def _comes_seldom(self, rows: int, want: Want) -> bool:
        self._seen[rows, want] += 1
        return self._seen[rows, want] <= SELDOM

    def _run_now(self, layers: Layers, given: Lookups) -> Computed:
        self._slots, self._plans = self._planned.slots, self._planned.plans
        if given.rows_S is not None and len(given.rows_S):
            rows_S = given.rows_S.numpy()
            self._narrow_plans = self._make_plans([_narrowed(g, rows_S) for g in self._planned.inputs.groups])
        self._started()
        return layers(given)

    def _made(self, layers: Layers, given: Lookups) -> _Recording:
        program, feed = Program(self._memory), Feed()
        angles = [(cos_TH.clone(), sin_TH.clone()) for cos_TH, sin_TH in given.angles]
        mine = Lookups(given.tokens_T.clone(), angles, None)
        self._slots = [slots.clone() for slots in self._planned.slots]
        self._plans = [plan.copy() for plan in self._planned.plans]
        with program.record():
            program.takes(feed)
            computed = layers(mine)
        return _Recording(program, feed, mine, self._slots, self._plans, computed)

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        slots_T = self._slots[self._group_of[layer]]
        if qkv_TND.stride(1) != qkv_TND.shape[2]:
            qkv_TND = qkv_TND.contiguous()
        return rope_kv_write(qkv_TND, cos_TH, sin_TH, slots_T, *self._caches[layer])

    def attend(
        self, layer: int, q_TQD: Tensor, sinks_Q: Tensor | None = None, rows_S: Tensor | None = None
    ) -> Tensor:
        plans = self._plans
        if rows_S is not None:
            q_TQD, plans = q_TQD[rows_S], self._narrow_plans
            if not len(rows_S):
                return q_TQD
        plan = plans[self._group_of[layer]]
        return paged_attention(
            q_TQD, *self._caches[layer], plan, self._scale, softcap=self._softcap, sinks_Q=sinks_Q
        )


def _narrowed(group: GroupInputs, rows_S: Int64) -> GroupInputs:
    """Each of these rows as a request of one token."""
    owner = np.searchsorted(group.query_start, rows_S, side="right") - 1
    later = group.query_start[owner + 1] - 1 - rows_S
    return replace(
        group,
        query_start=np.arange(len(rows_S) + 1),
        context_len=group.context_len[owner] - later,
        block_table_RP=group.block_table_RP[owner],
    )


def _planned(
    inputs: StepInputs,
    angles: list[Angles] | None,
    slots: list[Tensor],
    plans: list[Plan],
    recording: _Recording | None,
) -> _Planned:
    angles = angles or []
    copies: list[tuple[int, int, int]] = []
    if recording is not None:
        tensors = [(recording.given.tokens_T, inputs.tokens_T), *zip(recording.slots, slots, strict=True)]
        for places, given in zip(recording.given.angles, angles, strict=True):
            tensors += zip(places, given, strict=True)
        copies = [(to.data_ptr(), now.data_ptr(), now.nbytes) for to, now in tensors]
        copies += [place.takes(plan) for place, plan in zip(recording.plans, plans, strict=True)]
    pieces = Feed.pieces(copies)
    return _Planned(inputs, angles, slots, plans, recording, pieces, pieces.ctypes.data)
