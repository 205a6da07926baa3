"""Which backend runs a model: plain torch, Triton kernels where there is CUDA, or C kernels on a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import torch
from sheaf_kernels.cpu import paged_attention as cpu_attention
from sheaf_kernels.cpu.lookup import likeliest
from torch import Tensor

from sheaf_runtime.config import AttentionBackend, Quantization
from sheaf_runtime.models.config import AttentionConfig, DecoderConfig
from sheaf_runtime.models.layers import TORCH_OPS, Angles, Computed, Layers, Lookups, Ops, Want
from sheaf_runtime.models.schemes import INT8_ON_LOAD, PLAIN, Scheme
from sheaf_runtime.worker.adjust import Adjustments, adjust
from sheaf_runtime.worker.attention import TorchAttention
from sheaf_runtime.worker.batch import StepInputs
from sheaf_runtime.worker.cpu_backend import CPU_OPS, CpuAttention, cannot_load
from sheaf_runtime.worker.kv_layout import KVLayout
from sheaf_runtime.worker.sampler import SamplingRows, greedy, sample
from sheaf_runtime.worker.step_buffer import There

logger = logging.getLogger(__name__)
Backend = Literal["torch", "triton", "cpu"]

# What the attention kernels are made for.
MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 8
BLOCK_SIZES = (16, 32, 64)
MAX_GROUP = 16


Begin = Callable[[Callable[[], None]], None]


class PagedAttention(Protocol):
    """What each backend's attention offers: ``plan`` once a step, what that returned at the step's turn on
    the device, then the model's ``Attention``.

    ``plan`` may run while the device computes the step before, on another thread, and what it returns is
    given a ``started`` that ``run`` calls when the work begins that needs little of the host.
    """

    def plan(self, inputs: StepInputs, angles: list[Angles] | None) -> Begin: ...
    def run(self, layers: Layers, given: Lookups, want: Want) -> Computed: ...
    def write_kv(self, layer: int, qkv_TND: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor: ...
    def attend(
        self, layer: int, q_TQD: Tensor, sinks_Q: Tensor | None = None, rows_S: Tensor | None = None
    ) -> Tensor: ...


def resolve_backend(
    asked: AttentionBackend, device: torch.device, model: DecoderConfig, block_size: int, dtype: torch.dtype
) -> Backend:
    """``auto`` is Triton on CUDA and the C kernels on a CPU, for models that they are made for.

    Raises ValueError if kernels were asked for that cannot run; the message says what to change.
    """
    if asked == "torch":
        return "torch"
    if asked == "cpu" or (asked == "auto" and device.type == "cpu"):
        problem = _cpu_problem(device, model, block_size, dtype)
        if problem is None:
            return "cpu"
        if asked == "cpu":
            raise ValueError(f"--attention-backend cpu: {problem}; use torch or auto")
        logger.warning("the model runs in plain torch, which is slower: %s", problem)
        return "torch"
    problem = _triton_problem(device, model, block_size)
    if problem is None:
        return "triton"
    if asked == "triton":
        raise ValueError(f"--attention-backend triton: {problem}; use torch or auto")
    logger.warning("attention runs in plain torch, which is slow on CUDA: %s", problem)
    return "torch"


def _triton_problem(device: torch.device, model: DecoderConfig, block_size: int) -> str | None:
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"kernels need CUDA, the device is {device}"
    attention = model.attention
    group = attention.num_heads // attention.num_kv_heads
    if attention.head_dim > MAX_HEAD_DIM or attention.head_dim % HEAD_DIM_MULTIPLE:
        return (
            f"the model's head size is {attention.head_dim}, kernels exist for multiples of "
            f"{HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}"
        )
    if group > MAX_GROUP:
        return f"{group} query heads share a key/value head, kernels take up to {MAX_GROUP}"
    if block_size not in BLOCK_SIZES:
        return f"--block-size is {block_size}, kernels exist for {_listed(BLOCK_SIZES)}"
    return None


def _cpu_problem(
    device: torch.device, model: DecoderConfig, block_size: int, dtype: torch.dtype
) -> str | None:
    if device.type != "cpu":
        return f"its kernels run on a CPU, the device is {device}"
    attention = model.attention
    group = attention.num_heads // attention.num_kv_heads
    return cpu_attention.problem(attention.head_dim, group, block_size, dtype) or cannot_load()


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def make_ops(backend: Backend, quantization: Quantization = "none", stored: Scheme = PLAIN) -> Ops:
    """``stored``: how the checkpoint has its layers. Raises ValueError where it has no kernels for them."""
    if quantization == "int8" or stored != PLAIN:
        if backend != "cpu":
            what = "--quantization int8 needs" if stored == PLAIN else "the checkpoint's int8 weights need"
            raise ValueError(
                f"{what} the CPU kernels, and the model would run on {backend} ones (--device cpu "
                "--attention-backend cpu says why they cannot run); take the model's floats"
            )
        return replace(
            CPU_OPS,
            scheme=INT8_ON_LOAD if stored == PLAIN else stored,
            head_scheme=INT8_ON_LOAD if quantization == "int8" else PLAIN,
        )
    if backend == "torch":
        return TORCH_OPS
    if backend == "cpu":
        return CPU_OPS
    from sheaf_runtime.worker.triton_backend import triton_ops

    return triton_ops()


def make_attention(
    backend: Backend,
    caches: list[tuple[Tensor, Tensor]],
    layout: KVLayout,
    config: AttentionConfig,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> PagedAttention:
    """``caches`` holds (keys, values) of each layer, [page, kv_head, slot, dim]."""
    if backend == "torch":
        return TorchAttention(caches, layout, config)
    if backend == "cpu":
        return CpuAttention(caches, layout, config)
    from sheaf_runtime.worker.triton_backend import TritonAttention

    return TritonAttention(caches, layout, config, max_num_seqs, max_num_batched_tokens)


def choose_tokens(
    backend: Backend, logits_SV: Tensor, wanted: Adjustments, rows: SamplingRows | None, there: There
) -> Tensor:
    """Token ids [S] (int64), -1 where there is nothing to choose from. ``rows`` None: all are greedy.
    ``logits_SV`` may be overwritten."""
    if backend != "triton":
        adjusted_SV = adjust(logits_SV, wanted)
        if rows is not None:
            return sample(adjusted_SV, rows)
        return likeliest(adjusted_SV) if backend == "cpu" else greedy(adjusted_SV)
    from sheaf_runtime.worker.triton_backend import choose_with_triton

    return choose_with_triton(logits_SV, wanted, rows, there)
