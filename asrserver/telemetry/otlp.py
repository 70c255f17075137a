"""How spans leave a process: OpenTelemetry's SDK and its exporter for OTLP over HTTP, with a bound on what waits.

traces.py imports this where traces are on, and nothing else does: it takes 10 MB. The standard environment variables
configure it, as https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ lists them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from asrserver import __version__
from asrserver.errors import SettingError
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.traces")

#: Spans that wait to be exported at most, unless OTEL_BSP_MAX_QUEUE_SIZE says otherwise: about 4 MB.
MAX_QUEUE = 2048

#: Seconds between two log lines about spans that are dropped.
QUIET_SECONDS = 60.0

#: Seconds that the last spans may take to be exported when a process ends.
CLOSE_SECONDS = 3.0

#: Variables that choose a protocol of OTLP, the one for traces first, and the one that this exporter speaks.
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"

_propagator = TraceContextTextMapPropagator()


class _LastMessage(logging.Handler):
    """Keeps the exporter's last message about a failure: it logs every attempt, and one line is enough."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:300]


#: Loopback addresses, as no_proxy lists them.
LOOPBACK = ("localhost", "127.0.0.0/8", "::1")


class _CountedExporter(SpanExporter):
    """Exports spans, counts the outcomes, and logs once that the collector does not accept them.

    Attributes:
        taken: Spans that have left the queue.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self.taken = 0
        self._exporter = exporter
        self._dropping = False
        self._dropped = 0
        self._said = -QUIET_SECONDS
        self._reason = _LastMessage()
        chatty = logging.getLogger("opentelemetry.exporter")
        chatty.handlers, chatty.propagate = [self._reason], False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            metrics.spans.labels("sent").inc(len(spans))
            if self._dropping:
                self._dropping = False
                log.info("spans of traces are exported again, %d were dropped", self._dropped)
        else:
            self.drop(len(spans), "not_sent", self._reason.text or "the collector refused them")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def drop(self, count: int, outcome: str, reason: str) -> None:
        """Count dropped spans; the first of a run of them is logged."""
        metrics.spans.labels(outcome).inc(count)
        self._dropped = count + (self._dropped if self._dropping else 0)
        now = time.monotonic()
        if not self._dropping and now - self._said >= QUIET_SECONDS:
            self._said = now
            log.warning("spans of traces are dropped until the collector takes them: %s", reason)
        self._dropping = True


class _BoundedProcessor(BatchSpanProcessor):
    """Exports in batches, in a thread. Spans that its queue has no room for are counted; the SDK would log each one."""

    def __init__(self, exporter: _CountedExporter, size: int) -> None:
        super().__init__(exporter, max_queue_size=size)
        self._counted = exporter
        self._size = size
        self.given = 0

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self.given - self._counted.taken >= self._size:
            self._counted.drop(1, "queue_full", f"{self._size} wait (OTEL_BSP_MAX_QUEUE_SIZE)")
            return
        self.given += 1
        super().on_end(span)


class Export:
    """The SDK of one process. Spans may be ended in one thread only, that of the event loop.

    Args:
        service: `service.name`, where OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have none.
        instance: `service.instance.id`, likewise.

    Raises:
        SettingError: A variable has a value that cannot be used.
    """

    def __init__(self, service: str, instance: str) -> None:
        protocol = next(filter(None, map(os.environ.get, PROTOCOL_VARIABLES)), PROTOCOL)
        if protocol != PROTOCOL:
            raise SettingError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: spans are exported as {PROTOCOL} only")
        own = {"service.name": service, "service.version": __version__, "service.instance.id": instance}
        resource = Resource.create({**own, "process.pid": os.getpid()}).merge(OTELResourceDetector().detect())
        try:
            _spare_loopback()
            self._exporter = _CountedExporter(OTLPSpanExporter())
            size = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or MAX_QUEUE)
            self._processor = _BoundedProcessor(self._exporter, size)
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        except ValueError as exc:
            raise SettingError(f"an environment variable OTEL_… cannot be used: {exc}") from None
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("asrserver", __version__)

    def start(
        self, name: str, parent: str, began: float | None, kind: str, attributes: dict[str, Any], link: str = ""
    ) -> Span:
        """Start a span.

        Args:
            name: Its name.
            parent: The `traceparent` of the span above it; a new trace begins where it is empty or malformed.
            began: When it began, in seconds since the Unix epoch; None: now.
            kind: The name of a SpanKind.
            attributes: Its attributes.
            link: The `traceparent` of a span that it has to do with; empty: of none.
        """
        links = [Link(get_current_span(_context(link)).get_span_context())] if link else ()
        at = None if began is None else int(began * 1e9)
        return self._tracer.start_span(name, _context(parent), SpanKind[kind], attributes, links, at)

    def close(self) -> None:
        """Export what waits, for at most CLOSE_SECONDS; what is left then is dropped. It blocks."""
        flushing = threading.Thread(target=self._provider.shutdown, name="traces-flush", daemon=True)
        flushing.start()
        flushing.join(CLOSE_SECONDS)
        if flushing.is_alive():
            self._exporter.shutdown()  # which ends its pauses between tries
            if left := self._processor.given - self._exporter.taken:
                self._exporter.drop(left, "not_sent", "this process ends")


def _spare_loopback() -> None:
    """Bypass the environment's proxy for loopback addresses: no proxy can reach a collector there."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if named != "*":
        os.environ["no_proxy"] = ",".join(filter(None, (named, *LOOPBACK)))


def mark_failed(span: Span, error: str) -> None:
    """Mark a span as failed, with an error code."""
    span.set_status(StatusCode.ERROR, error)
    span.set_attribute("error.type", error)


def traceparent(span: Span) -> str:
    """The `traceparent` of a span: https://www.w3.org/TR/trace-context/#traceparent-header"""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


@lru_cache(maxsize=1024)  # most spans of a result have one parent, and a session's results
def _context(parent: str) -> Context:
    return _propagator.extract({"traceparent": parent}, Context())
