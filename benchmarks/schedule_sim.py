"""The scheduler on a virtual clock: prompts beside chats, by a target and by fixed budgets.

    python benchmarks/schedule_sim.py [--output benchmarks/results/schedule_sim.json]

The real ``Scheduler``, fed with step costs that ``make profile-cpu`` measured (``results/profile_cpu.json``,
float32) and a disturbance of some percent; only the device is an addition. Eight chats are open at any time,
and as one long prompt has been answered, the next one comes. Midway the context of both doubles. A fixed
budget is ``--max-num-batched-tokens`` without any target: what every engine has its users guess. For each
half: the 99th percentile of the gaps between two tokens of a chat, and tokens computed per second, prompts
included.

Without any flag, two more loads: ``beside``, in which prompts of 1500 tokens come at once beside eight chats
and a short one right behind them, and ``mixed``, sixteen streams of mixed lengths as in ``latency.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from machine import commit, report
from sheaf_runtime.engine.cost_model import pairs
from sheaf_runtime.engine.request import Request
from sheaf_runtime.engine.scheduler import Scheduler
from sheaf_runtime.protocol.messages import AddRequest
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.plan import KVGroup, SampledTokens, StepPlan, StepResult

PROFILE = Path(__file__).parent / "results" / "profile_cpu.json"
PROFILED_CONTEXT = 192  # tokens that a stream of the profile had on average
BUDGETS = (16, 24, 32, 48, 64, 96, 128, 256, 512)
CHATS = 8
TARGET_MS = 100.0
NO_TARGET_MS = 1e9  # nothing bounds the prompts but the budget
HOST_SECONDS = 0.001  # of planning and committing a step
BESIDE = (1, 2, 3, 6)  # long prompts at once
STREAMS = 16
REQUESTS = 40
PROMPTS = (32, 64, 128, 256, 512, 1024)
OUTPUTS = (16, 32, 64, 128, 192)
SEEDS = 60  # of mixed loads, which differ much


@dataclass(frozen=True)
class Costs:
    """Seconds, from a profile. ``rows``: a step of so many decodes without attention."""

    rows: tuple[tuple[int, float], ...]
    prompt_token: float
    position: float  # that a decode attends to
    pair: float  # of a prompt's token and what it attends to

    @classmethod
    def measured(cls, path: Path = PROFILE) -> Costs:
        profile = json.loads(path.read_text())["float32"]

        def ms(name: str) -> tuple[float, float]:
            """(attention, the rest)"""
            attention = profile[name]["parts_ms"]["paged_attention"]
            return attention / 1000, (profile[name]["step_ms"] - attention) / 1000

        rows = tuple((n, ms(f"{n} streams")[1]) for n in (1, 4, 16))
        attention, rest = ms("prompt of 1024")  # in two steps
        return cls(
            rows=rows,
            prompt_token=(rest - 2 * rows[0][1]) / 1024,
            position=ms("16 streams")[0] / (16 * PROFILED_CONTEXT),
            pair=attention / pairs(0, 1024),
        )

    def step(self, plan: StepPlan) -> float:
        decodes = [s for s in plan.scheduled if s.num_tokens == 1]
        prompts = [s for s in plan.scheduled if s.num_tokens > 1]
        return (
            self._base(len(decodes))
            + self.position * sum(s.start + 1 for s in decodes)
            + self.prompt_token * sum(s.num_tokens for s in prompts)
            + self.pair * sum(pairs(s.start, s.num_tokens) for s in prompts)
        )

    def _base(self, count: int) -> float:
        count = max(count, 1)
        for (low, a), (high, b) in itertools.pairwise(self.rows):
            if count <= high:
                return a + (b - a) * (count - low) / (high - low)
        return self.rows[-1][1]


@dataclass
class Machine:
    """A scheduler and a device at ``pipeline_depth`` 1 on a virtual clock. ``gaps``: (when, seconds) between
    two tokens of those in ``watched``."""

    scheduler: Scheduler
    costs: Costs
    random: Random
    now: float = 0.0
    computed: int = 0
    watched: set[int] = field(default_factory=set)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    firsts: dict[int, float] = field(default_factory=dict)  # when a request got its first token
    _free: float = 0.0  # when the device is
    _launched: deque[tuple[StepPlan, float, float]] = field(default_factory=deque)  # with its end and seconds
    _last: dict[int, float] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def add(self, prompt: int, output: int, *, watched: bool = False, priority: int = 0) -> Request:
        req_id = next(self._ids)
        message = AddRequest(
            request_id=str(req_id),
            prompt_token_ids=[self.random.randrange(1 << 20) for _ in range(prompt)],
            sampling=SamplingParams(seed=0, max_tokens=output, ignore_eos=True),
            arrival_time=self.now,
            priority=priority,
        )
        request = Request.from_message(message, client=b"", req_id=req_id, seed=0, eos_token_ids=())
        self.scheduler.add(request)
        if watched:
            self.watched.add(req_id)
        return request

    def turn(self) -> list[Request]:
        """Plan and launch a step, take in the one before; who ended."""
        plan = self.scheduler.schedule(self.now)
        self.now += HOST_SECONDS
        if plan is not None:
            slow = self.random.gauss(1, 0.03) * (3 if self.random.random() < 0.001 else 1)
            seconds = self.costs.step(plan) * slow
            self._free = max(self._free, self.now) + seconds
            self._launched.append((plan, self._free, seconds))
            if len(self._launched) < 2:
                return []
        return self._take_in() if self._launched else []

    def _take_in(self) -> list[Request]:
        plan, end, seconds = self._launched.popleft()
        self.now = max(self.now, end)
        self.computed += sum(s.num_tokens for s in plan.scheduled)
        sampled = [
            SampledTokens(req_id=s.req_id, epoch=s.epoch, token_ids=[1]) for s in plan.scheduled if s.sample
        ]
        result = StepResult(step=plan.step, sampled=sampled, seconds=seconds)
        ended = []
        for output in self.scheduler.commit(result, self.now):
            req_id = output.request.req_id
            if output.first:
                self.firsts[req_id] = self.now
            elif req_id in self.watched:
                self.gaps.append((self.now, self.now - self._last[req_id]))
            self._last[req_id] = self.now
            if output.finish_reason is not None:
                ended.append(output.request)
        return ended


def machine(
    costs: Costs,
    *,
    seed: int = 0,
    seats: int = CHATS + 2,
    budget: int = 512,
    target_ms: float | None = None,
) -> Machine:
    scheduler = Scheduler(
        (KVGroup(kind="full", layers=(0,), page_bytes=1),),
        num_blocks=4096,
        block_size=16,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        target_inter_token=None if target_ms is None else target_ms / 1000,
        prefix_caching=False,
        pipeline_depth=1,
    )
    return Machine(scheduler, costs, Random(seed))


def percentile_ms(gaps: list[float], percent: int) -> float:
    """Of sorted seconds. Raises ValueError where no chat has had a second token."""
    if not gaps:
        raise ValueError("no chat had a second token in that time; give --seconds more")
    return round(gaps[len(gaps) * percent // 100] * 1000, 1)


def half(m: Machine, seconds: float, *, chat: int, prompt: int) -> dict[str, float]:
    """``CHATS`` chats of ``chat`` tokens of context and one prompt of ``prompt`` tokens at a time."""
    begin = m.now

    def open_chat() -> Request:
        return m.add(chat, m.random.randint(60, 180), watched=True)

    chats = {open_chat() for _ in range(CHATS)}
    long = m.add(prompt, 1)
    before = settled = 0
    while m.now < begin + seconds:
        for request in m.turn():
            if request is long:
                long = m.add(prompt, 1)
            elif request in chats:
                chats.remove(request)
                chats.add(open_chat())
        if not settled and m.now > begin + 0.1 * seconds:  # the start is no steady state
            before, settled = m.computed, m.now
    for request in m.scheduler.running + m.scheduler.waiting:
        m.scheduler.abort(request)
    gaps = sorted(gap for when, gap in m.gaps if when > settled)
    return {
        "inter_token_p50_ms": percentile_ms(gaps, 50),
        "inter_token_p99_ms": percentile_ms(gaps, 99),
        "tokens_per_second": round((m.computed - before) / (m.now - settled), 1),
    }


def run(costs: Costs, *, budget: int, target_ms: float | None, seconds: float) -> list[dict[str, float]]:
    """The two halves, of ``seconds`` each."""
    m = machine(costs, budget=budget, target_ms=target_ms)
    return [half(m, seconds, chat=600, prompt=1500), half(m, seconds, chat=1200, prompt=3000)]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def practised(costs: Costs, seed: int) -> Machine:
    """One that has seen prompts and decodes, and is idle."""
    m = machine(costs, seed=seed, seats=STREAMS)
    for prompt in (100, 300, 700, 40, 500, 1500):
        m.add(prompt, 20)
        for _ in range(8):
            m.turn()
    while m.scheduler.busy:
        m.turn()
    return m


def beside(costs: Costs, prompts: int, seed: int = 0) -> dict[str, float]:
    """``prompts`` of 1500 tokens at once beside ``CHATS`` chats, and one of 16 tokens 50 ms later: the chats'
    gaps as multiples of their calm one, and seconds to the first token."""
    m = practised(costs, seed)
    begin = m.now
    for _ in range(CHATS):
        m.add(48, 3000, watched=True)
    while m.now < begin + 3.0:
        m.turn()
    calm = statistics.median(gap for when, gap in m.gaps if when > begin + 1.5)
    begin = m.now
    m.gaps.clear()
    long = [m.add(1500, 8) for _ in range(prompts)]
    while m.now < begin + 0.05:
        m.turn()
    short = m.add(16, 8)
    while not all(r.req_id in m.firsts for r in (short, *long)):
        m.turn()
    gaps = [gap / calm for _, gap in m.gaps]
    return {
        "gap_p50": quantile(gaps, 0.5),
        "gap_p95": quantile(gaps, 0.95),
        "long_ttft_s": max(m.firsts[r.req_id] for r in long) - begin,
        "short_ttft_s": m.firsts[short.req_id] - short.arrival_time,
    }


def mixed(costs: Costs, seed: int = 0) -> dict[str, float]:
    """``STREAMS`` streams that send ``REQUESTS`` requests one after the other."""
    m = practised(costs, seed)
    begin = m.now
    jobs = [(m.random.choice(PROMPTS), m.random.choice(OUTPUTS)) for _ in range(REQUESTS)]
    requests = [m.add(*job, watched=True) for job in jobs[:STREAMS]]
    while m.scheduler.busy:
        for _ in m.turn():
            if len(requests) < REQUESTS:
                requests.append(m.add(*jobs[len(requests)], watched=True))
    firsts = [m.firsts[r.req_id] - r.arrival_time for r in requests]
    gaps = [gap for _, gap in m.gaps]
    return {
        "tokens_per_second": sum(output for _, output in jobs) / (m.now - begin),
        "ttft_p50_s": quantile(firsts, 0.5),
        "ttft_p90_s": quantile(firsts, 0.9),
        "ttft_p99_s": quantile(firsts, 0.99),
        "inter_token_p99_s": quantile(gaps, 0.99),
        "inter_token_max_s": max(gaps),
    }


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.mean(row[key] for row in rows), 3) for key in rows[0]}


def without_flags(costs: Costs) -> dict[str, Any]:
    """Means over seeds."""
    return {
        "beside": {str(n): means([beside(costs, n, seed) for seed in range(4)]) for n in BESIDE},
        "mixed": means([mixed(costs, seed) for seed in range(SEEDS)]),
    }


def compare(costs: Costs, *, seconds: float, target_ms: float = TARGET_MS) -> dict[str, Any]:
    """Ours by the target beside every fixed budget."""
    return {
        "target_ms": target_ms,
        "by_target": run(costs, budget=512, target_ms=target_ms, seconds=seconds),
        "without_flags": run(costs, budget=512, target_ms=None, seconds=seconds),
        "fixed": {
            str(budget): run(costs, budget=budget, target_ms=NO_TARGET_MS, seconds=seconds)
            for budget in BUDGETS
        },
    }


def holds(halves: list[dict[str, float]], target_ms: float) -> bool:
    return all(h["inter_token_p99_ms"] <= 1.2 * target_ms for h in halves)


def rivals(result: dict[str, Any]) -> list[str]:
    """The fixed budgets that hold the target in both halves at 90 % of our tokens per second in each."""
    return [
        budget
        for budget, halves in result["fixed"].items()
        if holds(halves, result["target_ms"])
        and all(
            h["tokens_per_second"] >= 0.9 * ours["tokens_per_second"]
            for h, ours in zip(halves, result["by_target"], strict=True)
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="of virtual time per half")
    args = parser.parse_args()
    try:
        costs = Costs.measured()
        result = {"commit": commit(), **compare(costs, seconds=args.seconds), **without_flags(costs)}
    except ValueError as error:
        parser.error(str(error))
    result["holds"] = holds(result["by_target"], TARGET_MS)
    result["fixed_budgets_that_hold_at_90_percent"] = rivals(result)
    report(result, args.output)


if __name__ == "__main__":
    main()
