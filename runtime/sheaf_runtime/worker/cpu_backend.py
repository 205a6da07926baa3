"""The C kernels as a backend, which is what a CPU has where they are made for its model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sheaf_kernels.cpu.build import UnavailableError
from sheaf_kernels.cpu.elementwise import activate, clamped_swiglu, head_norm, rms_norm
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.linear import linear, pack
from sheaf_kernels.cpu.paged_attention import Plan, make_plan, paged_attention, rope_kv_write
from sheaf_kernels.cpu.program import CannotRecordError, Memory, Program
from torch import Tensor

from sheaf_runtime.models.config import AttentionConfig
from sheaf_runtime.models.layers import Angles, Layers, Ops, PackedLinear, pack_with_onednn
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


CPU_OPS = Ops(
    rms_norm=rms_norm,
    head_norm=head_norm,
    activate=activate,
    clamped_swiglu=clamped_swiglu,
    pack_linear=_pack,
)


# Rows up to which Python and the waking of threads take a noticeable part of a step.
RECORDED_ROWS = 64


@dataclass(frozen=True)
class _Recording:
    """The layers' kernel calls for one number of rows, and where they find what they are given."""

    program: Program
    x_TC: Tensor
    angles: list[Angles]  # [T, D / 2] each
    slots: list[Tensor]
    plans: list[Plan]
    hidden_TC: Tensor


class CpuAttention:
    """See ``backend.PagedAttention``. A page's keys lie as ``sheaf_kernels.cpu.paged_attention`` has them.

    Small steps run as a recording of the layers' kernel calls, one for each number of rows.
    """

    def __init__(
        self, caches: list[tuple[Tensor, Tensor]], layout: KVLayout, config: AttentionConfig
    ) -> None:
        self._caches = caches
        self._scale, self._softcap = config.scale, config.softcap or 0.0
        self._group_size = config.num_heads // config.num_kv_heads
        self._group_of = layout.group_of
        self._windows = [group.window or 0 for group in layout.groups]
        self._groups: tuple[GroupInputs, ...] = ()
        self._plans: list[Plan] = []
        self._narrow_plans: list[Plan] = []  # of the rows that ``run`` was given
        self._slots: list[Tensor] = []
        self._halves: dict[int, Angles] = {}
        self._recordings: dict[int, _Recording] = {}
        self._memory = Memory()
        self._record = True

    def prepare(self, inputs: StepInputs, started: Callable[[], None]) -> None:
        self._started = started
        self._groups = inputs.groups
        self._slots = [torch.from_numpy(group.slot_mapping_T) for group in inputs.groups]
        self._plans = self._make_plans(inputs.groups)
        self._halves = {}

    def _make_plans(self, groups: Sequence[GroupInputs]) -> list[Plan]:
        _, kv_heads, _, head_dim = self._caches[0][0].shape
        return [
            make_plan(
                group.block_table_RP,
                group.query_start,
                group.context_len,
                group=self._group_size,
                kv_heads=kv_heads,
                head_dim=head_dim,
                window=window,
            )
            for group, window in zip(groups, self._windows, strict=True)
        ]

    def run(self, layers: Layers, x_TC: Tensor, angles: list[Angles], rows_S: Tensor | None) -> Tensor:
        rows = len(x_TC)
        if rows > RECORDED_ROWS or not self._record:
            if rows_S is not None and len(rows_S):
                groups = [_narrowed(group, rows_S.numpy()) for group in self._groups]
                self._narrow_plans = self._make_plans(groups)
            self._started()
            return layers(x_TC, angles, rows_S)
        recording = self._recordings.get(rows)
        if recording is None:
            try:
                recording = self._recordings[rows] = self._made(layers, x_TC, angles)
            except CannotRecordError as error:
                logger.info("small steps are not recorded: the model needs %s", error)
                self._record = False
                return self.run(layers, x_TC, angles, rows_S)
        else:
            recording.x_TC.copy_(x_TC)
            for mine, given in zip(recording.angles, angles, strict=True):
                for half, now in zip(mine, _half_angles(*given), strict=True):
                    half.copy_(now)
            for slots, now in zip(recording.slots, self._slots, strict=True):
                slots.copy_(now)
            self._plans = [old.follow(new) for old, new in zip(recording.plans, self._plans, strict=True)]
        self._started()
        recording.program.run()
        return recording.hidden_TC if rows_S is None else recording.hidden_TC[rows_S]

    def _made(self, layers: Layers, x_TC: Tensor, angles: list[Angles]) -> _Recording:
        halves = [_half_angles(*given) for given in angles]
        self._halves = {id(cos): half for (cos, _), half in zip(angles, halves, strict=True)}
        program, x_TC = Program(self._memory), x_TC.clone()
        self._slots = [slots.clone() for slots in self._slots]
        with program.record():
            hidden_TC = layers(x_TC, angles, None)
        return _Recording(program, x_TC, halves, self._slots, self._plans, hidden_TC)

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        halves = self._halves.get(id(cos_T1D))
        if halves is None:
            halves = self._halves[id(cos_T1D)] = _half_angles(cos_T1D, sin_T1D)
        slots_T = self._slots[self._group_of[layer]]
        if qkv_TND.stride(1) != qkv_TND.shape[2]:
            qkv_TND = qkv_TND.contiguous()
        return rope_kv_write(qkv_TND, *halves, slots_T, *self._caches[layer])

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


def _half_angles(cos_T1D: Tensor, sin_T1D: Tensor) -> Angles:
    """Each angle once: the sine's first half is the negative of its second."""
    half = cos_T1D.shape[-1] // 2
    return cos_T1D[:, 0, :half].contiguous(), sin_T1D[:, 0, half:].contiguous()
