"""Device times of attention, and what the card's memory does: GB/s beside the card's own copy bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sheaf_kernels.paged_decode import DecodePlan, paged_decode
from sheaf_kernels.paged_prefill import paged_prefill

WARM_UP, TIMED = 10, 50
COPY_BYTES = 4 << 30
SLEEP_CYCLES = 1_000_000  # about half a millisecond
Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128  # Llama 3 8B
DECODE = ((1, 4096), (1, 32768), (8, 4096), (8, 32768), (16, 4096), (64, 1024), (64, 4096), (256, 1024))
PREFILL = ((1, 2048), (1, 8192), (8, 512))


def decode_bytes(batch: int, context: int, pages: int, itemsize: int) -> int:
    """What one layer's decode must move: keys and values, queries and outputs, page numbers."""
    return (
        batch * context * 2 * KV_HEADS * HEAD_DIM * itemsize
        + 2 * batch * Q_HEADS * HEAD_DIM * itemsize
        + 4 * pages
    )


def prefill_flops(batch: int, length: int) -> int:
    """Multiplications and additions below the causal diagonal."""
    return 4 * Q_HEADS * HEAD_DIM * batch * length * (length + 1) // 2


@dataclass(frozen=True)
class Step:
    """Inputs of one step over several pools, so that no call finds its keys in the cache of the last."""

    q: torch.Tensor
    out: torch.Tensor
    pools: list[tuple[torch.Tensor, torch.Tensor]]
    block_table: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor
    num_pages: int


def make_step(
    batch: int, query: int, context: int, device: str, dtype: torch.dtype, *, page: int = 16, least_bytes: int
) -> Step:
    """Pages are permuted; pools together hold at least ``least_bytes``."""
    per_sequence = -(-context // page)
    num_pages = batch * per_sequence + 1
    shape = (num_pages, KV_HEADS, page, HEAD_DIM)
    pool_bytes = 2 * num_pages * KV_HEADS * page * HEAD_DIM * dtype.itemsize
    pools = [
        (torch.randn(shape, device=device, dtype=dtype), torch.randn(shape, device=device, dtype=dtype))
        for _ in range(max(2, -(-least_bytes // pool_bytes)))
    ]
    order = 1 + torch.randperm(num_pages - 1, device=device)
    q = torch.randn(batch * query, Q_HEADS, HEAD_DIM, device=device, dtype=dtype)
    return Step(
        q=q,
        out=torch.empty_like(q),
        pools=pools,
        block_table=order.view(batch, per_sequence).to(torch.int32),
        query_start=torch.arange(0, batch * query + 1, query, device=device, dtype=torch.int32),
        context_len=torch.full((batch,), context, device=device, dtype=torch.int32),
        num_pages=num_pages - 1,
    )


def decode_calls(step: Step, device: str) -> list[Callable[[], None]]:
    """One call for each pool, all under one plan."""
    plan = DecodePlan.allocate(len(step.context_len), Q_HEADS, KV_HEADS, HEAD_DIM, device)
    plan.update(step.query_start, step.context_len)
    scale = HEAD_DIM**-0.5

    def call(k: torch.Tensor, v: torch.Tensor) -> None:
        paged_decode(
            step.q, k, v, step.block_table, step.query_start, step.context_len, scale, step.out, plan
        )

    return [lambda k=k, v=v: call(k, v) for k, v in step.pools]  # type: ignore[misc]


def prefill_calls(step: Step) -> list[Callable[[], None]]:
    scale = HEAD_DIM**-0.5

    def call(k: torch.Tensor, v: torch.Tensor) -> None:
        paged_prefill(step.q, k, v, step.block_table, step.query_start, step.context_len, scale, step.out)

    return [lambda k=k, v=v: call(k, v) for k, v in step.pools]  # type: ignore[misc]


def device_times(calls: list[Callable[[], None]]) -> list[float]:
    """Seconds of each of TIMED calls on the device, taking turns, after a warm-up. CUDA events.

    The device sleeps first, so that start, call and end are all queued when it begins: the host's own time
    for a launch is not in the result.
    """
    for i in range(WARM_UP):
        calls[i % len(calls)]()
    times = []
    for i in range(TIMED):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        calls[i % len(calls)]()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times


def captured(calls: list[Callable[[], None]]) -> list[Callable[[], None]]:
    """Each call as a CUDA graph."""
    graphs = []
    for call in calls:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graphs.append(graph)
    return [graph.replay for graph in graphs]


def summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "us": round(1e6 * statistics.median(ordered), 2),
        "us_p10": round(1e6 * ordered[len(ordered) // 10], 2),
        "us_p90": round(1e6 * ordered[len(ordered) * 9 // 10], 2),
    }


def copy_bandwidth(device: str = "cuda") -> float:
    """GB/s read and written together by a copy of COPY_BYTES."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / statistics.median(device_times([lambda: target.copy_(source) and None])) / 1e9


def attention_timing(device: str = "cuda") -> dict[str, Any]:
    """Decode in GB/s, eagerly and under a CUDA graph, and prefill in TFLOP/s, bfloat16, pages of 16."""
    copy = copy_bandwidth(device)
    least = 3 * torch.cuda.get_device_properties(device).L2_cache_size
    dtype = torch.bfloat16
    result: dict[str, Any] = {
        "copy_GB_per_s": round(copy, 1),
        "shape": {
            "q_heads": Q_HEADS,
            "kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "dtype": "bfloat16",
            "page": 16,
        },
        "decode": [],
        "prefill": [],
    }
    for batch, context in DECODE:
        step = make_step(batch, 1, context, device, dtype, least_bytes=least)
        moved = decode_bytes(batch, context, step.num_pages, dtype.itemsize)
        row: dict[str, Any] = {"batch": batch, "context": context}
        calls = decode_calls(step, device)
        for name, timed in (("eager", calls), ("graph", captured(calls))):
            times = summary(device_times(timed))
            rate = moved / times["us"] / 1e3
            row[name] = {**times, "GB_per_s": round(rate, 1), "of_copy": round(rate / copy, 3)}
        result["decode"].append(row)
        del step, calls, timed
        torch.cuda.empty_cache()
    for batch, length in PREFILL:
        step = make_step(batch, length, length, device, dtype, least_bytes=least)
        times = summary(device_times(prefill_calls(step)))
        rate = prefill_flops(batch, length) / times["us"] / 1e6
        result["prefill"].append({"batch": batch, "length": length, **times, "TFLOP_per_s": round(rate, 1)})
        del step
        torch.cuda.empty_cache()
    return result
