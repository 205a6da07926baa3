"""What hostile bodies cost a neighbour: its gaps between tokens with and without them beside it, in turns.

    python benchmarks/hostile.py "$(PYTHONPATH=e2e python -m sheaf_e2e.demo_model)"

For each kind the neighbour streams one greedy answer alone, then one while that body is sent again and
again on two connections; /health is asked all along. Writes benchmarks/results/hostile.json: medians over the
rounds of the median, mean, 99th percentile and longest gap, and their ratios, of which the medians over the
kinds are in "summary". With ``--only`` the other kinds stay as they are in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Awaitable, Callable
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
SLOW_CLIENTS, SLOW_SECONDS = 50, 0.25  # for each sender, between two bytes of one client


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
    "a million fields": ("/v1/completions", b"{" + b",".join(b'"k%d":1' % i for i in range(10**6)) + b"}"),
    "300,000 messages": (
        "/v1/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": "a"}] * 300_000}).encode(),
    ),
    "five million lists": ("/v1/completions", b'{"prompt": [' + b"[]," * 5_000_000 + b"[]]}"),
    "10 MB to cut": completion(prompt="word " * 2_000_000, truncate_prompt_tokens=10),
    "1 MB to tokenize, which is done": ("/tokenize", json.dumps({"prompt": "word " * 200_000}).encode()),
    "NaN": ("/v1/completions", b'{"prompt": "a", "temperature": NaN}'),
    "wrong UTF-8": ("/v1/completions", b'{"prompt": "' + b"\xff" * 1_000_000 + b'"}'),
    "lone surrogates": ("/v1/completions", b'{"prompt": "' + b"\\ud800" * 200_000 + b'"}'),
    "a number of a million digits": ("/v1/completions", b'{"prompt": "a", "seed": ' + b"9" * 10**6 + b"}"),
    "a deep grammar": completion(structured_outputs={"grammar": f'root ::= {"(" * 20_000}"a"{")" * 20_000}'}),
}


Sender = Callable[[aiohttp.ClientSession, str, set[int]], Awaitable[None]]


def post(path: str, body: bytes) -> Sender:
    """A sender of one body, again as soon as it is answered."""

    async def send(session: aiohttp.ClientSession, url: str, statuses: set[int]) -> None:
        while True:
            data = body
            if NUMBER.encode() in body[:1000]:
                data = body.replace(NUMBER.encode(), str(next(numbers)).encode())
            async with session.post(url + path, data=data, headers=JSON) as answer:
                await answer.read()
                statuses.add(answer.status)

    return send


def head(size: int) -> bytes:
    start = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return start + b"Content-Length: %d\r\n\r\n" % size


@contextlib.asynccontextmanager
async def connection(url: str) -> Any:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def slow(_: aiohttp.ClientSession, url: str, statuses: set[int]) -> None:
    """Many clients that send a byte now and then."""

    async def one() -> None:
        async with connection(url) as (_, writer):
            for byte in head(100_000) + b" " * 100_000:
                writer.write(bytes([byte]))
                await asyncio.sleep(SLOW_SECONDS)

    await asyncio.gather(*(one() for _ in range(SLOW_CLIENTS)))


async def half_closed(_: aiohttp.ClientSession, url: str, statuses: set[int]) -> None:
    """Half of a body of 10 MB, and then no more; the answer is waited for."""
    while True:
        async with connection(url) as (reader, writer):
            writer.write(head(10_000_000) + b" " * 5_000_000)
            await writer.drain()
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                if answer := await reader.read():
                    statuses.add(int(answer.split()[1]))


async def gone(_: aiohttp.ClientSession, url: str, statuses: set[int]) -> None:
    """A body of 10 MB from a client that does not wait for the answer."""
    while True:
        async with connection(url) as (_, writer):
            writer.write(head(10_000_000) + b"[" * 10_000_000)
            await writer.drain()


SENDERS_OF: dict[str, Sender] = {name: post(path, body) for name, (path, body) in BODIES.items()}
SENDERS_OF |= {"slow clients": slow, "half-closed clients": half_closed, "clients that go": gone}


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
        "mean_ms": 1000 * statistics.mean(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "max_ms": 1000 * ordered[-1],
    }


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(r[key] for r in rounds), 2) for key in rounds[0]}


async def measure(url: str, send: Sender, rounds: int) -> dict[str, Any]:
    alone, beside, texts, statuses = [], [], set(), set[int]()
    waits: list[float] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        probing = asyncio.create_task(probe(session, url, waits))
        for _ in range(rounds):
            gaps, text = await neighbour(session, url)
            alone.append(summary(gaps))
            texts.add(text)
            senders = [asyncio.ensure_future(send(session, url, statuses)) for _ in range(SENDERS)]
            gaps, text = await neighbour(session, url)
            beside.append(summary(gaps))
            texts.add(text)
            for sender in senders:
                sender.cancel()
            ends = await asyncio.gather(*senders, return_exceptions=True)
        gaps, text = await neighbour(session, url)
        texts.add(text)
        probing.cancel()
    strange = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
    if len(texts) > 1 or any(status >= 500 for status in statuses) or strange:
        raise SystemExit(f"statuses {statuses}, {len(texts)} different answers of the neighbour, {strange}")
    one, two = middle(alone), middle(beside)
    ratios = {key.removesuffix("_ms"): round(two[key] / one[key], 2) for key in one}
    return {
        "alone": one,
        "beside": two,
        "ratio": ratios,
        "health_max_ms": round(1000 * max(waits), 1),
        "statuses": sorted(statuses),
    }


def over_kinds(results: dict[str, Any]) -> dict[str, Any]:
    ratios = [result["ratio"] for result in results.values()]
    return {
        "ratio": middle(ratios),
        "health_max_ms": max(result["health_max_ms"] for result in results.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="KIND", choices=SENDERS_OF)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "hostile.json")
    args = parser.parse_args()
    results = json.loads(args.output.read_text())["bodies"] if args.only and args.output.exists() else {}
    with Server(args.model, FLAGS) as server:
        for name in args.only or SENDERS_OF:
            results[name] = asyncio.run(measure(server.url, SENDERS_OF[name], args.rounds))
            print(f"{name}: {results[name]}", flush=True)
    machine = {"cpu": processor(), "commit": commit(), "tokens": TOKENS, "rounds": args.rounds}
    report = {"machine": machine, "summary": over_kinds(results), "bodies": results}
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
