"""A collector of traces: OpenTelemetry's own protocol over gRPC and over HTTP."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


class Span(NamedTuple):
    message: Any  # opentelemetry.proto.trace.v1.Span
    attributes: dict[str, Any]
    service: str

    @property
    def seconds(self) -> float:
        return (self.message.end_time_unix_nano - self.message.start_time_unix_nano) / 1e9


class Collector:
    """``spans`` in order of arrival; while ``stuck`` it takes requests and does not answer."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.stuck = threading.Event()
        self.asked = threading.Event()
        self.over = threading.Event()

    def take(self, request: ExportTraceServiceRequest) -> None:
        self.asked.set()
        if self.stuck.is_set():
            self.over.wait()
            return
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(Span(span, _attributes(span.attributes), resource["service.name"]))

    def find(self, path: str) -> list[Span]:
        return [span for span in self.spans if span.attributes["url.path"] == path]


@contextlib.contextmanager
def grpc_collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Servicer(TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            collector.take(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        collector.over.set()
        server.stop(None).wait()


@contextlib.contextmanager
def http_collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            assert self.path == "/v1/traces", self.path
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(ExportTraceServiceRequest.FromString(body))
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        collector.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
