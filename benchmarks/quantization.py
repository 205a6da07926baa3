"""What ``--quantization int8`` and checkpoints in four bits gain in speed, beside floats in the same rounds.

    python benchmarks/quantization.py MODEL [--rounds 5] [--output benchmarks/results/quantization_avx2.json]

MODEL is a folder with safetensors. One engine for each way of storing weights, in one process; they run in
turns, so that whatever slows the machine meets all of them. For 1, 4 and 16 streams: output tokens per
second, greedy, behind prompts of 128 tokens that the prefix cache holds. ``prompt_1024`` is the time of a
lone prompt of 1024. ``faster_than_bfloat16``: medians of each round's ratio. What it costs in quality is
what perplexity.py tells.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the engine core has it

from four_bits import in_four_bits
from machine import commit, processor, report
from sheaf_runtime.engine.llm import LLM
from sheaf_runtime.protocol.sampling import SamplingParams

FOUR_BITS = "4 bits, bfloat16"
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "int8, bfloat16": {"dtype": "bfloat16", "quantization": "int8"},
    FOUR_BITS: {"dtype": "bfloat16", "quantization": "int8"},  # which makes the head int8
}
STREAMS = (1, 4, 16)
TOKENS = 32


def decode_rate(llm: LLM, streams: int) -> float:
    """Tokens per second."""
    draw = random.Random(streams)
    prompts = [[draw.randrange(1000, 40000) for _ in range(128)] for _ in range(streams)]

    def run(tokens: int) -> float:
        began = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True))
        return time.perf_counter() - began

    run(1)
    return streams * TOKENS / run(TOKENS)


def prompt_seconds(llm: LLM, seed: int) -> float:
    draw = random.Random(seed)
    prompt = [draw.randrange(1000, 40000) for _ in range(1024)]
    began = time.perf_counter()
    llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1))
    return time.perf_counter() - began


def measured(llm: LLM, seed: int) -> dict[str, float]:
    rates = {f"tokens_per_s_{streams}": decode_rate(llm, streams) for streams in STREAMS}
    return {**rates, "prompt_1024": prompt_seconds(llm, seed)}


def faster(name: str, mine: float, other: float) -> float:
    return other / mine if name.startswith("prompt") else mine / other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with ExitStack() as stack:
        packed = in_four_bits(args.model, Path(stack.enter_context(TemporaryDirectory())))
        folders = dict.fromkeys(WAYS, args.model) | {FOUR_BITS: packed}
        common: dict[str, Any] = {"device": "cpu", "max_model_len": 4096, "max_num_seqs": 16}
        engines = {
            way: stack.enter_context(LLM(str(folders[way]), **common, **options))
            for way, options in WAYS.items()
        }
        for llm in engines.values():  # steps are recorded, and prompts go into the cache
            for streams in STREAMS:
                decode_rate(llm, streams)
        rounds = [
            {way: measured(llm, number) for way, llm in engines.items()} for number in range(args.rounds)
        ]
    names = rounds[0]["int8"]
    report(
        {
            "machine": processor(),
            "commit": commit(),
            "model": args.model.name,
            "median": {
                way: {name: round(statistics.median(r[way][name] for r in rounds), 3) for name in names}
                for way in WAYS
            },
            "faster_than_bfloat16": {
                way: {
                    name: round(
                        statistics.median(faster(name, r[way][name], r["bfloat16"][name]) for r in rounds), 3
                    )
                    for name in names
                }
                for way in WAYS
                if way != "bfloat16"
            },
            "rounds": rounds,
        },
        args.output,
    )


if __name__ == "__main__":
    main()
