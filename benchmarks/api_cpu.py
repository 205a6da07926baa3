"""CPU time of the API process per streamed token, with an engine core that costs nothing.

``python benchmarks/api_cpu.py --output benchmarks/results/api_cpu.json``

Starts ``sheaf serve`` on a tokenizer (by default a small byte-level one) with the fake core of the tests,
which gives every running request a token per step, and holds a number of streams open. Reads the CPU time
of the API process from /proc before and after. Also: the CPU of an idle server, and the time of one scrape.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from machine import cpu_seconds, processor
from sheaf_runtime.bench.load import Job, Target, run_load
from sheaf_runtime.endpoint.session import open_session, served_models

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from model_folders import byte_level, write_folder
from serving import Served, serving

PROMPT = "The quick brown fox jumps over the lazy dog, and 世界 sees it. "


async def stream_all(url: str, chat: bool, streams: int, tokens: int) -> float:
    """Runs the streams to their ends; seconds that took."""
    async with open_session(url) as session:
        target = Target(url, (await served_models(session, url))[0], chat=chat)
        began = time.perf_counter()
        outcomes = await run_load(session, target, [Job(PROMPT, tokens)] * streams)
        took = time.perf_counter() - began
    assert all(o.good and o.output_tokens == tokens for o in outcomes), outcomes[0].error
    return took


def measure(server: Served, chat: bool, streams: int, tokens: int) -> dict[str, Any]:
    asyncio.run(stream_all(server.url, chat, streams, 50))  # warm
    before = cpu_seconds(server.process.pid)
    seconds = asyncio.run(stream_all(server.url, chat, streams, tokens))
    spent = cpu_seconds(server.process.pid) - before
    return {
        "route": "chat" if chat else "completions",
        "streams": streams,
        "tokens": streams * tokens,
        "tokens_per_second": round(streams * tokens / seconds),
        "api_cpu_us_per_token": round(spent / (streams * tokens) * 1e6, 1),
    }


def idle_percent(server: Served, seconds: float) -> float:
    before = cpu_seconds(server.process.pid)
    time.sleep(seconds)
    return round((cpu_seconds(server.process.pid) - before) / seconds * 100, 3)


def scrape_us(server: Served, times: int = 300) -> float:
    """CPU of one scrape in the API process, HTTP included."""
    with httpx.Client() as client:
        client.get(f"{server.url}/metrics")
        before = cpu_seconds(server.process.pid)
        for _ in range(times):
            client.get(f"{server.url}/metrics")
        return round((cpu_seconds(server.process.pid) - before) / times * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder whose tokenizer to use")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=400, help="per stream")
    parser.add_argument("--step-ms", type=float, default=10.0, help="the engine's time per step")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.model or write_folder(Path(temporary) / "model", byte_level())
        fake = {"step_seconds": given.step_ms / 1000, "vocab_size": 2**20}
        with serving(folder, Path(temporary), fake=fake) as server:
            server.wait_ready()
            runs = [
                measure(server, chat, streams, given.tokens)
                for chat in (False, True)
                for streams in given.streams
            ]
            result = {
                "benchmark": "api_cpu",
                "machine": {
                    "cpus": os.cpu_count(),
                    "processor": processor(),
                    "python": platform.python_version(),
                },
                "model": given.model.name if given.model else "byte-level tokenizer of the tests",
                "step_ms": given.step_ms,
                "load_average": os.getloadavg()[0],
                "runs": runs,
                "scrape_cpu_us": scrape_us(server),
                "idle_cpu_percent": idle_percent(server, given.idle_seconds),
            }
    text = json.dumps(result, indent=2)
    print(text)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
