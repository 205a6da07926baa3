"""``sheaf bench serve``: from the command line to a table, a file and an exit status."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from sheaf_runtime.bench import datasets
from sheaf_runtime.bench.calibrate import measure
from sheaf_runtime.bench.load import Job, Outcome, Target, arrival_times, run_load, send
from sheaf_runtime.bench.options import parse, settings
from sheaf_runtime.bench.report import summarize, table
from sheaf_runtime.endpoint.address import api_key
from sheaf_runtime.endpoint.errors import EndpointError
from sheaf_runtime.endpoint.session import open_session, served_models
from sheaf_runtime.flags.parser import OptionError

OK, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str]) -> int:
    if argv[:1] in (["-h"], ["--help"]):  # there is only one benchmark
        argv = ["serve", *argv]
    if argv[:1] != ["serve"]:
        return _say("write sheaf bench serve; --help lists its flags", WRONG)
    # The event loop's own handling: a first Ctrl-C ends the load, and what is there is reported.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        given = parse(argv[1:])
        run = _Run(given)
        try:
            asyncio.run(run.go())
        except KeyboardInterrupt:
            run.interrupted = True
        return run.report()
    except (OptionError, datasets.DatasetError) as error:
        return _say(error, WRONG)
    except EndpointError as error:
        return _say(error, FAILED)


@dataclass
class _Run:
    given: argparse.Namespace
    outcomes: list[Outcome] = field(default_factory=list)
    model: str = ""
    interrupted: bool = False

    async def go(self) -> None:
        """Raises ``EndpointError`` and ``DatasetError`` before the load begins."""
        given = self.given
        jobs, arrivals = _jobs(given)
        async with open_session(
            given.base_url, api_key(given.api_key), timeout=given.request_timeout, headers=given.headers
        ) as session:
            self.model = given.model or (await served_models(session, given.base_url))[0]
            target = Target(
                given.base_url,
                self.model,
                chat=given.backend == "openai-chat",
                ignore_eos=given.ignore_eos,
                temperature=given.temperature,
                extra=given.extra_body,
            )
            if target.chat and isinstance(jobs[0].prompt, list):
                scale = await measure(session, target)
                jobs = datasets.random_texts(jobs, scale.words_per_token, scale.overhead)
            await _warm_up(session, target, jobs, given.num_warmups)
            with _Progress(len(jobs)) as progress:

                def ended(outcome: Outcome) -> None:
                    self.outcomes.append(outcome)
                    progress.show(self.outcomes)

                await run_load(
                    session, target, jobs, arrivals=arrivals, concurrency=given.max_concurrency, on_end=ended
                )

    def report(self) -> int:
        given = self.given
        if not self.outcomes:
            return _say("interrupted before any request had ended", INTERRUPTED)
        summary = summarize(self.outcomes, percentiles=given.metric_percentiles, goodput=given.goodput)
        print(table(summary, given.percentile_metrics, given.metric_percentiles), flush=True)
        if given.save_result or given.save_detailed:
            self._save(summary)
        if self.interrupted:
            return _say("interrupted: these are the requests that had ended", INTERRUPTED)
        return FAILED if summary["failed"] else OK

    def _save(self, summary: dict[str, Any]) -> None:
        given, now = self.given, time.strftime("%Y%m%d-%H%M%S")
        name = given.result_filename or _file_name(given, self.model, now)
        path = Path(given.result_dir) / name
        result = {
            "date": now,
            "model_id": self.model,
            "base_url": given.base_url,
            **settings(given),
            **summary,
        }
        if self.interrupted:
            result["interrupted"] = True
        if given.save_detailed:
            result["requests"] = [_detail(o) for o in self.outcomes]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise OptionError(
                f"{path} cannot be written: {error.strerror}; choose another --result-dir"
            ) from error
        print(f"written to {path}")


def _jobs(given: argparse.Namespace) -> tuple[list[Job], list[float]]:
    """Jobs, and when each is due in seconds."""
    count, vocab, path = given.num_prompts, given.random_vocab_size, given.dataset_path
    if given.dataset_name == "timed_trace":
        size, multiplier = given.timed_trace_chunk_hash_size, given.timed_trace_sec_multiplier
        jobs, arrivals = datasets.timed_trace(path, vocab, size, multiplier, given.seed)
        return jobs[:count], arrivals[:count]
    if given.dataset_name == "random":
        jobs = datasets.random_jobs(
            count,
            given.random_input_len,
            given.random_output_len,
            vocab,
            given.seed,
            prefix_tokens=given.random_prefix_len,
            range_ratio=given.random_range_ratio,
        )
    elif given.dataset_name == "custom":
        jobs = datasets.as_many(datasets.custom(path, given.output_len or 256), count, given.seed)
    else:
        jobs = datasets.as_many(datasets.sharegpt(path, given.output_len), count, given.seed)
    return jobs, arrival_times(count, given.request_rate, given.burstiness, given.seed)


async def _warm_up(session: aiohttp.ClientSession, target: Target, jobs: list[Job], count: int) -> None:
    """What cannot work is told by the first request, once and in the server's own words."""
    for job in (jobs * count)[:count]:
        outcome = await send(session, target, job, time.perf_counter())
        if not outcome.good:
            raise EndpointError(f"a first request failed: {outcome.error}")


class _Progress:
    """One line on a terminal that is written over."""

    def __init__(self, total: int) -> None:
        self._total, self._begin, self._shown = total, time.perf_counter(), 0.0
        self._on = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, outcomes: list[Outcome]) -> None:
        now = time.perf_counter()
        if not self._on or now - self._shown < 0.2:
            return
        self._shown = now
        failed = sum(not o.good for o in outcomes)
        text = f"{len(outcomes)}/{self._total} requests, {failed} failed, {now - self._begin:.0f} s"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _file_name(given: argparse.Namespace, model: str, now: str) -> str:
    concurrency = f"-concurrency{given.max_concurrency}" if given.max_concurrency else ""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rsplit("/", 1)[-1])
    return f"{given.backend}-{given.request_rate:g}qps{concurrency}-{safe}-{now}.json"


def _detail(outcome: Outcome) -> dict[str, Any]:
    times = [1000 * (t - outcome.start) for t in outcome.chunk_times]
    return {
        "start": outcome.start,
        "input_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
        "event_times_ms": times,
        "finish_reason": outcome.finish_reason,
        "error": outcome.error,
    }


def _say(message: object, status: int) -> int:
    print(f"sheaf bench serve: {message}", file=sys.stderr)
    return status
