"""What the pods of one model say."""

from __future__ import annotations

from dashboards.grafana import RANGE, Json, Panel, Query, dashboard, variable

MODEL = 'namespace="$namespace", model_name="$model"'
PODS = f'{MODEL}, pod=~"$pod"'


def each(name: str) -> Query:
    return f"{name}{{{PODS}}}", "{{pod}}"


def rate(name: str, by: str = "pod") -> Query:
    return f"sum by ({by}) (rate({name}{{{PODS}}}[{RANGE}]))", f"{{{{{by}}}}}"


def total(name: str) -> str:
    return f"sum(rate({name}{{{PODS}}}[{RANGE}]))"


def quantiles(name: str, *levels: float) -> list[Query]:
    buckets = f"sum by (le) (rate(vllm:{name}_seconds_bucket{{{PODS}}}[{RANGE}]))"
    return [(f"histogram_quantile({level}, {buckets})", f"p{round(level * 100)}") for level in levels]


HIT_SHARE = f"{total('vllm:prefix_cache_hits_total')} / {total('vllm:prefix_cache_queries_total')}"
PAGES = [(f"sum(sheaf:blocks_{state}{{{PODS}}})", state) for state in ("live", "cached", "free")]
ENDED = rate("vllm:request_success_total", "finished_reason")
ROWS = {
    "What a client sees": [
        Panel("Time to first token", "s", *quantiles("time_to_first_token", 0.5, 0.95, 0.99)),
        Panel("Between two tokens", "s", *quantiles("inter_token_latency", 0.5, 0.95, 0.99)),
        Panel("Whole requests", "s", *quantiles("e2e_request_latency", 0.5, 0.95)),
        Panel("Requests ended", "reqps", ENDED, stacked=True),
    ],
    "Load": [
        Panel("Requests that run", "none", each("vllm:num_requests_running")),
        Panel("Requests that wait", "none", each("vllm:num_requests_waiting")),
        Panel("Wait of the first in the queue", "s", each("sheaf:oldest_wait_seconds")),
        Panel("Prompt tokens that wait", "none", each("sheaf:queued_tokens")),
        Panel("In the queue", "s", *quantiles("request_queue_time", 0.5, 0.95)),
        Panel("Prefill", "s", *quantiles("request_prefill_time", 0.5, 0.95)),
        Panel("Decode", "s", *quantiles("request_decode_time", 0.5, 0.95)),
        Panel(
            "Tokens per second",
            "none",
            (total("vllm:generation_tokens_total"), "generated"),
            (total("vllm:prompt_tokens_total"), "read"),
        ),
    ],
    "KV cache": [
        Panel("Use", "percentunit", each("vllm:kv_cache_usage_perc")),
        Panel("Pages", "none", *PAGES, stacked=True),
        Panel("Prompt tokens found in the prefix cache", "percentunit", (HIT_SHARE, "share")),
        Panel("Preemptions", "ops", rate("vllm:num_preemptions_total")),
    ],
    "Health": [
        Panel("Age of the last step", "s", each("sheaf:seconds_since_last_progress")),
        Panel("Draining", "none", each("sheaf:draining")),
    ],
}
SERIES = "vllm:num_requests_running"
VARIABLES = [
    variable("namespace", "Namespace", f"label_values({SERIES}, namespace)", many=False),
    variable("model", "Model", f'label_values({SERIES}{{namespace="$namespace"}}, model_name)', many=False),
    variable("pod", "Pod", f"label_values({SERIES}{{{MODEL}}}, pod)"),
]


def runtime() -> Json:
    return dashboard("sheaf-runtime", "Sheaf / Runtime", VARIABLES, ROWS)
