"""Load on an OpenAI-compatible completions endpoint, and what the clients saw of it.

Two loops. *Closed*: N clients, each sends its next request when the last one ends (throughput at a fixed
concurrency). *Open*: requests leave at given times whether or not the server keeps up (what users do; the
only loop that shows a queue growing). Every request streams, so TTFT and inter-token latency are the
client's own observations. Used by the programs in this folder and by the demo.

    python benchmarks/loadgen.py --url http://127.0.0.1:8000 --concurrency 16 --requests 64
    python benchmarks/loadgen.py --url http://127.0.0.1:8000 --rate 2.5 --requests 100
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson


@dataclass(frozen=True)
class Job:
    """One request: a prompt (text or token ids) and how many tokens to ask for."""

    prompt: str | list[int]
    max_tokens: int
    temperature: float = 0.0
    ignore_eos: bool = True


@dataclass
class Outcome:
    """What one client saw. Times are ``time.perf_counter()`` seconds; ``chunk_times`` has one entry per
    event that carried text. ``complete`` is True only after a finish reason and ``[DONE]``."""

    scheduled: float
    start: float = 0.0
    end: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    complete: bool = False
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Seconds from the time it was *due* (open loop) or sent to its first text."""
        return self.chunk_times[0] - self.scheduled

    @property
    def e2e(self) -> float:
        return self.end - self.scheduled


async def send(session: aiohttp.ClientSession, url: str, model: str, job: Job, due: float) -> Outcome:
    """Send one streaming request and read it to its end. Failures are recorded, never raised or retried."""
    out = Outcome(scheduled=due, start=time.perf_counter())
    body = {
        "model": model,
        "prompt": job.prompt,
        "max_tokens": job.max_tokens,
        "temperature": job.temperature,
        "ignore_eos": job.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                out.error = f"HTTP {response.status}: {(await response.text())[:200]}"
                return out
            async for line in response.content:
                take_line(out, line)
            if not out.complete and out.error is None:
                out.error = "the stream ended without a finish reason and [DONE]"
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        out.error = f"{type(error).__name__}: {error}"
    finally:
        out.end = time.perf_counter()
    return out


def take_line(out: Outcome, line: bytes) -> None:
    """Note what one line of a stream of server-sent events says, of a completion or of a chat."""
    if not line.startswith(b"data:"):
        return
    data = line[5:].strip()
    if data == b"[DONE]":
        out.complete = out.finish_reason is not None
        return
    event: dict[str, Any] = orjson.loads(data)
    if "error" in event:
        out.error = str(event["error"].get("message", event["error"]))
    if event.get("usage"):
        out.prompt_tokens = event["usage"]["prompt_tokens"]
        out.output_tokens = event["usage"]["completion_tokens"]
    for choice in event.get("choices", ()):
        if choice.get("text") or choice.get("delta", {}).get("content"):
            out.chunk_times.append(time.perf_counter())
        if choice.get("finish_reason"):
            out.finish_reason = choice["finish_reason"]


def client_session() -> aiohttp.ClientSession:
    """Pooled keep-alive connections without a cap, no retries, no total time limit."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
    )


async def closed_loop(url: str, model: str, jobs: Sequence[Job], concurrency: int) -> list[Outcome]:
    """``concurrency`` clients work through ``jobs`` in order."""
    queue = iter(jobs)  # shared: each client takes the next job when its last one has ended
    async with client_session() as session:

        async def client() -> list[Outcome]:
            return [await send(session, url, model, job, time.perf_counter()) for job in queue]

        per_client = await asyncio.gather(*(client() for _ in range(concurrency)))
    return [outcome for outcomes in per_client for outcome in outcomes]


async def open_loop(url: str, model: str, jobs: Sequence[Job], arrivals: Sequence[float]) -> list[Outcome]:
    """Job i leaves ``arrivals[i]`` seconds after the start, whatever became of the others."""
    start = time.perf_counter()
    async with client_session() as session:

        async def one(job: Job, offset: float) -> Outcome:
            await asyncio.sleep(max(0.0, start + offset - time.perf_counter()))
            return await send(session, url, model, job, start + offset)

        return await asyncio.gather(*(one(j, a) for j, a in zip(jobs, arrivals, strict=True)))


def poisson_arrivals(rate: float, count: int, seed: int = 0) -> list[float]:
    """``count`` arrival offsets in seconds of a Poisson process of ``rate`` per second."""
    rng = random.Random(seed)
    now, times = 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


def random_jobs(count: int, prompt_tokens: int, output_tokens: int, vocab: int, seed: int) -> list[Job]:
    """Prompts of random token ids: each differs from its first token on, so no prefix cache can help."""
    rng = random.Random(seed)
    low = min(300, vocab // 2)  # special tokens and single bytes sit at the start of most vocabularies
    return [
        Job([rng.randrange(low, vocab) for _ in range(prompt_tokens)], output_tokens) for _ in range(count)
    ]


def percentile(values: Sequence[float], p: float) -> float:
    """Linear interpolation between closest ranks; NaN for no values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * p / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, output tok/s over the whole run, and p50/p90/p99 of TTFT, inter-token latency and end-to-end
    time in seconds."""
    good = [o for o in outcomes if o.error is None and o.complete]
    bad = [o for o in outcomes if o.error is not None or not o.complete]
    wall = max(o.end for o in outcomes) - min(o.start for o in outcomes) if outcomes else 0.0
    tokens = sum(o.output_tokens for o in good)

    def three(values: list[float]) -> dict[str, float]:
        return {f"p{p}": round(percentile(values, p), 4) for p in (50, 90, 99)}

    return {
        "requests": len(outcomes),
        "failures": len(bad),
        "first_error": bad[0].error if bad else None,
        "wall_s": round(wall, 3),
        "prompt_tokens": sum(o.prompt_tokens for o in good),
        "output_tokens": tokens,
        "output_tok_per_s": round(tokens / wall, 2) if wall else 0.0,
        "ttft_s": three([o.ttft for o in good if o.chunk_times]),
        "inter_token_s": three(
            [b - a for o in good for a, b in zip(o.chunk_times, o.chunk_times[1:], strict=False)]
        ),
        "e2e_s": three([o.e2e for o in good]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True, help="for example http://127.0.0.1:8000 (without /v1)")
    parser.add_argument("--model", help="default: the first of /v1/models")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=int, default=16, help="closed loop with this many clients")
    loop.add_argument("--rate", type=float, help="open loop: Poisson arrivals per second")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=4096, help="prompt ids are drawn below this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    async def run() -> list[Outcome]:
        model = args.model
        if model is None:
            async with client_session() as session, session.get(f"{args.url}/v1/models") as response:
                model = (await response.json())["data"][0]["id"]
        jobs = random_jobs(args.requests, args.prompt_tokens, args.output_tokens, args.vocab, args.seed)
        if args.rate:
            return await open_loop(args.url, model, jobs, poisson_arrivals(args.rate, len(jobs), args.seed))
        return await closed_loop(args.url, model, jobs, args.concurrency)

    summary = summarize(asyncio.run(run()))
    print(json.dumps(summary, indent=2))
    return 1 if summary["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
