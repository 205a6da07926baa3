"""What a scrape shows, read with prometheus_client's own parser."""

from __future__ import annotations

import time

import msgspec
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sheaf_runtime.protocol.messages import EngineReady, EngineStats
from sheaf_runtime.server.metrics import Metrics

READY = EngineReady(
    max_model_len=64,
    block_size=16,
    num_blocks=100,
    max_num_seqs=8,
    vocab_size=10,
    weights_bytes=1234,
    device="cpu",
    dtype="float32",
)


def stats(**changes: object) -> EngineStats:
    now = time.time()
    base = EngineStats(
        time=now,
        running=3,
        waiting=2,
        queued_tokens=40,
        oldest_arrival=now - 5,
        blocks_live=25,
        blocks_cached=50,
        blocks_free=25,
        steps=9,
        prompt_tokens=100,
        generation_tokens=20,
        prefix_cache_queries=90,
        prefix_cache_hits=30,
        preemptions=1,
        iteration_tokens=[4, 100],
    )
    return msgspec.structs.replace(base, **changes)


def families(metrics: Metrics) -> dict[str, Metric]:
    parsed = list(text_string_to_metric_families(metrics.render()))
    assert len({family.name for family in parsed}) == len(parsed)
    return {family.name: family for family in parsed}


def value(metrics: Metrics, name: str) -> float:
    samples = [
        sample for family in families(metrics).values() for sample in family.samples if sample.name == name
    ]
    assert len(samples) == 1, name
    assert samples[0].labels["model_name"] == 'my "model"\\x'
    assert samples[0].labels["engine"] == "0"
    return float(samples[0].value)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics('my "model"\\x')
    metrics.info = READY
    return metrics


def test_gauges_of_a_loaded_engine(metrics: Metrics) -> None:
    metrics.in_flight = lambda: 5
    metrics.seconds_since_progress = lambda: 0.25
    metrics.on_stats(stats())
    assert value(metrics, "vllm:num_requests_running") == 3
    assert value(metrics, "vllm:num_requests_waiting") == 2
    assert value(metrics, "vllm:kv_cache_usage_perc") == 0.25  # referenced blocks only
    assert value(metrics, "sheaf:blocks_live") == 25
    assert value(metrics, "sheaf:blocks_cached") == 50
    assert value(metrics, "sheaf:blocks_free") == 25
    assert value(metrics, "sheaf:queued_tokens") == 40
    assert value(metrics, "sheaf:oldest_wait_seconds") == pytest.approx(5, abs=1)
    assert value(metrics, "sheaf:seconds_since_last_progress") == 0.25
    assert value(metrics, "sheaf:weights_bytes") == 1234
    assert value(metrics, "sheaf:max_num_seqs") == 8
    assert value(metrics, "vllm:prompt_tokens_total") == 100
    assert value(metrics, "vllm:prompt_tokens_cached_total") == 30
    assert value(metrics, "vllm:generation_tokens_total") == 20
    assert value(metrics, "vllm:prefix_cache_queries_total") == 90
    assert value(metrics, "vllm:prefix_cache_hits_total") == 30
    assert value(metrics, "vllm:num_preemptions_total") == 1
    assert value(metrics, "vllm:iteration_tokens_total_count") == 2
    assert value(metrics, "vllm:iteration_tokens_total_sum") == 104
    labels = families(metrics)["vllm:cache_config_info"].samples[0].labels
    assert (labels["block_size"], labels["num_gpu_blocks"]) == ("16", "100")


def test_nothing_in_flight_means_nothing_in_the_gauges(metrics: Metrics) -> None:
    metrics.on_stats(stats())  # older than the aborts that emptied the engine
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "sheaf:queued_tokens"):
        assert value(metrics, name) == 0
    assert value(metrics, "sheaf:oldest_wait_seconds") == 0
    assert value(metrics, "sheaf:seconds_since_last_progress") == 0


def test_requests_that_a_long_step_keeps_out_are_waiting(metrics: Metrics) -> None:
    metrics.in_flight = lambda: 10
    metrics.on_stats(stats(time=time.time() - 3, running=4, waiting=0))
    assert value(metrics, "vllm:num_requests_running") == 4
    assert value(metrics, "vllm:num_requests_waiting") == 6


def test_before_the_engine_is_ready() -> None:
    shown = families(Metrics("m"))
    assert "vllm:num_requests_running" in shown
    assert "vllm:kv_cache_usage_perc" not in shown
    assert "vllm:cache_config_info" not in shown


def test_a_finished_request(metrics: Metrics) -> None:
    now = time.time()
    metrics.on_finished(
        "length",
        arrival=now - 10,
        scheduled=now - 9,
        first=now - 7,
        last=now - 3,
        prompt_tokens=30,
        generated_tokens=5,
        max_tokens=8,
    )
    metrics.on_copies_finished(n=1, longest=5)
    metrics.on_finished(
        "abort", arrival=now, scheduled=None, first=None, last=None, prompt_tokens=3, generated_tokens=0
    )
    expected = {
        "request_queue_time_seconds": 1,
        "request_prefill_time_seconds": 2,
        "request_decode_time_seconds": 4,
        "request_inference_time_seconds": 6,
        "request_time_per_output_token_seconds": 1,
        "request_prompt_tokens": 33,
        "request_generation_tokens": 5,
        "request_max_num_generation_tokens": 5,
        "request_params_n": 1,
        "request_params_max_tokens": 8,
    }
    for name, total in expected.items():
        assert value(metrics, f"vllm:{name}_sum") == pytest.approx(total, abs=0.01), name
    assert value(metrics, "vllm:e2e_request_latency_seconds_count") == 2
    success = {
        sample.labels["finished_reason"]: sample.value
        for sample in families(metrics)["vllm:request_success"].samples
    }
    assert success == {"stop": 0, "length": 1, "abort": 1, "error": 0, "timeout": 0}


def test_histogram_buckets_are_cumulative(metrics: Metrics) -> None:
    for seconds in (0.001, 0.0011, 0.3, 1000):
        metrics.time_to_first_token.observe(seconds)
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families(metrics)["vllm:time_to_first_token_seconds"].samples
        if "le" in sample.labels
    }
    assert (buckets["0.001"], buckets["0.005"], buckets["0.25"], buckets["0.5"]) == (1, 2, 2, 3)
    assert (buckets["40.0"], buckets["640.0"], buckets["+Inf"]) == (3, 3, 4)
    assert buckets["2560.0"] == 4, "an hour's queue has a quantile too, as with vLLM"


def test_drafts() -> None:
    assert not any("spec_decode" in name for name in families(Metrics("m")))
    metrics = Metrics('my "model"\\x', max_drafts=4)
    metrics.on_stats(stats(drafts=5, draft_tokens=15, accepted_at=[4, 3, 1]))
    assert value(metrics, "vllm:spec_decode_num_drafts_total") == 5
    assert value(metrics, "vllm:spec_decode_num_draft_tokens_total") == 15
    assert value(metrics, "vllm:spec_decode_num_accepted_tokens_total") == 8
    by_place = families(metrics)["vllm:spec_decode_num_accepted_tokens_per_pos"].samples
    assert {s.labels["position"]: s.value for s in by_place} == {"0": 4, "1": 3, "2": 1, "3": 0}


def test_every_promised_name_is_there(metrics: Metrics) -> None:
    names = {name.removeprefix("vllm:") for name in families(metrics)}
    promised = """
        num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info
        prefix_cache_queries prefix_cache_hits prompt_tokens prompt_tokens_cached generation_tokens
        num_preemptions request_success time_to_first_token_seconds inter_token_latency_seconds
        request_time_per_output_token_seconds e2e_request_latency_seconds request_queue_time_seconds
        request_inference_time_seconds request_prefill_time_seconds request_decode_time_seconds
        request_prompt_tokens request_generation_tokens iteration_tokens_total
        request_max_num_generation_tokens request_params_n request_params_max_tokens
    """
    assert set(promised.split()) - names == set()
