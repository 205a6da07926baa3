"""Traces of requests, as a collector of OpenTelemetry receives them over gRPC and HTTP."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from model_folders import byte_level, write_folder
from otlp_collector import Collector, grpc_collector, http_collector
from serving import Served, serving, wait_for
from sheaf_runtime.server.launch import main

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SECRET = "swordfish"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), byte_level())


@pytest.fixture(scope="module")
def traced(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Collector]]:
    with pytest.MonkeyPatch.context() as patch, grpc_collector() as (collector, endpoint):
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        patch.setenv("OTEL_SERVICE_NAME", "mine")
        flags = ("--otlp-traces-endpoint", endpoint, "--served-model-name", "m", "other")
        fake = {"step_seconds": 0.002, "max_running": 2, "max_queued": 2}
        with serving(folder, tmp_path_factory.mktemp("out"), *flags, fake=fake) as server:
            server.wait_ready()
            yield server, collector


def test_one_span_continues_the_clients_trace(traced: tuple[Served, Collector]) -> None:
    server, collector = traced
    headers = {"TraceParent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    began = time.time()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": SECRET}],
                max_tokens=20,
                temperature=0.5,
                top_p=0.75,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=headers,
                extra_body={"ignore_eos": True},
            )
        )
    took = time.time() - began
    wait_for(lambda: collector.find(CHAT), "the span")
    (span,) = collector.find(CHAT)
    message, given = span.message, span.attributes
    assert (message.name, span.service, message.kind) == ("llm_request", "mine", message.SPAN_KIND_SERVER)
    assert (message.trace_id.hex(), message.parent_span_id.hex()) == (TRACE, PARENT)
    assert message.trace_state == "vendor=1"
    usage = chunks[-1].usage
    assert usage is not None
    latency = {name: given.pop(name) for name in list(given) if name.startswith("gen_ai.latency.")}
    assert given == {
        "gen_ai.request.id": chunks[0].id,
        "gen_ai.response.model": "m",
        "gen_ai.request.n": 1,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.usage.num_sequences": 1,
        "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
        "gen_ai.usage.completion_tokens": usage.completion_tokens,
        "gen_ai.response.finish_reasons": ["length"],
        "url.path": CHAT,
        "http.response.status_code": 200,
    }
    names = {name.rpartition(".")[2] for name in latency}
    assert names == {"e2e", "time_in_queue", "time_to_first_token"} | {
        f"time_in_model_{part}" for part in ("prefill", "decode", "inference")
    }
    assert 0 < latency["gen_ai.latency.time_in_model_decode"] <= latency["gen_ai.latency.e2e"]
    # vLLM#9952: the span is all that the client waited for, tokenizing and sending too.
    assert latency["gen_ai.latency.e2e"] <= span.seconds <= took
    assert SECRET not in str(message)


def test_choices_and_prompts_are_one_span_and_nobodys_trace_is_a_new_one(
    traced: tuple[Served, Collector],
) -> None:
    server, collector = traced
    before = len(collector.find(TEXT))
    body = {"prompt": ["abc", "de"], "n": 2, "max_tokens": 3, "ignore_eos": True, "model": "other"}
    for headers in ({}, {"traceparent": "no such thing"}, {"traceparent": f"00-{TRACE}-{PARENT}-00"}):
        answer = httpx.post(f"{server.url}{TEXT}", json=body, headers=headers)
        assert answer.status_code == 200
    # vLLM#38672: a trace that is not sampled is not sent, and no request is part of another's.
    httpx.post(f"{server.url}{TEXT}", json=body | {"max_tokens": 4})
    wait_for(lambda: len(collector.find(TEXT)) == before + 3, "three spans")
    spans = collector.find(TEXT)[before:]
    assert [span.attributes["gen_ai.request.max_tokens"] for span in spans] == [3, 3, 4]
    assert len({span.message.trace_id for span in spans} | {bytes.fromhex(TRACE)}) == 4
    given = spans[0].attributes
    assert (given["gen_ai.usage.num_sequences"], given["gen_ai.usage.completion_tokens"]) == (4, 12)
    assert given["gen_ai.response.model"] == "other"
    assert not spans[0].message.parent_span_id


def test_what_went_wrong_is_traced_too(traced: tuple[Served, Collector]) -> None:
    """vLLM#17528 and #32162: refused and aborted requests left no span."""
    server, collector = traced
    before = len(collector.find(TEXT))

    def new() -> list[tuple[int | None, str | None, list[str] | None]]:
        return [
            (
                span.attributes.get("http.response.status_code"),
                span.attributes.get("error.type"),
                span.attributes.get("gen_ai.response.finish_reasons"),
            )
            for span in collector.find(TEXT)[before:]
        ]

    assert httpx.post(f"{server.url}{TEXT}", json={"prompt": 1.5}).status_code == 400
    assert httpx.post(f"{server.url}{TEXT}", json={"prompt": "a", "n": 5}).status_code == 429
    with httpx.stream(
        "POST", f"{server.url}{TEXT}", json={"prompt": "abc", "max_tokens": 500, "stream": True}
    ) as answer:
        next(answer.iter_lines())
    wait_for(lambda: len(new()) == 3, "three spans")
    assert new() == [(400, "400", None), (429, "429", []), (200, None, ["abort"])]
    assert server.status("/v1/models") == 200
    assert {span.attributes["url.path"] for span in collector.spans} <= {CHAT, TEXT}


def test_a_collector_that_hangs_holds_up_nobody(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    body = {"prompt": "abc", "max_tokens": 2}
    with (
        http_collector() as (collector, endpoint),
        serving(folder, tmp_path, "--otlp-traces-endpoint", endpoint) as server,
    ):
        server.wait_ready()
        httpx.post(f"{server.url}{TEXT}", json=body)
        wait_for(lambda: collector.spans, "a span")
        assert collector.spans[0].service == "sheaf"
        collector.stuck.set()
        collector.asked.clear()
        httpx.post(f"{server.url}{TEXT}", json=body)
        assert collector.asked.wait(60)
        assert httpx.post(f"{server.url}{TEXT}", json=body, timeout=60).status_code == 200
        began = time.monotonic()
        server.terminate(signal.SIGINT)
        assert server.wait_exit() == 0
        assert time.monotonic() - began < 30  # five seconds for the last spans, on a quiet machine
        assert "did not take the last ones" in server.output()


def test_the_last_spans_are_sent_before_the_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    with (
        grpc_collector() as (collector, endpoint),
        serving(folder, tmp_path, "--otlp-traces-endpoint", endpoint) as server,
    ):
        server.wait_ready()
        assert f"traces go to {endpoint} (grpc)" in server.output()
        httpx.post(f"{server.url}{TEXT}", json={"prompt": "abc", "max_tokens": 2})
        assert collector.spans == []  # it waits for more
        server.terminate(signal.SIGINT)
        assert server.wait_exit() == 0
        assert len(collector.spans) == 1


def test_traces_that_cannot_be_sent_are_refused_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(folder), "--otlp-traces-endpoint"]
    assert main([*asked, "ftp://collector"]) == 2
    assert "must be an address" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        assert main([*asked, "collector:4317"]) == 2
        assert "use grpc or http/protobuf" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    assert main([*asked, "http://collector:4317"]) == 2
    assert "pip install 'sheaf[otel]'" in capsys.readouterr().err
