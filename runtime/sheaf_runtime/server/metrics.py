"""The metrics: vLLM's names and meaning, and ours. Everything a scrape reads is already in this process, so
that it costs the engine nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from sheaf_runtime.protocol.messages import EngineReady, EngineStats, FinishReason
from sheaf_runtime.server.adapter_states import AdapterState
from sheaf_runtime.server.exposition import Histogram, Series, header, label_text

LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40),
    *(80, 160, 640, 2560),
)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
LENGTHS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
COPIES = (1, 2, 5, 10, 20)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error", "timeout")
# A report older than this, with requests in flight, means one long step: what came since is waiting.
STALE_SECONDS = 1.0


class Metrics:
    """``in_flight``, ``seconds_since_progress`` and ``draining`` are asked at scrape time. ``max_loras`` is
    None where there are no adapters, ``max_drafts`` 0 where there is no speculation."""

    def __init__(self, model_name: str, max_loras: int | None = None, max_drafts: int = 0) -> None:
        self._max_drafts = max_drafts
        self._max_loras = max_loras
        self._labels = {"model_name": model_name, "engine": "0"}
        self.in_flight: Callable[[], int] = lambda: 0
        self.seconds_since_progress: Callable[[], float] = lambda: 0.0
        self.draining: Callable[[], bool] = lambda: False
        self.adapters: Callable[[], Mapping[str, AdapterState]] = dict  # of --adapters-file
        self.info: EngineReady | None = None
        self._stats: EngineStats | None = None
        self._finished = dict.fromkeys(REASONS, 0)
        self._series: dict[str, Series] = {}
        self._histograms: list[Histogram] = []
        new = self._histogram
        self.time_to_first_token = new(
            "time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN
        )
        self.inter_token_latency = new("inter_token_latency_seconds", "Between two tokens.", PER_TOKEN)
        self._per_token = new(
            "request_time_per_output_token_seconds", "Mean per token after the first.", PER_TOKEN
        )
        self._latency = new("e2e_request_latency_seconds", "From arrival to the end.", LATENCY)
        self._queue = new("request_queue_time_seconds", "From arrival to the first step.", LATENCY)
        self._inference = new("request_inference_time_seconds", "From the first step to the end.", LATENCY)
        self._prefill = new("request_prefill_time_seconds", "From the first step to a token.", LATENCY)
        self._decode = new("request_decode_time_seconds", "From the first token to the last.", LATENCY)
        self._prompt = new("request_prompt_tokens", "Prompt tokens of a request.", LENGTHS)
        self._generated = new("request_generation_tokens", "Generated tokens of a request.", LENGTHS)
        self._longest = new(
            "request_max_num_generation_tokens", "Those of the longest answer to one prompt.", LENGTHS
        )
        self._asked_copies = new("request_params_n", "The parameter n of a request.", COPIES)
        self._asked_tokens = new(
            "request_params_max_tokens", "The most that a request may generate.", LENGTHS
        )
        self._step_tokens = new("iteration_tokens_total", "Tokens of one step.", STEP_TOKENS)

    def _histogram(self, name: str, help_: str, bounds: Sequence[float]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", help_, bounds, self._labels)
        self._histograms.append(histogram)
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
        max_tokens: int | None = None,
    ) -> None:
        """One engine request has ended. Times are ``time.time()``; None where it never came so far.
        ``max_tokens`` is None for what generates nothing."""
        self._finished[reason] += 1
        self._latency.observe(max(0.0, time.time() - arrival))
        self._prompt.observe(prompt_tokens)
        self._generated.observe(generated_tokens)
        if max_tokens is not None:
            self._asked_tokens.observe(max_tokens)
        if scheduled is None or first is None or last is None:
            return
        self._queue.observe(max(0.0, scheduled - arrival))
        self._prefill.observe(max(0.0, first - scheduled))
        if generated_tokens:
            self._decode.observe(max(0.0, last - first))
        self._inference.observe(max(0.0, last - scheduled))
        if generated_tokens > 1:
            self._per_token.observe(max(0.0, last - first) / (generated_tokens - 1))

    def on_copies_finished(self, *, n: int, longest: int) -> None:
        """All ``n`` answers to one prompt have ended; the ``longest`` has so many tokens."""
        self._longest.observe(longest)
        self._asked_copies.observe(n)

    def render(self) -> str:
        """One page of Prometheus' text format."""
        parts = [*self._load(), *self._counters()]
        if self._max_loras is not None:
            parts.append(self._adapters(self._max_loras))
        if self._max_drafts:
            parts += self._drafts()
        if states := self.adapters():
            parts.append(self._adapter_states(states))
        if self.info is not None:
            parts += self._blocks(self.info)
        parts += [histogram.lines() for histogram in self._histograms]
        return "".join(parts)

    def _load(self) -> Iterator[str]:
        stats, in_flight, now = self._stats, self.in_flight(), time.time()
        # The last report may be older than the last abort: never more than what is in flight.
        running = min(stats.running, in_flight) if stats else 0
        waiting = min(stats.waiting, in_flight - running) if stats else 0
        if in_flight and (stats is None or now - stats.time > STALE_SECONDS):
            waiting = in_flight - running
        queued = stats.queued_tokens if stats and waiting else 0
        oldest = stats.oldest_arrival if stats and waiting else None
        wait = max(0.0, now - oldest) if oldest is not None else 0.0
        progress = self.seconds_since_progress()
        yield self._gauge("vllm:num_requests_running", running, "Requests in the running batch.")
        yield self._gauge("vllm:num_requests_waiting", waiting, "Requests waiting to be scheduled.")
        yield self._gauge("sheaf:queued_tokens", queued, "Prompt tokens of waiting requests.")
        yield self._gauge("sheaf:oldest_wait_seconds", wait, "Wait of the first in the queue.")
        yield self._gauge(
            "sheaf:seconds_since_last_progress",
            progress,
            "Age of the last step; 0 when idle.",
        )
        yield self._gauge("sheaf:draining", int(self.draining()), "1 from SIGTERM on.")

    def _blocks(self, info: EngineReady) -> Iterator[str]:
        stats = self._stats
        live, cached = (stats.blocks_live, stats.blocks_cached) if stats else (0, 0)
        free = stats.blocks_free if stats else info.num_blocks
        usage = live / max(1, live + cached + free)
        yield self._gauge("vllm:kv_cache_usage_perc", usage, "Referenced KV blocks, 0 to 1.")
        yield self._gauge("sheaf:blocks_live", live, "KV blocks that a request refers to.")
        yield self._gauge("sheaf:blocks_cached", cached, "KV blocks that only the prefix cache holds.")
        yield self._gauge("sheaf:blocks_free", free, "KV blocks without content.")
        yield self._gauge("sheaf:weights_bytes", info.weights_bytes, "Bytes of the model's weights.")
        yield self._gauge("sheaf:max_num_seqs", info.max_num_seqs, "Most requests in the running batch.")
        sizes = {"block_size": str(info.block_size), "num_gpu_blocks": str(info.num_blocks)}
        name = "vllm:cache_config_info"
        yield f"{header('gauge', name, 'The KV cache.')}{name}{label_text({**self._labels, **sizes})} 1\n"

    def _adapters(self, most: int) -> str:
        """As vLLM has it: the news is in the labels, and the value is the time."""
        stats = self._stats if self.in_flight() else None
        labels = {
            "max_lora": str(most),
            "running_lora_adapters": ",".join(stats.running_adapters if stats else ()),
            "waiting_lora_adapters": ",".join(stats.waiting_adapters if stats else ()),
        }
        name = "vllm:lora_requests_info"
        head = header("gauge", name, "Adapters of requests that run and that wait; the value is the time.")
        return f"{head}{name}{label_text(labels)} {time.time()}\n"

    def _drafts(self) -> Iterator[str]:
        stats = self._stats
        accepted = list(stats.accepted_at) if stats else []
        for name, value, help_ in (
            ("num_drafts", stats.drafts if stats else 0, "Times that a request had drafts."),
            ("num_draft_tokens", stats.draft_tokens if stats else 0, "Drafts computed."),
            ("num_accepted_tokens", sum(accepted), "Drafts that came."),
        ):
            yield self._line("counter", f"vllm:spec_decode_{name}", value, help_)
        name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
        yield header("counter", name, "Drafts that came, by their place behind the last token.")
        accepted += [0] * (self._max_drafts - len(accepted))
        for place, count in enumerate(accepted):
            yield f"{name}{label_text({**self._labels, 'position': str(place)})} {count}\n"

    def _adapter_states(self, states: Mapping[str, AdapterState]) -> str:
        name = "sheaf:adapter_info"
        lines = [header("gauge", name, "Adapters of --adapters-file; failed ones say why.")]
        for adapter, known in states.items():
            labels = {"adapter": adapter, "path": known.path, "state": known.state, "message": known.message}
            lines.append(f"{name}{label_text({**self._labels, **labels})} 1\n")
        return "".join(lines)

    def _counters(self) -> Iterator[str]:
        stats = self._stats
        for name, value, help_ in (
            ("prompt_tokens", stats.prompt_tokens if stats else 0, "Prompt tokens, cached ones included."),
            ("prompt_tokens_cached", stats.prefix_cache_hits if stats else 0, "Those from the cache."),
            ("generation_tokens", stats.generation_tokens if stats else 0, "Tokens generated."),
            ("prefix_cache_queries", stats.prefix_cache_queries if stats else 0, "Tokens looked up."),
            ("prefix_cache_hits", stats.prefix_cache_hits if stats else 0, "Tokens found."),
            ("num_preemptions", stats.preemptions if stats else 0, "Requests preempted."),
        ):
            yield self._line("counter", f"vllm:{name}", value, help_)
        for name, amount, help_ in (
            ("grammars_compiled", stats.grammars_compiled if stats else 0, "Grammars compiled."),
            ("grammars_refused", stats.grammars_refused if stats else 0, "Grammars refused."),
            ("grammar_cache_hits", stats.grammar_cache_hits if stats else 0, "Compiled before."),
            ("grammar_compile_seconds", stats.grammar_seconds if stats else 0, "Time to compile them."),
        ):
            yield self._line("counter", f"sheaf:{name}", amount, help_)
        name = "vllm:request_success_total"
        yield header("counter", name, "Requests ended, by reason.")
        for reason, count in self._finished.items():
            yield f"{name}{label_text({**self._labels, 'finished_reason': reason})} {count}\n"

    def _gauge(self, name: str, value: float, help_: str) -> str:
        return self._line("gauge", name, value, help_)

    def _line(self, kind: str, name: str, value: float, help_: str) -> str:
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = Series(kind, name, help_, self._labels)
        return series.line(value)
