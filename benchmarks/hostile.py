"""What hostile bodies cost a neighbour: its gaps between tokens with and without them beside it, in turns.

    python benchmarks/hostile.py "$(PYTHONPATH=e2e python -m sheaf_e2e.demo_model)"

For each kind of body the neighbour streams one greedy answer alone, then one while that body is sent again
and again on two connections, and /health is asked all along. Writes benchmarks/results/hostile.json: medians
over the rounds, and ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
from local_server import Server
from machine import commit, processor

HERE = Path(__file__).parent
FLAGS = ["--max-model-len", "2048", "--kv-cache-memory", "256MiB"]
TOKENS = 48
numbers = itertools.count(10**6)
SENDERS = 2
JSON = {"Content-Type": "application/json"}
NUMBER = "1234567"  # in a body: another one each time


def completion(**fields: Any) -> tuple[str, bytes]:
    return "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1, **fields}).encode()


BODIES: dict[str, tuple[str, bytes]] = {
    "deep JSON": ("/v1/completions", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a string of 10 MB": completion(model="x" * 10_000_000),
    "a prompt of 10 MB": completion(prompt="word " * 2_000_000),
    "a prompt of 10 MB without blanks": completion(prompt="x" * 10_000_000),
    "a chat of 10 MB": (
        "/v1/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": "word " * 2_000_000}]}).encode(),
    ),
    "10 MB to tokenize": ("/tokenize", json.dumps({"prompt": "word " * 2_000_000}).encode()),
    "a million token ids": completion(prompt=[5] * 1_000_000),
    "100,000 stop strings": completion(stop=[f"s{i}" for i in range(100_000)]),
    "a logit_bias of 100,000": completion(logit_bias={str(i): 1 for i in range(100_000)}),
    "an explosive regex": completion(structured_outputs={"regex": "((a{1,500}){1,500}){1,500}"}),
    "schemas, each another": completion(
        structured_outputs={"json": {"type": "object", "properties": {f"p{NUMBER}": {"type": "integer"}}}}
    ),
    "a logit_bias of 49,152 that is taken": completion(
        logit_bias={str(i): -1 for i in range(49_152)}, max_tokens=64
    ),
    "a deep grammar": completion(structured_outputs={"grammar": f'root ::= {"(" * 20_000}"a"{")" * 20_000}'}),
}


async def neighbour(session: aiohttp.ClientSession, url: str) -> tuple[list[float], str]:
    """The gaps between events in seconds, the wait for the first included, and the text."""
    body = {"prompt": "The pages of a sheaf", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    gaps, text, last = [], "", time.perf_counter()
    async with session.post(f"{url}/v1/completions", json={**body, "stream": True}) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
                text += json.loads(line[6:])["choices"][0]["text"]
    return gaps, text


async def send(session: aiohttp.ClientSession, url: str, path: str, body: bytes, statuses: set[int]) -> None:
    while True:
        data = body.replace(NUMBER.encode(), str(next(numbers)).encode())
        async with session.post(url + path, data=data, headers=JSON) as answer:
            await answer.read()
            statuses.add(answer.status)


async def probe(session: aiohttp.ClientSession, url: str, waits: list[float]) -> None:
    """What a kubelet does, more often."""
    while True:
        began = time.perf_counter()
        async with session.get(f"{url}/health") as answer:
            await answer.read()
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)


def summary(gaps: list[float]) -> dict[str, float]:
    ordered = sorted(gaps)
    return {
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "max_ms": 1000 * ordered[-1],
    }


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(r[key] for r in rounds), 2) for key in rounds[0]}


async def measure(url: str, path: str, body: bytes, rounds: int) -> dict[str, Any]:
    alone, beside, texts, statuses = [], [], set(), set[int]()
    waits: list[float] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        for _ in range(rounds):
            gaps, text = await neighbour(session, url)
            alone.append(summary(gaps))
            texts.add(text)
            senders = [asyncio.create_task(send(session, url, path, body, statuses)) for _ in range(SENDERS)]
            senders.append(asyncio.create_task(probe(session, url, waits)))
            gaps, text = await neighbour(session, url)
            beside.append(summary(gaps))
            texts.add(text)
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
    if len(texts) > 1 or any(status >= 500 for status in statuses):
        raise SystemExit(f"{path}: statuses {statuses}, {len(texts)} different answers of the neighbour")
    one, two = middle(alone), middle(beside)
    ratios = {key.removesuffix("_ms"): round(two[key] / one[key], 2) for key in one}
    health = round(1000 * max(waits), 1)
    return {
        "alone": one,
        "beside": two,
        "ratio": ratios,
        "health_max_ms": health,
        "statuses": sorted(statuses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "hostile.json")
    args = parser.parse_args()
    results = {}
    with Server(args.model, FLAGS) as server:
        for name, (path, body) in BODIES.items():
            results[name] = asyncio.run(measure(server.url, path, body, args.rounds))
            print(f"{name}: {results[name]}", flush=True)
    machine = {"cpu": processor(), "commit": commit(), "tokens": TOKENS, "rounds": args.rounds}
    args.output.write_text(json.dumps({"machine": machine, "bodies": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
