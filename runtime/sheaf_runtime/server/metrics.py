"""Prometheus metrics: vLLM's names and meaning, and ours. Reads only what is already here: a scrape costs the
engine nothing."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sheaf_runtime.protocol.messages import EngineReady, EngineStats, FinishReason

LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
LENGTHS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# A report older than this, with requests in flight, means one long step: what came since is waiting.
STALE_SECONDS = 1.0


class Histogram:
    """Counts per bucket; the last bucket has no bound."""

    def __init__(self, help_: str, bounds: Sequence[float]) -> None:
        self.help = help_
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._names = [*map(str, map(float, bounds)), "+Inf"]

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, name: str, labels: dict[str, str]) -> Metric:
        total, buckets = 0, []
        for bound, count in zip(self._names, self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(name, self.help, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self._sum)
        return family


class Metrics(Collector):
    """``in_flight`` and ``seconds_since_progress`` are asked at scrape time; the rest is written here."""

    def __init__(self, model_name: str) -> None:
        self.labels = {"model_name": model_name, "engine": "0"}
        self.in_flight: Callable[[], int] = lambda: 0
        self.seconds_since_progress: Callable[[], float] = lambda: 0.0
        self.draining: Callable[[], bool] = lambda: False
        self.info: EngineReady | None = None
        self._stats: EngineStats | None = None
        self._finished: dict[FinishReason, int] = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self.time_to_first_token = Histogram("Seconds from arrival to the first token.", FIRST_TOKEN)
        self.inter_token_latency = Histogram("Seconds between tokens of one request.", PER_TOKEN)
        self._histograms = {
            "vllm:time_to_first_token_seconds": self.time_to_first_token,
            "vllm:inter_token_latency_seconds": self.inter_token_latency,
        }
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean seconds per token after the first.", PER_TOKEN
        )
        self._latency = self._histogram(
            "e2e_request_latency_seconds", "Seconds from arrival to the end.", LATENCY
        )
        self._queue = self._histogram("request_queue_time_seconds", "Seconds in WAITING.", LATENCY)
        self._inference = self._histogram("request_inference_time_seconds", "Seconds in RUNNING.", LATENCY)
        self._prefill = self._histogram("request_prefill_time_seconds", "Seconds in PREFILL.", LATENCY)
        self._decode = self._histogram("request_decode_time_seconds", "Seconds in DECODE.", LATENCY)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", LENGTHS)
        self._generated = self._histogram("request_generation_tokens", "Tokens generated.", LENGTHS)
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens of one step.", STEP_TOKENS)

    def _histogram(self, name: str, help_: str, bounds: Sequence[float]) -> Histogram:
        histogram = self._histograms[f"vllm:{name}"] = Histogram(help_, bounds)
        return histogram

    def on_stats(self, stats: EngineStats) -> None:
        self._stats = stats
        for tokens in stats.iteration_tokens:
            self._step_tokens.observe(tokens)

    def on_finished(
        self,
        reason: FinishReason,
        *,
        arrival: float,
        scheduled: float | None,
        first: float | None,
        last: float | None,
        prompt_tokens: int,
        generated_tokens: int,
    ) -> None:
        """One engine request has ended. Times are ``time.time()``; None where it never came so far."""
        self._finished[reason] += 1
        self._latency.observe(time.time() - arrival)
        self._prompt.observe(prompt_tokens)
        self._generated.observe(generated_tokens)
        if scheduled is None or first is None or last is None:
            return
        self._queue.observe(max(0.0, scheduled - arrival))
        self._prefill.observe(max(0.0, first - scheduled))
        self._decode.observe(max(0.0, last - first))
        self._inference.observe(max(0.0, last - scheduled))
        if generated_tokens > 1:
            self._per_token.observe(max(0.0, last - first) / (generated_tokens - 1))

    def collect(self) -> Iterator[Metric]:
        yield from self._load()
        if self.info is not None:
            yield from self._blocks(self.info)
        yield from self._counters()
        for name, histogram in self._histograms.items():
            yield histogram.family(name, self.labels)

    def _load(self) -> Iterator[Metric]:
        stats, in_flight, now = self._stats, self.in_flight(), time.time()
        # The last report may be older than the last abort: never more than what is in flight.
        running = min(stats.running, in_flight) if stats else 0
        waiting = min(stats.waiting, in_flight - running) if stats else 0
        if in_flight and (stats is None or now - stats.time > STALE_SECONDS):
            waiting = in_flight - running
        queued = stats.queued_tokens if stats and waiting else 0
        oldest = stats.oldest_arrival if stats and waiting else None
        wait = max(0.0, now - oldest) if oldest is not None else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests in the running batch.", running)
        yield self._gauge("vllm:num_requests_waiting", "Requests waiting to be scheduled.", waiting)
        yield self._gauge("sheaf:queued_tokens", "Prompt tokens of waiting requests.", queued)
        yield self._gauge("sheaf:oldest_wait_seconds", "Wait of the first in the queue.", wait)
        yield self._gauge(
            "sheaf:seconds_since_last_progress",
            "Age of the last step while requests are in flight, else 0.",
            self.seconds_since_progress(),
        )
        yield self._gauge("sheaf:draining", "1 from SIGTERM on.", float(self.draining()))

    def _blocks(self, info: EngineReady) -> Iterator[Metric]:
        stats = self._stats
        live, cached = (stats.blocks_live, stats.blocks_cached) if stats else (0, 0)
        free = stats.blocks_free if stats else info.num_blocks
        usage = live / max(1, live + cached + free)
        yield self._gauge("vllm:kv_cache_usage_perc", "Referenced KV blocks, 0 to 1.", usage)
        yield self._gauge("sheaf:blocks_live", "KV blocks that a request refers to.", live)
        yield self._gauge("sheaf:blocks_cached", "KV blocks that only the prefix cache holds.", cached)
        yield self._gauge("sheaf:blocks_free", "KV blocks with no content.", free)
        yield self._gauge("sheaf:weights_bytes", "Bytes of the model's weights.", info.weights_bytes)
        yield self._gauge("sheaf:max_num_seqs", "Most requests in the running batch.", info.max_num_seqs)
        config = {"block_size": str(info.block_size), "num_gpu_blocks": str(info.num_blocks)}
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache's configuration.", labels=[*self.labels, *config]
        )
        family.add_metric([*self.labels.values(), *config.values()], 1)
        yield family

    def _counters(self) -> Iterator[Metric]:
        stats = self._stats
        for name, help_, value in (
            ("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens if stats else 0),
            (
                "prompt_tokens_cached",
                "Those from the cache.",
                stats.prefix_cache_hits if stats else 0,
            ),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens if stats else 0),
            ("prefix_cache_queries", "Tokens looked up.", stats.prefix_cache_queries if stats else 0),
            ("prefix_cache_hits", "Tokens found.", stats.prefix_cache_hits if stats else 0),
            ("num_preemptions", "Requests preempted.", stats.preemptions if stats else 0),
        ):
            family = CounterMetricFamily(f"vllm:{name}", help_, labels=list(self.labels))
            family.add_metric(list(self.labels.values()), value)
            yield family
        success = CounterMetricFamily(
            "vllm:request_success", "Requests ended, by reason.", labels=[*self.labels, "finished_reason"]
        )
        for reason, count in self._finished.items():
            success.add_metric([*self.labels.values(), reason], count)
        yield success

    def _gauge(self, name: str, help_: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, help_, labels=list(self.labels))
        family.add_metric(list(self.labels.values()), value)
        return family
