"""Everything that needs a CUDA card, in one command: ``make gpu-check``. No network needed.

Every kernel against its reference in all dtypes; the engine's tokens on small random models, Triton against
plain torch, at both pipeline depths; attention in GB/s beside the card's own copy bandwidth and in TFLOP/s;
sampling in microseconds; tokens a second at 1 and 64 streams for random weights in the shape of Qwen3-0.6B.

Each part runs in a process of its own, so that one that fails, hangs or breaks the CUDA context hides none of
the others. Writes one JSON with the card, the versions and the commit (to benchmarks/results, or ``--out``)
after every part, and exits 1 if any part failed. ``--only PART`` repeats single parts.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WHEELHOUSE = ROOT / ".wheelhouse"
PART_TIMEOUT_S = 300
PROMPT_TOKENS = OUTPUT_TOKENS = 128


def add_paths() -> None:
    """The checkout before installed packages; after them what the wheelhouse has and the machine lacks."""
    sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "runtime"), str(HERE)]
    if WHEELHOUSE.is_dir():
        unpacked = WHEELHOUSE / "unpacked"
        for wheel in WHEELHOUSE.glob("*.whl"):
            marker = unpacked / f".{wheel.stem}"
            if not marker.exists():
                zipfile.ZipFile(wheel).extractall(unpacked)
                marker.touch()
        sys.path.append(str(unpacked))


# --- parts: each returns what goes into the report, and raises if it failed


def environment(device: str = "cuda") -> dict[str, Any]:
    import torch
    import triton

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }
    if device == "cuda":
        p = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "memory_GiB": round(p.total_memory / 2**30, 1),
            "multiprocessors": p.multi_processor_count,
            "l2_MiB": round(p.L2_cache_size / 2**20, 1),
        }
    return facts


def kernel_cases() -> list[tuple[str, Callable[[Any, str], None]]]:
    """(name, check of a dtype on a device) of every kernel."""
    from sheaf_kernels import parity
    from sheaf_kernels.parity import AttentionCase, ExpertsCase, RopeCase

    cases: list[tuple[str, Callable[[Any, str], None]]] = []
    # Groups of 1, 3, 4, 7 and 16 query heads; every head and page size.
    for q, k in ((8, 8), (9, 3), (32, 8), (28, 4), (16, 1)):
        for dim, page in ((64, 16), (96, 32), (128, 64), (128, 16)):
            case = AttentionCase(
                (1, 1, 130, 1, 7, 0, 300), (1, 3000, 130, 257, 1000, 0, 700), q, k, dim, page, 132, 256
            )
            name = f"q{q} k{k} d{dim} page{page}"
            # Few tokens on long contexts: drafts and chunks whose keys are split, beside one that is not.
            few = AttentionCase((4, 16, 1, 128, 2), (3000, 5000, 700, 4000, 90), q, k, dim, page, 132, 256)
            for kind, c in (("mixed", case), ("split", few)):
                cases.append(
                    (
                        f"paged_attention {kind} {name}",
                        lambda t, d, c=c: parity.check_paged_attention(c, t, d),
                    )
                )
            rope = RopeCase(77, q, k, dim, page, 20)
            cases.append((f"rope_kv_write {name}", lambda t, d, c=rope: parity.check_rope_kv_write(c, t, d)))
    cases += [
        (
            f"rms_norm c{c}{' residual' if r else ''}",
            lambda t, d, c=c, r=r: parity.check_rms_norm(33, c, r, t, d),
        )
        for c in (64, 576, 4096, 8192)
        for r in (False, True)
    ]
    cases += [
        (f"head_norm h{h} d{n}", lambda t, d, h=h, n=n: parity.check_head_norm(33, h, n, t, d))
        for h, n in ((32, 128), (5, 64), (4, 256), (1, 4096))
    ]
    cases += [
        (f"swiglu c{c}", lambda t, d, c=c: parity.check_swiglu(33, c, t, d)) for c in (100, 1536, 14336)
    ]
    cases += [
        (f"{name} v{v}", lambda t, d, v=v, check=check: check(65, v, t, d))
        for name, check in (("adjust", parity.check_adjust), ("sample", parity.check_sample))
        for v in (300, 49152, 151936)
    ]
    # One token and a chunk, of few large experts and of many small ones.
    for tokens, count, top_k in ((1, 128, 8), (1, 8, 2), (300, 128, 8), (700, 8, 2)):
        for side in (
            ExpertsCase(tokens, top_k, count, 200, 136, scale="in", bias=True),
            ExpertsCase(tokens, top_k, count, 136, 200, True, False, True, "out"),
        ):
            name = f"experts {side.scale} t{tokens} e{count}"
            cases.append((name, lambda t, d, c=side: parity.check_experts(c, t, d)))
    return cases


def kernels(dtype: str, device: str = "cuda", only: str = "") -> dict[str, Any]:
    import torch

    failed: dict[str, str] = {}
    cases = [(name, check) for name, check in kernel_cases() if only in name]
    for name, check in cases:
        try:
            check(getattr(torch, dtype), device)
            if device == "cuda":
                torch.cuda.synchronize()
        except Exception as e:
            failed[name] = f"{type(e).__name__}: {e}"[:600]
    if failed:
        raise PartFailed({"checked": len(cases), "failed": failed})
    return {"checked": len(cases)}


def engine(
    device: str = "cuda",
    shapes: int = 3,
    prompt_lengths: tuple[int, ...] = (1, 5, 37, 90, 130, 250),
    tokens: int = 40,
) -> dict[str, Any]:
    """Greedy tokens in float32: Triton at both depths, and under preemption, against plain torch."""
    from gpu_model import SMALL, write_model
    from sheaf_runtime import LLM, SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    prompts = [[i + 1] * n for i, n in enumerate(prompt_lengths)]
    wrong: dict[str, Any] = {}
    compared = 0
    with tempfile.TemporaryDirectory() as folder:
        for shape in SMALL[:shapes]:
            path = write_model(Path(folder) / f"d{shape.head_dim}", shape)

            def run(backend: str, path: Path = path, **options: Any) -> list[list[int]]:
                settings: dict[str, Any] = {"num_gpu_blocks_override": 200, "max_num_batched_tokens": 64}
                settings |= {"max_num_seqs": 6, "device": device, "attention_backend": backend, **options}
                with LLM(str(path), **settings) as llm:
                    return [c.token_ids for c in llm.generate(prompts, greedy)]

            want = run("torch")
            variants: dict[str, dict[str, Any]] = {
                "depth 0": {"pipeline_depth": 0},
                "depth 1": {"pipeline_depth": 1},
                "pages of 64": {"block_size": 64},
                "preempted": {"num_gpu_blocks_override": 1 + 24},
            }
            for name, options in variants.items():
                compared += 1
                got = run("triton", **options)
                if got != want:
                    wrong[f"head size {shape.head_dim}, {name}"] = {
                        "requests": [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b]
                    }
    if wrong:
        raise PartFailed({"compared": compared, "wrong": wrong})
    return {"compared": compared, "requests": len(prompts), "tokens": tokens}


def attention() -> dict[str, Any]:
    from gpu_timing import attention_timing

    return attention_timing()


def sampling() -> dict[str, Any]:
    from gpu_timing import sampling_timing

    return {"sampling": sampling_timing()}


def throughput(device: str = "cuda", shape: Any = None, streams: tuple[int, ...] = (1, 64)) -> dict[str, Any]:
    """Output tokens a second of ``LLM.generate`` in process, prefill included."""
    from gpu_model import QWEN3_0_6B, write_model
    from sheaf_runtime import LLM, SamplingParams

    shape = shape or QWEN3_0_6B
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    result: dict[str, Any] = {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS, "streams": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder), shape)
        options: dict[str, Any] = {"num_gpu_blocks_override": 2000} if device == "cpu" else {}
        with LLM(
            str(path),
            device=device,
            max_num_seqs=max(streams),
            max_num_batched_tokens=2048,
            max_model_len=512,
            enable_prefix_caching=False,
            **options,
        ) as llm:
            for count in streams:
                prompts = [[(7 * i + j) % 200 for j in range(PROMPT_TOKENS)] for i in range(count)]
                llm.generate(prompts, params)
                seconds = []
                for _ in range(3):
                    start = time.perf_counter()
                    llm.generate(prompts, params)
                    seconds.append(time.perf_counter() - start)
                rates = sorted(count * OUTPUT_TOKENS / s for s in seconds)
                result["streams"][str(count)] = {
                    "tok_per_s": round(rates[1], 1),
                    "least": round(rates[0], 1),
                    "most": round(rates[2], 1),
                }
    return result


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "environment": environment,
    "kernels-float32": lambda: kernels("float32"),
    "kernels-float16": lambda: kernels("float16"),
    "kernels-bfloat16": lambda: kernels("bfloat16"),
    "engine": engine,
    "attention": attention,
    "sampling": sampling,
    "throughput": throughput,
}


# --- running them


class PartFailed(Exception):
    """A part ran and found something wrong; its details go into the report."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(str(details))
        self.details = details


def run_part(name: str) -> dict[str, Any]:
    """In this process."""
    add_paths()
    try:
        return {"ok": True, **PARTS[name]()}
    except PartFailed as e:
        return {"ok": False, **e.details}
    except BaseException:
        return {"ok": False, "error": traceback.format_exc()[-3000:]}


def spawn_part(name: str) -> dict[str, Any]:
    """In a process of its own; whatever becomes of it, a report comes back."""
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        command = [sys.executable, __file__, "--part", name, "--report", report.name]
        try:
            done = subprocess.run(command, timeout=PART_TIMEOUT_S, capture_output=True, text=True)
            text = report.read()
            result: dict[str, Any] = json.loads(text) if text else {"ok": False, "error": done.stderr[-3000:]}
            if not result["ok"]:
                result["exit_status"] = done.returncode
        except subprocess.TimeoutExpired:
            result = {"ok": False, "error": f"not finished within {PART_TIMEOUT_S} s"}
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def commit() -> dict[str, Any]:
    """Of this checkout; a copy without ``.git`` says so."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
        ).stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "modified": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.py", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the report")
    parser.add_argument("--only", action="append", choices=PARTS, help="run only this part (repeatable)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        result = run_part(args.part)
        args.report.write_text(json.dumps(result))
        return 0 if result["ok"] else 1

    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **commit()}
    facts = spawn_part("environment")
    if not facts["ok"]:
        print(f"no usable CUDA card, nothing was checked:\n{facts['error']}", file=sys.stderr)
        return 2
    report["environment"] = facts
    args.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", facts["gpu"].lower()).strip("-")
    path = args.out / f"gpu-{slug}.json"
    print(f"{facts['gpu']}, torch {facts['torch']}, Triton {facts['triton']}", flush=True)
    failed = 0
    for name in args.only or [p for p in PARTS if p != "environment"]:
        print(f"{name} ...", end=" ", flush=True)
        report[name] = spawn_part(name)
        failed += not report[name]["ok"]
        print("ok" if report[name]["ok"] else "FAILED", f"({report[name]['seconds']} s)", flush=True)
        if not report[name]["ok"]:
            print(json.dumps(report[name], indent=2)[:2000], flush=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"report: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
