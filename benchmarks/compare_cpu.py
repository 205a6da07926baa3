"""The demo model on CPU: our server over HTTP against ``transformers.generate``, one request at a time.

Both read the same file and run in the same call, in alternating rounds, on the same prompts (128 tokens in,
128 out, greedy, float32). While one is measured the other is idle. Prints a table and writes
benchmarks/results/cpu.json.

    make bench
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from local_server import Server
from machine import commit, cpu_seconds, processor
from sheaf_runtime.bench.datasets import random_jobs
from sheaf_runtime.bench.load import Job, Outcome, Target, run_load
from sheaf_runtime.bench.report import summarize
from sheaf_runtime.endpoint.session import open_session

HERE = Path(__file__).parent
STREAMS = (1, 4, 16)

# Runs in a process of its own, so that its threads and memory are not ours; one JSON line of token ids in,
# one JSON line of seconds out.
BASELINE = """
import json, pathlib, sys, time, torch
from transformers import AutoModelForCausalLM
folder = pathlib.Path(sys.argv[1])
file = next((f.name for f in folder.glob("*.gguf")), None)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    ids = torch.tensor([job["prompt"]])
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                             min_new_tokens=job["max_tokens"], max_new_tokens=job["max_tokens"])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "tokens": out.shape[1] - ids.shape[1]}), flush=True)
"""


class Baseline:
    """``transformers.generate`` behind a pipe."""

    def __init__(self, model: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BASELINE, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the transformers process died; run it by hand to see why")
        return line

    def tok_per_s(self, jobs: list[Job]) -> float:
        assert self.process.stdin is not None
        seconds = tokens = 0.0
        for job in jobs:
            print(json.dumps({"prompt": job.prompt, "max_tokens": job.max_tokens}), file=self.process.stdin)
            self.process.stdin.flush()
            answer = json.loads(self._line())
            seconds += answer["seconds"]
            tokens += answer["tokens"]
        return tokens / seconds

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def idle(server: Server, seconds: float) -> dict[str, float]:
    """Per cent of one core that each process uses with nothing to do."""
    before = {name: cpu_seconds(pid) for name, pid in server.processes().items()}
    time.sleep(seconds)
    after = {name: cpu_seconds(pid) for name, pid in server.processes().items()}
    return {name: round(100 * (after[name] - before[name]) / seconds, 3) for name in before}


def peak_rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError("no VmHWM")


def measure(server: Server, streams: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    jobs = random_jobs(2 * streams, args.prompt_tokens, args.output_tokens, 40000, seed)
    api = server.processes()["api"]
    before = cpu_seconds(api)
    summary = summarize(asyncio.run(closed_loop(server.url, jobs, streams)), percentiles=(90, 99))
    if summary["failed"]:
        raise SystemExit(f"{summary['failed']} requests failed: {next(iter(summary['errors']))}")
    cpu = 1e6 * (cpu_seconds(api) - before) / summary["total_output_tokens"]
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in summary.items()}
    return shown | {"api_cpu_us_per_token": round(cpu, 1)}


async def closed_loop(url: str, jobs: list[Job], streams: int) -> list[Outcome]:
    async with open_session(url) as session:
        return await run_load(session, Target(url, "m"), jobs, concurrency=streams)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "cpu.json")
    parser.add_argument("flags", nargs="*", help="further flags of `sheaf serve`, after --")
    args = parser.parse_args()

    print("starting both servers", flush=True)
    baseline, server = Baseline(args.model), Server(args.model, ["--dtype", "float32", *args.flags])
    try:
        rounds: dict[int, list[dict[str, Any]]] = {n: [] for n in STREAMS}
        alone: list[float] = []
        for round_ in range(args.rounds):
            jobs = random_jobs(2, args.prompt_tokens, args.output_tokens, 40000, 100 + round_)
            alone.append(baseline.tok_per_s(jobs))
            print(f"round {round_ + 1}: transformers {alone[-1]:.1f} tok/s", end="", flush=True)
            for streams in STREAMS:
                rounds[streams].append(measure(server, streams, 1000 * round_ + streams, args))
                rate = rounds[streams][-1]["output_throughput"]
                print(f" | ours x{streams} {rate:.1f}", end="", flush=True)
            print()
        print(f"idle for {args.idle_seconds:.0f} s", flush=True)
        result = {
            "machine": {"cpu": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
            "commit": commit(),
            "prompt_tokens": args.prompt_tokens,
            "output_tokens": args.output_tokens,
            "transformers_one_at_a_time_tok_per_s": round(statistics.median(alone), 2),
            "sheaf": {
                str(n): sorted(r, key=lambda s: s["output_throughput"])[len(r) // 2]
                for n, r in rounds.items()
            },
            "ratio_to_transformers": {
                str(n): round(
                    statistics.median(s["output_throughput"] / a for s, a in zip(r, alone, strict=True)), 2
                )
                for n, r in rounds.items()
            },
            "start_s": round(server.start_s, 2),
            "peak_rss_mib": {name: peak_rss_mib(pid) for name, pid in server.processes().items()},
            "idle_cpu_percent": idle(server, args.idle_seconds),
        }
    finally:
        baseline.close()
        server.close()
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "sheaf"}, indent=2))
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
