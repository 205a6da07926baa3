"""Where a step's time goes on a CPU, beside what the machine can do.

    python benchmarks/profile_cpu.py MODEL [--output benchmarks/results/profile_cpu.json]

For 1, 4 and 16 streams of 128 prompt tokens and for a lone prompt of 1024, in float32 and bfloat16, with the
kernels of ``--attention-backend cpu``: milliseconds of a step by part, the bytes of weights that the linear
layers read, and their rate. A part's time is what its kernels take inside when they are called one by one;
"rest" is all else of such a step: torch's small operations, Python, the sampler, the scheduler, the threads'
hand-over. ``step_ms`` is the step as it is served, with its calls recorded as one program where it has few
rows. The machine's own bounds are measured in the same process: reading a large tensor with all threads, and
one large product; ``bound_ms`` is what the weights' bytes and the layers' operations take at these rates.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the engine core has it

import torch
from machine import commit, processor
from sheaf_kernels.cpu.library import load
from sheaf_kernels.cpu.memory import Arena
from sheaf_runtime.engine.llm import LLM
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker import cpu_backend

STREAMS = (1, 4, 16)
STEPS = 48


class Timed:
    """The library's functions, with the seconds, the calls and the weights' bytes of each."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self.clear()

    def clear(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.weight_bytes = self.operations = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._functions, name)

        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            result = function(*args)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self.calls[name] = self.calls.get(name, 0) + 1
            if name == "sheaf_linear":
                _, _, _, _, _, _, _, rows, outputs, inputs, bf16, _ = args
                self.operations += 2 * rows * outputs * inputs
                self.weight_bytes += outputs * inputs * (2 if bf16 else 4)
            return result

        self.__dict__[name] = timed
        return timed


def fastest(run: Callable[[], object], rounds: int = 10) -> float:
    """Of so many, or of those that began within two seconds."""
    seconds: list[float] = []
    while len(seconds) < rounds and sum(seconds) < 2:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def bounds(dtype: torch.dtype) -> dict[str, float]:
    """GB/s of a read by all threads; GFLOP/s of a product of 1024 x 4096 x 1024, in float32 where that is
    faster: without the machine's own bfloat16, widened numbers are the bound."""
    # In huge pages, as weights are: a read of others is slower than the kernels'.
    large = Arena().empty(((1 << 29) // dtype.itemsize,), dtype).fill_(1)

    def product(dtype: torch.dtype) -> float:
        x, w = torch.ones(1024, 4096, dtype=dtype), torch.ones(1024, 4096, dtype=dtype)
        return fastest(lambda: x @ w.T, 30)

    return {
        "read_gb_per_s": round(large.nbytes / fastest(lambda: large.view(torch.float32).sum()) / 1e9, 1),
        "matmul_gflop_per_s": round(2 * 1024 * 4096 * 1024 / min(map(product, {dtype, torch.float32})) / 1e9),
    }


def profile(
    llm: LLM, timed: Timed, machine: dict[str, float], streams: int, prompt: int, steps: int
) -> dict[str, Any]:
    """Means over the steps behind the prompts' own, or the prompt's where ``steps`` is 0."""
    generator = random.Random(streams)

    def run(tokens: int) -> float:
        prompts = [[generator.randrange(1000, 40000) for _ in range(prompt)] for _ in range(streams)]
        timed.clear()
        began = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, seed=0))
        return time.perf_counter() - began

    def snapshot(tokens: int) -> dict[str, float]:
        seconds = run(tokens)
        parts = {name.removeprefix("sheaf_"): value for name, value in timed.seconds.items()}
        parts |= {f"calls.{name.removeprefix('sheaf_')}": float(n) for name, n in timed.calls.items()}
        work = {"weight_bytes": float(timed.weight_bytes), "operations": float(timed.operations)}
        return {"step": seconds, **work, **parts}

    def median(rounds: list[dict[str, float]]) -> dict[str, float]:
        every = dict.fromkeys(key for one in rounds for key in one)  # a program may be made in one only
        return {key: statistics.median(one.get(key, 0.0) for one in rounds) for key in every}

    def measured() -> dict[str, float]:
        first = median([snapshot(1) for _ in range(3)])
        if not steps:
            return first
        more = median([snapshot(1 + steps) for _ in range(3)])
        return {key: (more[key] - first.get(key, 0.0)) / steps for key in more}

    served = 1000 * measured()["step"]
    recorded, cpu_backend.RECORDED_ROWS = cpu_backend.RECORDED_ROWS, 0
    try:
        first = measured()
    finally:
        cpu_backend.RECORDED_ROWS = recorded
    calls = {key.removeprefix("calls."): round(value, 1) for key, value in first.items() if "calls." in key}
    parts = {name: 1000 * first[name] for name in calls}
    step = 1000 * first["step"]
    bound = max(
        first["weight_bytes"] / machine["read_gb_per_s"] / 1e6,
        first["operations"] / machine["matmul_gflop_per_s"] / 1e6,
    )
    return {
        "step_ms": round(served, 2),
        "bound_ms": round(bound, 2),
        "of_bound": round(bound / served, 2),
        "one_by_one_ms": round(step, 2),
        "parts_ms": {name: round(ms, 2) for name, ms in sorted(parts.items(), key=lambda one: -one[1])},
        "rest_ms": round(step - sum(parts.values()), 2),
        "calls": calls,
        "weight_mb": round(first["weight_bytes"] / 1e6, 1),
        "weight_gb_per_s": round(first["weight_bytes"] / first["linear"] / 1e9, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default both")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    library = load()
    timed = Timed(library.functions)
    library.functions = timed
    result: dict[str, Any] = {
        "machine": {"cpu": processor(), "kernels": library.level, "threads": library.threads},
        "commit": commit(),
    }
    for name in args.dtype or ("float32", "bfloat16"):
        machine = bounds(getattr(torch, name))
        result[name] = {"machine": machine}
        options: dict[str, Any] = {
            "dtype": name,
            "max_num_seqs": max(STREAMS),
            "enable_prefix_caching": False,
        }
        with LLM(
            args.model, device="cpu", attention_backend="cpu", kv_cache_memory=1 << 30, **options
        ) as llm:
            for streams in STREAMS:
                result[name][f"{streams} streams"] = profile(llm, timed, machine, streams, 128, STEPS)
            result[name]["prompt of 1024"] = profile(llm, timed, machine, 1, 1024, 0)
        for what, row in result[name].items():
            print(name, what, json.dumps(row), flush=True)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {args.output}")


if __name__ == "__main__":
    main()
