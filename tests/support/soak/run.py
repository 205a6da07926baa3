"""The server under traffic: rounds with a pause behind each, in which nothing may be left of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import IO, Any

import aiohttp
from local_server import Server
from soak.catalogue import answer_alone, draw_requests
from soak.traffic import Traffic
from tiny_models import write_tiny_llama

VOCAB, MAX_LEN = 320, 448
SEATS, PAGES, PAGE = 12, 64, 16  # a third of what twelve of the longest would need
FLAGS = [
    *("--batch-invariant", "--attention-backend", "cpu", "--max-model-len", str(MAX_LEN)),
    *("--max-num-batched-tokens", "96", "--max-num-partial-prefills", "2", "--no-access-log"),
]
CROWDED = [
    *("--num-gpu-blocks-override", str(PAGES + 1), "--block-size", str(PAGE)),
    *("--max-num-seqs", str(SEATS), "--max-waiting-requests", "20"),
]
ALONE = ["--max-num-seqs", "1", "--no-enable-prefix-caching", "--num-gpu-blocks-override", "64"]
WARM_UP = 0.25  # of the rounds: caches fill, and the heap finds its size
SLACK_MIB = 16.0  # that a process may grow by after them
PATIENCE = 60.0  # seconds in which a server without clients is idle


def soak(
    *, seed: int, minutes: float, requests: int, clients: int, catalogue: int, tokens: int, log: IO[bytes]
) -> dict[str, Any]:
    """Rounds of ``requests`` until ``minutes`` have passed, two at least. ``failures`` are in the result."""
    longest = MAX_LEN - tokens
    with TemporaryDirectory() as folder:
        model = write_tiny_llama(
            Path(folder) / "model", head_dim=16, num_hidden_layers=2, max_position_embeddings=MAX_LEN
        )
        drawn = draw_requests(Random(seed), catalogue, vocab=VOCAB, longest=longest)
        with serving(model, ALONE, log) as server:
            known = asyncio.run(answer_alone(server.url, drawn, tokens))
        with serving(model, CROWDED, log) as server:
            traffic = Traffic(server.url, known, tokens, MAX_LEN)
            pauses = asyncio.run(_rounds(server, traffic, seed, minutes, requests, clients))
            totals = asyncio.run(_metrics(server.url))
    failures = [*traffic.failures, *(p for pause in pauses for p in pause.pop("problems"))]
    failures += memory_problems(pauses)
    counters = {
        "preemptions": totals["vllm:num_preemptions_total"],
        "prefix_cache_hits": totals["vllm:prefix_cache_hits_total"],
        "generated_tokens": totals["vllm:generation_tokens_total"],
    }
    failures += [f"no {name.replace('_', ' ')}: nothing was tried" for name, n in counters.items() if not n]
    return {
        "seed": seed,
        "minutes": minutes,
        "rounds": len(pauses),
        "requests": len(pauses) * requests,
        "answers_compared_bitwise": traffic.done.pop("compared", 0),
        "counters": counters,
        "ends": dict(sorted(traffic.done.items())),
        "pauses": pauses,
        "failures": failures,
    }


@contextlib.contextmanager
def serving(model: Path, flags: list[str], log: IO[bytes]) -> Iterator[Server]:
    """A server that must end well: RuntimeError if its exit status is not 0."""
    with Server(model, [*FLAGS, *flags], log) as server:
        yield server
    if server.process.returncode:
        raise RuntimeError(f"the server ended with status {server.process.returncode}; its log says why")


async def _rounds(
    server: Server, traffic: Traffic, seed: int, minutes: float, requests: int, clients: int
) -> list[dict[str, Any]]:
    pauses: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * minutes
    while len(pauses) < 2 or time.monotonic() < end:
        number = seed + len(pauses)
        print(f"round {number}: {len(traffic.failures)} failures so far", flush=True)
        await traffic.round(number, requests, clients)
        pauses.append(await _pause(server, number))
    return pauses


async def _pause(server: Server, number: int) -> dict[str, Any]:
    """What is left when nobody is there: memory and descriptors of both processes, pages, requests."""
    deadline = time.monotonic() + PATIENCE
    while True:
        values = await _metrics(server.url)
        stuck = values["vllm:num_requests_running"] + values["vllm:num_requests_waiting"]
        live = values["sheaf:blocks_live"]
        if not stuck + live or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.02)
    pages = live + values["sheaf:blocks_cached"] + values["sheaf:blocks_free"]
    problems = []
    if stuck:
        problems.append(f"round {number}: {stuck:.0f} requests are stuck")
    if live or pages != PAGES:
        problems.append(f"round {number}: pages leaked: {live:.0f} live, {pages:.0f} of {PAGES} in all")
    pause: dict[str, Any] = {"round": number, "problems": problems, "leaked_pages": live, "stuck": stuck}
    for name, pid in server.processes().items():
        pause[f"{name}_rss_mib"] = round(rss_mib(pid), 1)
        pause[f"{name}_descriptors"] = open_descriptors(pid)
    return pause


async def _metrics(url: str) -> dict[str, float]:
    """Values of the series that have no labels but the model's and the engine's."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0]] = float(value)
    return found


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def open_descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def memory_problems(pauses: list[dict[str, Any]]) -> list[str]:
    """Processes that are larger at the end than any pause of the warm-up allows, descriptors left open."""
    warm, last = pauses[: max(1, round(len(pauses) * WARM_UP))], pauses[-1]
    problems = []
    for name in ("api", "core"):
        before = max(pause[f"{name}_rss_mib"] for pause in warm)
        if last[f"{name}_rss_mib"] > before + SLACK_MIB:
            problems.append(
                f"{name}: {last[f'{name}_rss_mib']} MiB at the end, {before} MiB after warming up"
            )
        before = max(pause[f"{name}_descriptors"] for pause in warm)
        if last[f"{name}_descriptors"] > before + 2:
            problems.append(f"{name}: {last[f'{name}_descriptors']} open descriptors, {before} before")
    return problems
