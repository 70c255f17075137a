"""A collector of traces: an HTTP server that takes what OpenTelemetry's exporters send, and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Span(NamedTuple):
    """A span as it came, with the attributes of its process."""

    name: str
    trace: str
    id: str
    parent: str
    began: float
    ended: float
    links: list[str]
    attributes: dict[str, Any]
    resource: dict[str, Any]
    error: str

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


class Collector:
    """The spans that came, in that order. It refuses everything while `status` is not 200."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.status = 200
        self.refused = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                if collector.status == 200:
                    collector.spans += parse(body)
                    answer = ExportTraceServiceResponse().SerializeToString()
                else:
                    collector.refused += 1
                    answer = b""
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, name: str) -> list[Span]:
        return [span for span in list(self.spans) if span.name == name]

    def below(self, span: Span) -> list[Span]:
        return [other for other in list(self.spans) if other.parent == span.id]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


def parse(body: bytes) -> list[Span]:
    """The spans of a request."""
    return [
        Span(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano / 1e9,
            span.end_time_unix_nano / 1e9,
            [link.span_id.hex() for link in span.links],
            _attributes(span),
            _attributes(group.resource),
            span.status.message,
        )
        for group in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _attributes(owner: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in owner.attributes}
