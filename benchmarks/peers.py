"""Our server beside others, on the same model and the same prompts in the same run.

    python benchmarks/peers.py MODEL --dtype bfloat16 --output results/peers_bfloat16.json \\
        --peer 'vllm=vllm serve {model} --served-model-name m --dtype {dtype} --port {port}' \\
        --peer 'llama.cpp=llama-server -m model-bf16.gguf --port {port} -np 16 -c 32768 -t 2'

A peer is NAME=COMMAND of a server with an OpenAI API. Servers take turns, in the other order every other
round, and all but the one that is measured are stopped (SIGSTOP). Greedy, 128 tokens in and out, at 1, 4 and
16 streams, and the time to the first token of lone prompts of 1024. A measurement during which anybody else
used more than ``--foreign`` of a core is made again; what is disturbed to the end is kept, marked, and left
out of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from machine import commit, cpu_seconds, processor
from sheaf_runtime.bench.datasets import random_jobs
from sheaf_runtime.bench.load import Job, Target, run_load
from sheaf_runtime.bench.report import summarize

STREAMS = (1, 4, 16)
VOCAB = 40000
OURS = "sheaf"
OUR_COMMAND = (
    f"{sys.executable} -m sheaf_runtime serve {{model}} --served-model-name m --dtype {{dtype}} "
    "--port {port} --host 127.0.0.1 --max-model-len 2048 --max-num-seqs 16"
)


def busy_seconds() -> float:
    """CPU time of everybody on the machine."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def without_folders(command: str) -> str:
    """Where things lie on this machine is nobody's business."""
    return re.sub(r"[^\s=:]*/", "", command)


class Endpoint:
    """A server that runs already, wherever: what it or others use of the machine is not known."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url.rstrip("/")

    def pause(self) -> None:
        """It goes on."""

    def go_on(self) -> None:
        """It does anyway."""

    def cpu_seconds(self) -> float:
        return math.inf


class Peer(Endpoint):
    """A server of ours to start, stopped unless it is measured."""

    def __init__(self, name: str, command: str, log: Path, most_s: float) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        super().__init__(name, f"http://127.0.0.1:{port}")
        began = time.perf_counter()
        self._process = subprocess.Popen(
            shlex.split(command.replace("{port}", str(port))),
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        while not self._answers():
            if self._process.poll() is not None or time.perf_counter() - began > most_s:
                self.close()
                raise SystemExit(f"{name} is not ready after {most_s:.0f} s, or has ended; see {log}")
            time.sleep(0.2)
        self.start_s = round(time.perf_counter() - began, 1)
        self.pause()

    def _answers(self) -> bool:
        body = json.dumps({"model": "m", "prompt": [100], "max_tokens": 1}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            asked = urllib.request.Request(f"{self.url}/v1/completions", body, headers)
            urllib.request.urlopen(asked, timeout=30).close()
        except OSError:
            return False
        return True

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, self._processes()))

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self) -> list[int]:
        """It and its descendants: a server's engine may have a session of its own."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(stat.parent.name))
        found = [self._process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found


@contextlib.contextmanager
def open_peers(
    commands: dict[str, str], model: Path, dtype: str, logs: Path, most_s: float
) -> Iterator[list[Peer]]:
    """A server for each of the ``commands``, all ready, all stopped."""
    peers: list[Peer] = []
    try:
        for name, command in commands.items():
            command = command.replace("{model}", str(model)).replace("{dtype}", dtype)
            peers.append(Peer(name, command, logs / f"{name}.log", most_s))
            print(f"{name} is ready after {peers[-1].start_s} s", flush=True)
        yield peers
    finally:
        for peer in peers:
            peer.close()


def session() -> aiohttp.ClientSession:
    """A connection for each request: not every server keeps one open as it says."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


async def load(url: str, jobs: list[Job], streams: int) -> dict[str, Any]:
    async with session() as http:
        outcomes = await run_load(http, Target(url, "m"), jobs, concurrency=streams)
    summary = summarize(outcomes, percentiles=(99,))
    if summary["failed"]:
        raise SystemExit(f"{url}: {summary['failed']} requests failed: {next(iter(summary['errors']))}")
    return summary


def throughput(streams: int, peer: Endpoint, seed: int) -> dict[str, Any]:
    jobs = random_jobs(max(2, streams), 128, 128, VOCAB, seed)
    summary = asyncio.run(load(peer.url, jobs, streams))
    kept = ("output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms")
    return {key: round(summary[key], 2) for key in kept}


def first_token(peer: Endpoint, seed: int) -> dict[str, Any]:
    summary = asyncio.run(load(peer.url, random_jobs(3, 1024, 2, VOCAB, seed), 1))
    return {"median_ttft_ms": round(summary["median_ttft_ms"], 1)}


Case = Callable[[Endpoint, int], dict[str, Any]]


def undisturbed(peer: Endpoint, run: Case, seed: int, foreign: float) -> dict[str, Any]:
    """``run`` with other prompts each time, until nobody else takes part; three times at the most. Beside a
    server whose use of the machine is not known nobody can tell."""
    for attempt in range(3):
        own = os.times()
        before, busy, began = peer.cpu_seconds(), busy_seconds(), time.perf_counter()
        row = run(peer, seed + 100_000 * attempt)
        if before == math.inf:
            return {**row, "foreign_cores": None, "disturbed": False}
        now, wall = os.times(), time.perf_counter() - began
        mine = peer.cpu_seconds() - before + now.user - own.user + now.system - own.system
        row["foreign_cores"] = round(max(busy_seconds() - busy - mine, 0.0) / wall, 3)
        row["disturbed"] = row["foreign_cores"] > foreign
        if not row["disturbed"]:
            break
    return row


def measure(
    peers: Sequence[Endpoint], cases: dict[str, Case], rounds: int, foreign: float, warm_up: Sequence[Case]
) -> list[dict[str, Any]]:
    """A row for each case, peer and round. ``warm_up`` is not counted: compilation, pages, caches."""
    rows = []
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            peer.go_on()
            for count, case in enumerate(warm_up if number == 0 else ()):
                case(peer, 50_000_000 + count)
            for count, (what, case) in enumerate(cases.items()):
                row = undisturbed(peer, case, 1000 * number + count, foreign)
                rows.append({"round": number, "peer": peer.name, "what": what, **row})
                print(json.dumps(rows[-1]), flush=True)
            peer.pause()
    return rows


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By peer and by what was measured; None where every round was disturbed."""
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = "median_ttft_ms" if row["what"] == "first token" else "output_throughput"
        values = [
            r[key]
            for r in rows
            if (r["peer"], r["what"]) == (row["peer"], row["what"]) and not r["disturbed"]
        ]
        table.setdefault(row["peer"], {})[row["what"]] = statistics.median(values) if values else None
    return table


def ratios(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Above 1 is better for us, for times too."""
    ours = table[OURS]
    return {
        name: {
            what: round(theirs / ours[what] if what == "first token" else ours[what] / theirs, 2)
            for what, theirs in row.items()
            if theirs and ours[what]
        }
        for name, row in table.items()
        if name != OURS
    }


def options(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """What every comparison of servers can be told; ``rounds`` is a default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--foreign", type=float, default=0.15, help="cores that others may use")
    parser.add_argument("--start-seconds", type=float, default=400.0, help="the most that a server may take")
    parser.add_argument("--logs", type=Path, default=Path("/tmp"))
    parser.add_argument("--output", type=Path)
    return parser


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    commands = {OURS: OUR_COMMAND, **dict(one.split("=", 1) for one in args.peer)}
    cases: dict[str, Case] = {str(streams): partial(throughput, streams) for streams in STREAMS}
    cases["first token"] = first_token
    with open_peers(commands, args.model, args.dtype, args.logs, args.start_seconds) as peers:
        rows = measure(peers, cases, args.rounds, args.foreign, list(cases.values()))
    table = medians(rows)
    result = {
        "machine": {"cpu": processor(), "cores": os.cpu_count()},
        "commit": commit(),
        "dtype": args.dtype,
        "commands": {name: without_folders(command) for name, command in commands.items()},
        "start_s": {peer.name: peer.start_s for peer in peers},
        "median": table,
        "ours_against": ratios(table),
        "rows": rows,
    }
    print(json.dumps({key: result[key] for key in ("median", "ours_against")}, indent=2))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
