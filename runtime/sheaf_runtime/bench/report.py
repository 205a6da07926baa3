"""From outcomes to numbers, by vLLM's definitions and names.

TTFT: sending to the first event with output. TPOT: from there to the last event, per further token. ITL:
between two events that follow each other (a token, or several where the server sends several in one). E2EL:
sending to the last event. Throughput is over the whole run. Only complete answers count.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sheaf_runtime.bench.load import Outcome

METRICS = {
    "ttft": "Time to first token",
    "tpot": "Time per output token (without the first)",
    "itl": "Inter-token latency (between events)",
    "e2el": "End-to-end latency",
}


def percentile(values: Sequence[float], p: float) -> float:
    """Linear interpolation between closest ranks; NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    rank = (len(ordered) - 1) * p / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def tpot(outcome: Outcome) -> float | None:
    """Seconds; None for an answer of fewer than two tokens."""
    if outcome.output_tokens < 2:
        return None
    return (outcome.e2el - outcome.ttft) / (outcome.output_tokens - 1)


def samples(good: Sequence[Outcome]) -> dict[str, list[float]]:
    """Milliseconds by metric."""
    gaps = [b - a for o in good for a, b in zip(o.chunk_times, o.chunk_times[1:], strict=False)]
    seconds = {
        "ttft": [o.ttft for o in good],
        "tpot": [t for o in good if (t := tpot(o)) is not None],
        "itl": gaps,
        "e2el": [o.e2el for o in good],
    }
    return {name: [1000 * value for value in values] for name, values in seconds.items()}


def summarize(
    outcomes: Sequence[Outcome],
    *,
    percentiles: Sequence[float] = (99,),
    goodput: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The keys of vLLM's result file; times end in ``_ms``, rates are per second. ``goodput`` maps metrics to
    the most milliseconds that a request may take to count. Numbers that nothing was measured for are None."""
    good = [o for o in outcomes if o.good]
    wall = max(o.end for o in outcomes) - min(o.start for o in outcomes) if outcomes else 0.0
    tokens_in, tokens_out = sum(o.prompt_tokens for o in good), sum(o.output_tokens for o in good)
    events = sum(len(o.chunk_times) for o in good)

    def per_second(amount: float) -> float:
        return amount / wall if wall else 0.0

    summary: dict[str, Any] = {
        "duration": wall,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": per_second(len(good)),
        "output_throughput": per_second(tokens_out),
        "total_token_throughput": per_second(tokens_in + tokens_out),
        "tokens_per_event": tokens_out / events if events else None,
        "usage_missing": sum(not o.has_usage for o in good),
        "latest_start_ms": max((1000 * (o.start - o.scheduled) for o in outcomes), default=0.0),
        "errors": dict(Counter(o.error or "" for o in outcomes if not o.good).most_common()),
    }
    if goodput:
        summary["request_goodput"] = per_second(sum(meets(o, goodput) for o in good))
    for name, values in samples(good).items():
        summary[f"mean_{name}_ms"] = statistics.fmean(values) if values else None
        summary[f"median_{name}_ms"] = statistics.median(values) if values else None
        summary[f"std_{name}_ms"] = statistics.pstdev(values) if values else None
        for p in percentiles:
            summary[f"p{p:g}_{name}_ms"] = percentile(values, p) if values else None
    return summary


def meets(outcome: Outcome, limits: Mapping[str, float]) -> bool:
    seconds = {"ttft": outcome.ttft, "tpot": tpot(outcome) or 0.0, "e2el": outcome.e2el}
    return all(1000 * seconds[name] <= limit for name, limit in limits.items())


def table(summary: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> str:
    """For people; a line a number."""
    rows = [
        ("Successful requests", summary["completed"]),
        ("Failed requests", summary["failed"]),
        ("Duration (s)", summary["duration"]),
        ("Input tokens", summary["total_input_tokens"]),
        ("Output tokens", summary["total_output_tokens"]),
        ("Requests per second", summary["request_throughput"]),
        ("Output tokens per second", summary["output_throughput"]),
        ("Tokens per second, in and out", summary["total_token_throughput"]),
    ]
    if "request_goodput" in summary:
        rows.append(("Requests per second within --goodput", summary["request_goodput"]))
    out = ["Serving benchmark", *(_row(*row) for row in rows)]
    for name in metrics:
        out.append(f"{METRICS[name]} (ms)")
        kinds = ("mean", "median", *(f"p{p:g}" for p in percentiles))
        out += [_row(f"  {kind}", summary[f"{kind}_{name}_ms"]) for kind in kinds]
    return "\n".join([*out, *remarks(summary)])


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What one has to know to read the numbers right."""
    said = []
    if summary["usage_missing"]:
        said.append(
            f"{summary['usage_missing']} answers came without usage: their tokens are counted as events,"
            " their prompts as 0"
        )
    elif (each := summary["tokens_per_event"]) is not None and not 0.95 < each < 1.05:
        said.append(
            f"the server sends {each:.2f} tokens in an event: ITL is between events, TPOT is per token"
        )
    shown = list(summary["errors"].items())
    said += [f"{count} failed: {error}" for error, count in shown[:5]]
    if len(shown) > 5:
        said.append(f"{sum(count for _, count in shown[5:])} failed in {len(shown) - 5} other ways")
    return [f"note: {line}" for line in said]


def _row(name: str, value: float | None) -> str:
    text = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<38}{text:>14}"
