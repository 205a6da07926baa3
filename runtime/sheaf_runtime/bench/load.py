"""The load: requests leave when they are due, stream, and are never retried.

With arrival times it is an *open* loop: requests leave whether or not the server keeps up (what users do; the
only loop that shows a queue growing). With a bound on concurrency and all due at once it is a *closed* one:
each client sends its next request when its last one ends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from sheaf_runtime.endpoint.errors import error_message, one_line, refused, unreachable
from sheaf_runtime.endpoint.events import DONE, lines, parse_line, pieces

CUT_SHORT = "the stream ended without a finish reason and [DONE]"


@dataclass(frozen=True)
class Job:
    """One request: a prompt (text or token ids) and how many tokens to ask for."""

    prompt: str | list[int]
    max_tokens: int


@dataclass(frozen=True)
class Target:
    """Where jobs go and what each asks for beside its prompt. ``extra`` goes into every body as it is."""

    url: str
    model: str
    chat: bool = False
    ignore_eos: bool = True
    temperature: float | None = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def route(self) -> str:
        return f"{self.url}/v1/{'chat/completions' if self.chat else 'completions'}"

    def body(self, job: Job) -> dict[str, Any]:
        """Only OpenAI's own fields, unless a flag asks for others: strict proxies refuse the rest."""
        body: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            body |= {"messages": [{"role": "user", "content": job.prompt}]}
            body |= {"max_completion_tokens": job.max_tokens}
        else:
            body |= {"prompt": job.prompt, "max_tokens": job.max_tokens}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | self.extra


@dataclass
class Outcome:
    """What one client saw. Times are ``time.perf_counter()`` seconds.

    ``chunk_times`` has one entry per event that brought text, thoughts or a tool call. ``complete`` is True
    only after a finish reason and ``[DONE]``. Without ``has_usage`` the server did not count its tokens, and
    ``output_tokens`` is the number of events."""

    scheduled: float
    start: float = 0.0
    end: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    has_usage: bool = False
    finish_reason: str | None = None
    complete: bool = False
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.complete and self.error is None

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first event with output; to the end for an answer without any."""
        return (self.chunk_times[0] if self.chunk_times else self.end) - self.start

    @property
    def e2el(self) -> float:
        """Seconds from sending to the last event with output; to the end for an answer without any."""
        return (self.chunk_times[-1] if self.chunk_times else self.end) - self.start


async def send(session: aiohttp.ClientSession, target: Target, job: Job, due: float) -> Outcome:
    """Send one request and read it to its end. Failures are recorded, never raised."""
    out = Outcome(scheduled=due, start=time.perf_counter())
    try:
        async with session.post(target.route, json=target.body(job)) as response:
            if response.status != 200:
                out.error = str(refused(response.status, await response.read()))
                return out
            async for line in lines(response.content):
                take_line(out, line)
        finish(out)
    except (aiohttp.ClientError, OSError) as error:
        out.error = str(unreachable(error, target.url))
    except ValueError as error:
        out.error = f"not an answer of the API: {one_line(str(error))}"
    finally:
        out.end = time.perf_counter()
    return out


def take_line(out: Outcome, line: bytes) -> None:
    """Note what one line of a stream of server-sent events says, of a completion or of a chat."""
    event = parse_line(line)
    if event is None:
        return
    if isinstance(event, str):
        out.complete = event == DONE and out.finish_reason is not None
        return
    if event.get("error"):
        out.error = error_message(event["error"]) or "an error without a message"
    if usage := event.get("usage"):  # it may come with the last text, beside it, or in every event
        out.has_usage = True
        out.prompt_tokens = usage.get("prompt_tokens") or 0
        out.output_tokens = usage.get("completion_tokens") or 0
    for choice in event.get("choices") or ():
        if any(pieces(choice)) or (choice.get("delta") or {}).get("tool_calls"):
            out.chunk_times.append(time.perf_counter())
        if choice.get("finish_reason"):
            out.finish_reason = choice["finish_reason"]


def finish(out: Outcome) -> None:
    """To be called at a stream's end."""
    if not out.complete and out.error is None:
        out.error = CUT_SHORT
    if not out.has_usage:
        out.output_tokens = len(out.chunk_times)


async def run_load(
    session: aiohttp.ClientSession,
    target: Target,
    jobs: Sequence[Job],
    *,
    arrivals: Sequence[float] | None = None,
    concurrency: int | None = None,
    on_end: Callable[[Outcome], object] = lambda _: None,
) -> list[Outcome]:
    """Job i is due ``arrivals[i]`` seconds after the start (default: all at once) and leaves then, or as soon
    as fewer than ``concurrency`` are in flight; in order. ``on_end`` hears of each outcome at its end."""
    begin = time.perf_counter()
    seats = asyncio.Semaphore(concurrency or len(jobs) or 1)

    async def one(job: Job, offset: float) -> Outcome:
        await asyncio.sleep(max(0.0, begin + offset - time.perf_counter()))
        async with seats:
            outcome = await send(session, target, job, begin + offset)
        on_end(outcome)
        return outcome

    due = arrivals if arrivals is not None else [0.0] * len(jobs)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job, offset)) for job, offset in zip(jobs, due, strict=True)]
    return [task.result() for task in tasks]


def arrival_times(count: int, rate: float, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """``count`` offsets in seconds at ``rate`` per second on average (infinite: all 0). Gaps are gamma
    distributed with shape ``burstiness``: 1 is a Poisson process, less comes in bursts, more is even."""
    if rate == float("inf"):
        return [0.0] * count
    rng, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        times.append(now)
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return times
