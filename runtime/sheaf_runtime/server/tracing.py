"""OpenTelemetry traces: one span for each request, with vLLM's name and attributes, and no text.

``opentelemetry`` is in the extra ``otel`` and imported only where traces are asked for.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.version import __version__

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0  # at the end, for spans that are not sent yet
TRACED = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        *("/rerank", "/v1/rerank", "/v2/rerank"),
        *("/score", "/v1/score"),
        "/invocations",
    }
)
HEADERS = ("traceparent", "tracestate")
PROTOCOLS = ("grpc", "http/protobuf")

Attributes = dict[str, str | int | float | Sequence[str]]


class TracingError(ValueError):
    """Traces cannot be sent; one line that says what to change."""


def check_tracing(endpoint: str) -> None:
    """Raises ``TracingError``."""
    for name in ("opentelemetry.sdk", "opentelemetry.exporter"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise TracingError("--otlp-traces-endpoint needs OpenTelemetry: pip install 'sheaf[otel]'")
    if _protocol() not in PROTOCOLS:
        raise TracingError(
            f"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL {_protocol()} is not supported; use grpc or http/protobuf"
        )
    parts = urlsplit(endpoint if "://" in endpoint else f"grpc://{endpoint}")
    if parts.scheme not in ("http", "https", "grpc") or not parts.hostname:
        raise TracingError(f"--otlp-traces-endpoint {endpoint} must be an address, as http://HOST:4317")


class Traces:
    """Sends spans from a thread of its own; what the collector does not take in time is dropped."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "sheaf"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(endpoint)))
        self._tracer = self._provider.get_tracer("sheaf_runtime", __version__)
        self._propagator = TraceContextTextMapPropagator()
        logger.info("traces go to %s (%s)", endpoint, _protocol())

    def request(
        self,
        headers: Mapping[bytes, bytes],
        attributes: Attributes,
        *,
        path: str,
        status: int,
        began: float,
        ended: float,
    ) -> None:
        """A request is over. Times are ``time.time()``; ``status`` is 0 if nothing was answered.

        Never raises."""
        from opentelemetry.trace import SpanKind, StatusCode

        try:
            carrier = {
                name: headers[name.encode()].decode("latin-1") for name in HEADERS if name.encode() in headers
            }
            span = self._tracer.start_span(
                "llm_request",
                self._propagator.extract(carrier),
                SpanKind.SERVER,
                {**attributes, "url.path": path, **({"http.response.status_code": status} if status else {})},
                start_time=int(began * 1e9),
            )
            if status >= 400:
                span.set_attribute("error.type", str(status))
            if status >= 500:
                span.set_status(StatusCode.ERROR)
            span.end(int(max(began, ended) * 1e9))
        except Exception:
            logger.exception("a request could not be traced")

    def close(self) -> None:
        """Sends what is left, or gives it up."""
        flush = threading.Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
        if flush.is_alive():
            logger.warning("the collector of traces did not take the last ones in %.0f s", FLUSH_SECONDS)


def generation_attributes(
    *,
    request_id: str,
    model: str,
    n: int,
    sampling: SamplingParams,
    sequences: int,
    prompt_tokens: int,
    completion_tokens: int,
    finish_reasons: Sequence[str],
) -> Attributes:
    return {
        "gen_ai.request.id": request_id,
        "gen_ai.response.model": model,
        "gen_ai.request.n": n,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.usage.num_sequences": sequences,
        "gen_ai.usage.prompt_tokens": prompt_tokens,
        "gen_ai.usage.completion_tokens": completion_tokens,
        "gen_ai.response.finish_reasons": finish_reasons,
    }


def latencies(
    *, arrival: float, scheduled: float | None, first: float | None, last: float | None, ended: float
) -> Attributes:
    """Seconds between the ``time.time()`` of a request's events, of which those that never came are None."""
    spans = {
        "e2e": (arrival, ended),
        "time_in_queue": (arrival, scheduled),
        "time_to_first_token": (arrival, first),
        "time_in_model_prefill": (scheduled, first),
        "time_in_model_decode": (first, last),
        "time_in_model_inference": (scheduled, last),
    }
    return {
        f"gen_ai.latency.{name}": max(0.0, end - start)
        for name, (start, end) in spans.items()
        if start is not None and end is not None
    }


def _protocol() -> str:
    """OpenTelemetry's own variables say it; grpc is vLLM's default."""
    both = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((os.environ[name] for name in both if os.environ.get(name)), "grpc")


def _exporter(endpoint: str) -> Any:
    if _protocol() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    return Http(endpoint=url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1/traces")
