"""The CPU's kernels as a backend: ``--attention-backend cpu``."""

from __future__ import annotations

import logging

import torch
from sheaf_kernels.cpu.build import UnavailableError
from sheaf_kernels.cpu.elementwise import rms_norm, swiglu
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.linear import linear, pack
from sheaf_kernels.cpu.paged_attention import Plan, make_plan, paged_attention, rope_kv_write
from torch import Tensor

from sheaf_runtime.models.config import AttentionConfig
from sheaf_runtime.models.layers import Ops, PackedLinear, pack_with_onednn
from sheaf_runtime.worker.batch import StepInputs
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


CPU_OPS = Ops(rms_norm=rms_norm, swiglu=swiglu, pack_linear=_pack)


class CpuAttention:
    """See ``backend.PagedAttention``. A page's keys lie as ``sheaf_kernels.cpu.paged_attention`` has them."""

    def __init__(
        self, caches: list[tuple[Tensor, Tensor]], layout: KVLayout, config: AttentionConfig
    ) -> None:
        self._caches = caches
        self._scale, self._softcap = config.scale, config.softcap or 0.0
        self._group_size = config.num_heads // config.num_kv_heads
        self._group_of = layout.group_of
        self._windows = [group.window or 0 for group in layout.groups]
        self._plans: list[Plan] = []
        self._slots: list[Tensor] = []
        self._angles: tuple[Tensor, Tensor, Tensor] | None = None

    def prepare(self, inputs: StepInputs) -> None:
        _, kv_heads, _, head_dim = self._caches[0][0].shape
        self._slots = [torch.from_numpy(group.slot_mapping_T) for group in inputs.groups]
        self._plans = [
            make_plan(
                group.block_table_RP,
                inputs.query_start,
                inputs.context_len,
                group=self._group_size,
                kv_heads=kv_heads,
                head_dim=head_dim,
                window=window,
            )
            for group, window in zip(inputs.groups, self._windows, strict=True)
        ]

    def write_kv(self, layer: int, qkv_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        if self._angles is None or self._angles[0] is not cos_T1D:
            # The kernel wants each angle once; the sine's first half is the negative of its second.
            half = cos_T1D.shape[-1] // 2
            halves = cos_T1D[:, 0, :half].contiguous(), sin_T1D[:, 0, half:].contiguous()
            self._angles = (cos_T1D, *halves)
        _, cos_TH, sin_TH = self._angles
        slots_T = self._slots[self._group_of[layer]]
        if qkv_TND.stride(1) != qkv_TND.shape[2]:
            qkv_TND = qkv_TND.contiguous()
        return rope_kv_write(qkv_TND, cos_TH, sin_TH, slots_T, *self._caches[layer])

    def attend(self, layer: int, q_TQD: Tensor, sinks_Q: Tensor | None = None) -> Tensor:
        plan = self._plans[self._group_of[layer]]
        return paged_attention(
            q_TQD, *self._caches[layer], plan, self._scale, softcap=self._softcap, sinks_Q=sinks_Q
        )
