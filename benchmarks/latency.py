"""How long people wait: gaps and first tokens under mixed loads, of our server and of others.

    python benchmarks/latency.py MODEL --dtype float32 --output benchmarks/results/latency_float32.json \\
        --peer 'vllm=vllm serve {model} --served-model-name m --dtype {dtype} --port {port}' \\
        --endpoint llama.cpp=http://127.0.0.1:8080

Peers are started, stopped and take turns as in ``peers.py``; an endpoint is a server that runs already, which
serves MODEL as ``m`` and is measured undisturbed or not. One round of one server takes one to two minutes:

- ``mixed``: 16 streams, prompts of 32 to 1024 tokens and outputs of 16 to 192: tokens per second, time to the
  first token, and the longest gap between two tokens of each stream;
- ``long_prompt``: eight chats stream, a prompt of 1500 tokens comes, and 50 ms later one of 16: the chats'
  gap before and until both have their first token, and how long those took;
- ``long_prompts``: the same with three of 1500 at once;
- ``turn``: the first token of a prompt of which 1,500 tokens are cached and 12 are new, beside that of 100
  tokens of which none is;
- ``contexts``: tokens per second of 16 streams with contexts of 32 to 1500 tokens, and of 16 with the same
  sum in equal parts, prompts cached, while all 16 stream;
- ``length``: milliseconds per token of one stream by its context, with and without what reading so many bytes
  of keys and values takes at the machine's own rate.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from machine import commit, processor, report
from peers import (
    OUR_COMMAND,
    OURS,
    VOCAB,
    Case,
    Endpoint,
    measure,
    open_peers,
    options,
    session,
    without_folders,
)
from profile_cpu import bounds
from sheaf_runtime.bench.datasets import random_ids
from sheaf_runtime.bench.load import Job, Outcome, Target, run_load, send

STREAMS = 16
REQUESTS = 40
PROMPTS = (32, 64, 128, 256, 512, 1024)
OUTPUTS = (16, 32, 64, 128, 192)
CONTEXTS = (128, 512, 1024, 2048, 4096)
KV_VALUES = 2 * 30 * 3 * 64  # of a token: keys and values, layers, heads and their size in the demo model
WIDTH = {"float32": 4, "bfloat16": 2}


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def gaps(outcome: Outcome) -> list[tuple[float, float]]:
    """(when it began, seconds) between two tokens."""
    return [(a, b - a) for a, b in itertools.pairwise(outcome.chunk_times)]


def ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


class Client:
    """Prompts no two of which begin alike, and the requests of one measurement of ``url``."""

    def __init__(self, url: str, seed: int) -> None:
        self.random = Random(seed)
        self._target = Target(url, "m")

    def prompt(self, tokens: int) -> list[int]:
        return random_ids(tokens, VOCAB, self.random)

    async def run(self, jobs: Sequence[Job], streams: int) -> list[Outcome]:
        async with session() as http:
            return [good(o) for o in await run_load(http, self._target, jobs, concurrency=streams)]

    async def alone(self, job: Job) -> Outcome:
        return (await self.run([job], 1))[0]

    async def later(self, job: Job, seconds: float) -> Outcome:
        await asyncio.sleep(seconds)
        async with session() as http:
            return good(await send(http, self._target, job, 0.0))


def good(outcome: Outcome) -> Outcome:
    if not outcome.good:
        raise SystemExit(f"a request failed: {outcome.error}")
    return outcome


async def mixed(client: Client) -> dict[str, Any]:
    choose = client.random.choice
    jobs = [Job(client.prompt(choose(PROMPTS)), choose(OUTPUTS)) for _ in range(REQUESTS)]
    outcomes = await client.run(jobs, STREAMS)
    wall = max(o.end for o in outcomes) - min(o.start for o in outcomes)
    firsts = [o.ttft for o in outcomes]
    worst = [max(gap for _, gap in gaps(o)) for o in outcomes if len(o.chunk_times) > 1]
    return {
        "tokens_per_second": round(sum(job.max_tokens for job in jobs) / wall, 1),
        "ttft_p50_ms": ms(quantile(firsts, 0.5)),
        "ttft_p99_ms": ms(quantile(firsts, 0.99)),
        "worst_gap_p50_ms": ms(quantile(worst, 0.5)),
        "worst_gap_p99_ms": ms(quantile(worst, 0.99)),
    }


async def beside_chats(client: Client, *, long_prompts: int) -> dict[str, Any]:
    chats = client.run([Job(client.prompt(48), 224) for _ in range(8)], 8)
    streams, short, *long = await asyncio.gather(
        chats,
        client.later(Job(client.prompt(16), 8), 2.55),
        *(client.later(Job(client.prompt(1500), 8), 2.5) for _ in range(long_prompts)),
    )
    all_run = max(o.chunk_times[0] for o in streams)
    begin = min(o.start for o in long)
    firsts = max(o.chunk_times[0] for o in (short, *long))
    both = [pair for o in streams for pair in gaps(o)]
    before = [gap for at, gap in both if all_run < at and at + gap < begin]
    during = [gap for at, gap in both if begin < at + gap and at < firsts]
    if not before or not during:
        raise SystemExit("the chats do not overlap with the long prompt: this server is too fast or too slow")
    calm, beside = quantile(before, 0.5), quantile(during, 0.5)
    return {
        "gap_before_p50_ms": ms(calm),
        "gap_beside_p50_ms": ms(beside),
        "gap_beside_p95_ms": ms(quantile(during, 0.95)),
        "gap_beside_max_ms": ms(max(during)),
        "times_the_calm_gap": round(beside / calm, 2),
        "times_the_calm_gap_p95": round(quantile(during, 0.95) / calm, 2),
        "long_ttft_ms": ms(max(o.ttft for o in long)),
        "short_ttft_ms": ms(short.ttft),
    }


async def turn(client: Client) -> dict[str, Any]:
    past = client.prompt(1500)
    await client.alone(Job(past, 1))
    cached = [(await client.alone(Job(past + client.prompt(12), 2))).ttft for _ in range(7)]
    fresh = [(await client.alone(Job(client.prompt(100), 2))).ttft for _ in range(3)]
    return {
        "cached_ttft_ms": ms(statistics.median(cached)),
        "cached_ttft_max_ms": ms(max(cached)),
        "fresh_100_ttft_ms": ms(statistics.median(fresh)),
    }


async def contexts(client: Client) -> dict[str, Any]:
    unequal = [round(32 + (1500 - 32) * i / (STREAMS - 1)) for i in range(STREAMS)]
    equal = [sum(unequal) // STREAMS] * STREAMS
    prompts = {
        name: [client.prompt(n) for n in sizes] for name, sizes in (("unequal", unequal), ("equal", equal))
    }
    rates: dict[str, list[float]] = {name: [] for name in prompts}
    for known in prompts.values():
        await client.run([Job(prompt, 1) for prompt in known], STREAMS)
    for _ in range(2):
        for name, known in prompts.items():
            outcomes = await client.run([Job(prompt, 64) for prompt in known], STREAMS)
            begin = max(o.chunk_times[0] for o in outcomes)
            end = min(o.chunk_times[-1] for o in outcomes)
            count = sum(begin < at <= end for o in outcomes for at in o.chunk_times)
            rates[name].append(count / (end - begin))
    best = {name: round(max(found), 1) for name, found in rates.items()}
    return {**best, "ratio": round(best["unequal"] / best["equal"], 3)}


async def length(client: Client, *, bytes_per_token: int, read_gb_per_s: float) -> dict[str, Any]:
    found = {}
    for context in CONTEXTS:
        made = await client.alone(Job(client.prompt(context - 40), 80))  # midway at ``context``
        found[context] = statistics.median(gap for _, gap in gaps(made))
    kv = {context: context * bytes_per_token / read_gb_per_s / 1e9 for context in found}
    rest = {context: found[context] - kv[context] for context in found}
    return {
        "ms_per_token": {str(c): ms(seconds) for c, seconds in found.items()},
        "ms_without_kv_bytes": {str(c): ms(seconds) for c, seconds in rest.items()},
        "growth_without_kv_bytes": round(rest[CONTEXTS[-1]] / rest[CONTEXTS[0]], 3),
    }


Scenario = Callable[[Client], Any]


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--dtype", default="float32", choices=list(WIDTH))
    parser.add_argument("--endpoint", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--ours", action=argparse.BooleanOptionalAction, default=True)
    names = ("mixed", "long_prompt", "long_prompts", "turn", "contexts", "length")
    parser.add_argument("--only", nargs="+", choices=names)
    args = parser.parse_args()
    read = bounds(getattr(torch, args.dtype))["read_gb_per_s"]
    scenarios: dict[str, Scenario] = {
        "mixed": mixed,
        "long_prompt": partial(beside_chats, long_prompts=1),
        "long_prompts": partial(beside_chats, long_prompts=3),
        "turn": turn,
        "contexts": contexts,
        "length": partial(length, bytes_per_token=KV_VALUES * WIDTH[args.dtype], read_gb_per_s=read),
    }

    def run(scenario: Scenario, peer: Endpoint, seed: int) -> dict[str, Any]:
        made: dict[str, Any] = asyncio.run(scenario(Client(peer.url, seed)))
        return made

    cases: dict[str, Case] = {name: partial(run, scenarios[name]) for name in args.only or scenarios}
    ours = {OURS: OUR_COMMAND.replace("2048", "4608")} if args.ours else {}
    commands = ours | dict(one.split("=", 1) for one in args.peer)
    with open_peers(commands, args.model, args.dtype, args.logs, args.start_seconds) as peers:
        servers = [*peers, *(Endpoint(*one.split("=", 1)) for one in args.endpoint)]
        rows = measure(servers, cases, args.rounds, args.foreign, [partial(run, turn)])
    result = {
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "read_gb_per_s": read},
        "commit": commit(),
        "dtype": args.dtype,
        "commands": {name: without_folders(command) for name, command in commands.items()},
        "rows": rows,
    }
    report(result, args.output)


if __name__ == "__main__":
    main()
