"""Device times of attention and sampling; GB/s beside the card's own copy bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sheaf_kernels.paged_attention import PLANS, PlanKind, allocate_plan, paged_attention, query_range
from sheaf_kernels.sample import sample

WARM_UP, TIMED = 10, 50
COPY_BYTES = 4 << 30
SLEEP_CYCLES = 1_000_000  # about half a millisecond
Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128  # Llama 3 8B
DECODE = ((1, 4096), (1, 32768), (8, 4096), (8, 32768), (16, 4096), (64, 1024), (64, 4096), (256, 1024))
PREFILL = ((1, 2048), (1, 8192), (8, 512))
# (batch, new tokens each, context): drafts to verify, then chunks on a long prefix.
PREFIXED = ((1, 4, 32768), (8, 4, 32768), (1, 16, 32768), (1, 64, 32768), (1, 128, 32768), (1, 512, 32768))
SAMPLE = ((1, 32000), (1, 128256), (8, 128256), (64, 128256), (1, 151936))
SAMPLE_PARAMETERS = {
    "greedy": (0.0, 0, 1.0),
    "temperature": (1.0, 0, 1.0),
    "top-k": (1.0, 50, 1.0),
    "top-p": (1.0, 0, 0.9),
    "top-k and top-p": (1.0, 50, 0.9),
}


def attention_bytes(batch: int, query: int, context: int, pages: int, itemsize: int) -> int:
    """What one layer must move at least: keys and values, queries and outputs, page numbers."""
    return (
        batch * context * 2 * KV_HEADS * HEAD_DIM * itemsize
        + 2 * batch * query * Q_HEADS * HEAD_DIM * itemsize
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


def attention_calls(step: Step, kind: PlanKind, device: str) -> list[Callable[[], None]]:
    """One call for each pool, all under one plan."""
    plan = allocate_plan(
        kind,
        max_seqs=len(step.context_len),
        num_q_heads=Q_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=step.q.dtype,
        device=device,
    )
    plan.update(step.query_start, step.context_len)
    scale = HEAD_DIM**-0.5

    def call(k: torch.Tensor, v: torch.Tensor) -> None:
        paged_attention(
            step.q, k, v, step.block_table, step.query_start, step.context_len, scale, step.out, plan
        )

    return [lambda k=k, v=v: call(k, v) for k, v in step.pools]  # type: ignore[misc]


def device_times(calls: Sequence[Callable[[], object]]) -> list[float]:
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
    return 2 * COPY_BYTES / statistics.median(device_times([lambda: target.copy_(source)])) / 1e9


def memory_bound(
    batch: int, query: int, context: int, copy: float, least: int, device: str
) -> dict[str, Any]:
    """Times and GB/s of a step that reads far more keys than it computes tokens, eagerly and as a graph."""
    dtype = torch.bfloat16
    step = make_step(batch, query, context, device, dtype, least_bytes=least)
    moved = attention_bytes(batch, query, context, step.num_pages, dtype.itemsize)
    kind = next(kind for kind in PLANS if query <= query_range(kind, Q_HEADS // KV_HEADS)[1])
    calls = attention_calls(step, kind, device)
    row: dict[str, Any] = {"batch": batch, "query": query, "context": context}
    for name, timed in (("eager", calls), ("graph", captured(calls))):
        times = summary(device_times(timed))
        rate = moved / times["us"] / 1e3
        row[name] = {**times, "GB_per_s": round(rate, 1), "of_copy": round(rate / copy, 3)}
    return row


def attention_timing(device: str = "cuda") -> dict[str, Any]:
    """Decodes and chunks on a prefix in GB/s, prompts in TFLOP/s; bfloat16, pages of 16."""
    copy = copy_bandwidth(device)
    least = 3 * torch.cuda.get_device_properties(device).L2_cache_size
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
        "prefixed": [],
        "prefill": [],
    }
    for part, shapes in (("decode", [(b, 1, c) for b, c in DECODE]), ("prefixed", PREFIXED)):
        for batch, query, context in shapes:
            result[part].append(memory_bound(batch, query, context, copy, least, device))
            torch.cuda.empty_cache()
    for batch, length in PREFILL:
        step = make_step(batch, length, length, device, torch.bfloat16, least_bytes=least)
        times = summary(device_times(attention_calls(step, "long", device)))
        rate = prefill_flops(batch, length) / times["us"] / 1e6
        result["prefill"].append({"batch": batch, "length": length, **times, "TFLOP_per_s": round(rate, 1)})
        del step
        torch.cuda.empty_cache()
    return result


def sampling_timing(device: str = "cuda") -> list[dict[str, Any]]:
    """One call of the sampler by rows, vocabulary and parameters, on bfloat16 logits."""
    result = []
    for rows, vocab in SAMPLE:
        logits = 3 * torch.randn(rows, vocab, device=device).to(torch.bfloat16)
        uniform = torch.rand(rows, dtype=torch.float64, device=device)
        for name, (temperature, top_k, top_p) in SAMPLE_PARAMETERS.items():
            args = (
                torch.full((rows,), temperature, device=device),
                torch.full((rows,), top_k, dtype=torch.int32, device=device),
                torch.full((rows,), top_p, dtype=torch.float64, device=device),
                torch.full((rows,), -torch.inf, device=device),
            )
            times = device_times([partial(sample, logits, *args, uniform)])
            result.append({"rows": rows, "vocab": vocab, "parameters": name, **summary(times)})
    return result
