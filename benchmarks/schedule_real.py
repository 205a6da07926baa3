"""The same load as ``schedule_sim.py``, on the real engine and the real clock: does a target hold?

    python benchmarks/schedule_real.py MODEL [--output benchmarks/results/schedule_real.json]

Chats beside long prompts, whose context doubles midway. The engine runs in this process, without HTTP.
For each half: the 95th percentile of the gaps between two tokens of a chat, and tokens computed per second.
By the target, then by fixed budgets without one.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from random import Random
from typing import Any

from machine import commit, processor, report

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the engine sets it, before torch is imported

from schedule_sim import NO_TARGET_MS, percentile_ms
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.protocol.messages import AddRequest
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.local import LocalExecutor

CHATS = 4
CLIENT = b"load"


class Load:
    """``CHATS`` chats and one prompt at a time, as fast as the engine takes them."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._random = Random(0)
        self._number = 0

    def half(self, seconds: float, *, chat: int, prompt: int) -> dict[str, float]:
        core, gaps, last = self._core, [], dict[str, float]()
        kinds = {self._add(chat, 80): "chat" for _ in range(CHATS)} | {self._add(prompt, 1): "long"}
        core.take_stats()
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            outputs = core.step()
            now = time.perf_counter()
            for output in outputs:
                name = output.request.request_id
                if name in last and kinds[name] == "chat":
                    gaps.append(now - last[name])
                last[name] = now
                if output.finish_reason is not None:
                    kind = kinds.pop(name)
                    kinds[self._add(chat, 80) if kind == "chat" else self._add(prompt, 1)] = kind
        stats = core.take_stats()
        core.abort(CLIENT, kinds)
        while core.busy:
            core.step()
        gaps.sort()
        tokens = sum(stats.iteration_tokens)
        return {
            "inter_token_p50_ms": percentile_ms(gaps, 50),
            "inter_token_p95_ms": percentile_ms(gaps, 95),
            "tokens_per_second": round(tokens / (now - begin), 1),
        }

    def _add(self, prompt: int, output: int) -> str:
        self._number += 1
        message = AddRequest(
            request_id=str(self._number),
            prompt_token_ids=[self._random.randrange(1000, 40000) for _ in range(prompt)],
            sampling=SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True),
            arrival_time=time.time(),
        )
        self._core.add(CLIENT, message)
        return message.request_id


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="per half")
    parser.add_argument("--target-ms", type=float, default=150.0)
    parser.add_argument("--budgets", type=int, nargs="*", default=[32, 64])
    args = parser.parse_args()

    def config(budget: int, target_ms: float) -> EngineConfig:
        return EngineConfig(
            model=args.model,
            dtype="float32",
            device="cpu",
            attention_backend="cpu",
            max_num_seqs=CHATS + 2,
            max_num_batched_tokens=budget,
            target_inter_token_ms=target_ms,
            enable_prefix_caching=False,
        )

    def run(budget: int, target_ms: float) -> list[dict[str, float]]:
        executor = LocalExecutor(config(budget, target_ms))
        executor.warm_up()
        load = Load(EngineCore(executor, config(budget, target_ms)))
        load.half(3.0, chat=100, prompt=400)  # to learn from
        halves = [
            load.half(args.seconds, chat=300, prompt=700),
            load.half(args.seconds, chat=600, prompt=1400),
        ]
        executor.close()
        return halves

    try:
        result: dict[str, Any] = {
            "machine": processor(),
            "commit": commit(),
            "target_ms": args.target_ms,
            "by_target": run(512, args.target_ms),
            "fixed": {str(budget): run(budget, NO_TARGET_MS) for budget in args.budgets},
        }
    except ValueError as error:
        parser.error(str(error))
    report(result, args.output)


if __name__ == "__main__":
    main()
