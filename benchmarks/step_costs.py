"""What grammar, detokenizing, JSON and metrics cost beside the model, in CPU time.

    python benchmarks/step_costs.py MODEL [--streams 16] [--output benchmarks/results/step_costs.json]

Serves MODEL and holds streams open, without a schema and each with one, in turns. Counted per round: the API
process as a whole (HTTP, detokenizing, JSON, metrics), the engine core's main thread (scheduling, messages,
grammar) and the core as a whole, model included. ``share`` is the API process and what the core's main thread
spends more with schemas than without, of all CPU time; ``share_of_wall`` the same of a step's duration, which
other load does move. Both are upper bounds of the four. The first round of each is not counted: it compiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from local_server import Server
from machine import commit, cpu_seconds, processor
from structured import SCHEMA

ROUNDS = 3


def thread_seconds(pid: int) -> float:
    """User and system time of a process's main thread."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def stream_all(url: str, streams: int, tokens: int, schema: bool) -> float:
    """Runs the streams to their ends; seconds that took."""
    body: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 1.0}
    if schema:
        body["structured_outputs"] = {"json": SCHEMA}

    async def one(client: httpx.AsyncClient, number: int) -> None:
        tail = b""
        request = {**body, "prompt": f"Place {number} is", "seed": number}
        async with client.stream("POST", f"{url}/v1/completions", json=request) as response:
            async for piece in response.aiter_raw():
                tail = (tail + piece)[-64:]
        assert tail.endswith(b"data: [DONE]\n\n"), tail

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client, number) for number in range(streams)))
        return time.perf_counter() - began


def measure(server: Server, streams: int, tokens: int, schema: bool) -> dict[str, float]:
    """Milliseconds per step of one round; a step gives each stream a token."""
    pids = server.processes()

    def now() -> tuple[float, float, float]:
        return cpu_seconds(pids["api"]), thread_seconds(pids["core"]), cpu_seconds(pids["core"])

    before = now()
    wall = asyncio.run(stream_all(server.url, streams, tokens, schema))
    spent = [after - start for after, start in zip(now(), before, strict=True)]
    names = ("api_cpu", "core_main_thread_cpu", "core_cpu")
    return {name: s / tokens * 1e3 for name, s in zip((*names, "wall"), (*spent, wall), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of each stream")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {"plain": [], "schema": []}
    flags = ["--max-num-seqs", str(options.streams), "--no-enable-prefix-caching", "--no-access-log"]
    with Server(options.model, flags) as server:
        for round_ in range(ROUNDS + 1):
            for name in rounds:
                made = measure(server, options.streams, options.tokens, name == "schema")
                if round_:
                    rounds[name].append(made)
    median = {
        name: {part: statistics.median(r[part] for r in made) for part in made[0]}
        for name, made in rounds.items()
    }
    schema = median["schema"]
    grammar = max(0.0, schema["core_main_thread_cpu"] - median["plain"]["core_main_thread_cpu"])
    report = {
        "machine": processor(),
        "commit": commit(),
        "model": options.model.name,
        "streams": options.streams,
        "tokens_each": options.tokens,
        "ms_per_step": {
            name: {part: round(value, 3) for part, value in parts.items()} for name, parts in median.items()
        },
        "grammar_ms_per_step": round(grammar, 3),
        "share": round((schema["api_cpu"] + grammar) / (schema["api_cpu"] + schema["core_cpu"]), 4),
        "share_of_wall": round((schema["api_cpu"] + grammar) / schema["wall"], 4),
    }
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
