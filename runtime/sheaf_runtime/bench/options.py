"""The command line of ``sheaf bench serve``: vLLM's names."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sheaf_runtime.bench.report import METRICS
from sheaf_runtime.endpoint import address
from sheaf_runtime.flags import values
from sheaf_runtime.flags.parser import OptionError, Parser

_USAGE = "tokens are counted by the server's usage, and prompts measured with it"
ABSENT: Mapping[str, str] = {
    "--tokenizer": _USAGE,
    "--tokenizer-mode": _USAGE,
    "--trust-remote-code": _USAGE,
    "--served-model-name": "write --model with the name that the server lists",
    "--host": "write --base-url http://HOST:PORT",
    "--port": "write --base-url http://HOST:PORT",
    "--endpoint": "write --backend openai or openai-chat",
    "--endpoint-type": "write --backend",
    "--input-len": "write --random-input-len",
    "--sharegpt-output-len": "write --output-len",
    "--custom-output-len": "write --output-len",
    "--disable-tqdm": "leave it out, progress is shown on a terminal only",
    "--use-beam-search": "no beam search",
    "--best-of": "one answer a request",
    "--logprobs": """write --extra-body '{"logprobs": 1}'""",
    "--top-p": """write --extra-body '{"top_p": ...}'""",
    "--top-k": """write --extra-body '{"top_k": ...}'""",
    "--append-result": "each run writes a file of its own",
    "--profile": "profiling is the server's",
    "--lora-modules": "write --model with the adapter's name",
    "--ramp-up-strategy": "run once for each --request-rate",
    "--ready-check-timeout-sec": "wait for /ready before it is called",
}


def parser() -> Parser:
    made = Parser(
        prog="sheaf bench serve",
        description="Put load on an OpenAI-compatible endpoint and say what its clients saw.",
        epilog="Exit status: 0, 1 if a request failed or no server answers, 2 for wrong flags. Ctrl-C reports"
        " what is there so far.",
        absent=ABSENT,
    )
    add = made.add_argument_group("server").add_argument
    address.add_flags(add)
    add(
        "--backend",
        choices=("openai", "openai-chat"),
        default="openai",
        help="completions with token ids, or chat completions",
    )
    add(
        "--header",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with every request; may be repeated",
    )
    add(
        "--request-timeout",
        type=values.some_seconds,
        default=21600.0,
        metavar="SECONDS",
        help="after which a request has failed",
    )
    add = made.add_argument_group("prompts").add_argument
    add(
        "--dataset-name",
        choices=("random", "sharegpt", "custom", "timed_trace"),
        default="random",
        metavar="NAME",
        help="random; sharegpt: first questions of conversations; custom: JSON lines of prompt and"
        " output_tokens; timed_trace: lengths, shared prefixes and arrivals",
    )
    add("--dataset-path", type=Path, metavar="FILE", help="of all but random; may be gzipped")
    add("--num-prompts", type=values.positive, default=1000, metavar="N", help="requests")
    add("--random-input-len", type=values.positive, default=1024, metavar="N", help="tokens of a prompt")
    add(
        "--random-output-len",
        type=values.positive,
        default=128,
        metavar="N",
        help="tokens of an answer, at most",
    )
    add(
        "--random-prefix-len",
        type=values.count,
        default=0,
        metavar="N",
        help="tokens before it that all share",
    )
    add(
        "--random-range-ratio",
        type=_ratio,
        default=0.0,
        metavar="R",
        help="lengths are drawn from 1-R to 1+R times those",
    )
    add(
        "--random-vocab-size",
        type=values.positive,
        default=4096,
        metavar="N",
        help="token ids are drawn below this; the model has to have them",
    )
    add(
        "--output-len",
        type=values.positive,
        metavar="N",
        help="of sharegpt (default: the length in the file) and custom (default: 256)",
    )
    add(
        "--timed-trace-chunk-hash-size",
        type=values.positive,
        default=16,
        metavar="N",
        help="tokens of the prompt for each of hash_ids; 512 for Mooncake's traces",
    )
    add(
        "--timed-trace-sec-multiplier",
        type=_positive_number,
        default=1.0,
        metavar="X",
        help="seconds in a unit of timestamp; 0.001 for milliseconds",
    )
    add(
        "--seed", type=values.seed, default=0, metavar="N", help="equal seeds draw equal prompts and arrivals"
    )
    add = made.add_argument_group("load").add_argument
    add(
        "--request-rate",
        type=_rate,
        default=math.inf,
        metavar="RATE",
        help="requests a second; inf: all at once",
    )
    add(
        "--burstiness",
        type=_positive_number,
        default=1.0,
        metavar="X",
        help="1: a Poisson process; less: in bursts; more: evenly",
    )
    add(
        "--max-concurrency",
        type=values.positive,
        metavar="N",
        help="most requests in flight (default: no bound)",
    )
    add(
        "--num-warmups",
        type=values.count,
        default=1,
        metavar="N",
        help="requests before, which are not counted",
    )
    add = made.add_argument_group("sampling").add_argument
    add(
        "--ignore-eos",
        action="store_true",
        help="answers of full length; not every server knows it",
    )
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add(
        "--extra-body",
        type=values.json_object,
        default={},
        metavar="JSON",
        help="further fields of every request",
    )
    add = made.add_argument_group("results").add_argument
    add(
        "--percentile-metrics",
        type=_metrics,
        default="ttft,tpot,itl,e2el",
        metavar="LIST",
        help="which of ttft, tpot, itl, e2el are shown",
    )
    add("--metric-percentiles", type=_percentiles, default="99", metavar="LIST", help="such as 50,90,99")
    add(
        "--goodput",
        nargs="+",
        default=[],
        metavar="METRIC:MS",
        help="count the requests within all of them: ttft:500 tpot:50 e2el:5000",
    )
    add("--save-result", action="store_true", help="write the numbers as JSON, with vLLM's keys")
    add("--save-detailed", action="store_true", help="write the times of each request too")
    add("--result-dir", type=Path, default=Path(), metavar="FOLDER", help="default: the current one")
    add("--result-filename", metavar="NAME", help="default: backend, rate, model and time")
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Raises ``OptionError``."""
    given = argparse.Namespace(**parser().read(argv))
    needs_file = given.dataset_name != "random"
    if needs_file and given.dataset_path is None:
        raise OptionError(f"--dataset-name {given.dataset_name} needs --dataset-path")
    if not needs_file and given.dataset_path is not None:
        raise OptionError("--dataset-path needs --dataset-name sharegpt, custom or timed_trace")
    if given.dataset_name == "timed_trace" and given.request_rate != math.inf:
        raise OptionError("a timed_trace brings its own arrivals; write --timed-trace-sec-multiplier")
    given.goodput = dict(_limit(text) for text in given.goodput)
    given.headers = dict(_header(text) for text in given.header)
    return given


def _limit(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    try:
        most = float(limit)
    except ValueError:
        most = -1
    if name not in ("ttft", "tpot", "e2el") or not most > 0:
        raise OptionError(f"--goodput {text}: write ttft, tpot or e2el and milliseconds, as ttft:500")
    return name, most


def _header(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or any(c in text for c in "\r\n"):
        raise OptionError(f"--header {text!r}: write NAME=VALUE")
    return name, value


def _metrics(text: str) -> list[str]:
    names = text.split(",")
    if not all(name in METRICS for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} must be some of {','.join(METRICS)}")
    return names


def _percentiles(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1.0]
    if not all(0 <= number <= 100 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers from 0 to 100 with commas between")
    return numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _rate(text: str) -> float:
    if not _number(text) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0, or inf")
    return _number(text)


def _positive_number(text: str) -> float:
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return _number(text)


def _ratio(text: str) -> float:
    if not 0 <= _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be from 0 to below 1")
    return _number(text)


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """What of the command line belongs into a result file; no key."""
    names = ("backend", "dataset_name", "num_prompts", "burstiness", "max_concurrency", "seed", "temperature")
    chosen = {name: getattr(given, name) for name in (*names, "ignore_eos", "extra_body", "goodput")}
    return chosen | {"request_rate": "inf" if given.request_rate == math.inf else given.request_rate}
