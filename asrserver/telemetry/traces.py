"""Traces of sessions for OpenTelemetry: where a late result has been. Nothing is imported or noted while they are off.

    session            gateway  from the start of a session to its end here; of the context of a client's `traceparent`
    ├ session.start    gateway  until Redis has the session
    ├ session.claim    worker   one for each worker that takes the session: the first since the start
    └ result           worker   from the receipt of the audio that completed it to its publication
      ├ audio.append   gateway  from that receipt until Redis has it
      ├ audio.queue    worker   from that receipt until the worker has read it
      ├ audio.inbox    worker   until what came before it is processed
      ├ audio.decode   worker   decoding, and the search for speech
      ├ engine.wait    worker   in the queue of the engine
      ├ engine.run     worker   the model
      ├ result.publish worker   until Redis has the result
      ├ result.deliver gateway  from its making until it is given to the client's connection
      └ result.store   gateway  from its making until PostgreSQL has it

A trace is a session's, because that is what a client complains about and what its own trace leads to. It is bounded:
each result after the first worker_traces.MAX_RESULTS is a trace of its own, with a link to the session. Spans of a
session travel with its hash in Redis, and those of a result with the event, as W3C `traceparent`s:
https://www.w3.org/TR/trace-context/

Here is what gateways and workers share; their own spans are made in gateway_traces.py and worker_traces.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from asrserver.telemetry.otlp import Export

#: Spans of a session for the gateways, and for the workers, that have had it.
MAX_OWNERS = 50

#: Characters of a client's `traceparent`: 55 today, and versions to come may add to them.
MAX_TRACEPARENT = 128

#: Sessions whose trace is known for log lines and for `result.store`, at most.
MAX_KNOWN = 20_000

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

#: The `traceparent` of the request that is being served; empty where it has none.
_remote_parent: ContextVar[str] = ContextVar("traceparent", default="")

_export: Export | None = None


class TracedSession(Protocol):
    """What this process notes of a session.

    Attributes:
        trace_id: Its trace, in hexadecimal.
    """

    trace_id: str


_known: dict[str, TracedSession] = {}


def configure(service: str, instance: str) -> None:
    """Turn traces on in this process.

    Args:
        service: See otlp.Export.
        instance: See otlp.Export.

    Raises:
        SettingError: An environment variable of OpenTelemetry has a value that cannot be used.
    """
    global _export
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    from asrserver.telemetry.otlp import Export

    _export = Export(service, instance)


def is_installed() -> bool:
    """Whether the extra otel is installed."""
    try:
        return all(map(importlib.util.find_spec, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:  # not even the packages around them
        return False


def close() -> None:
    """Export what waits, at the end of this process. It blocks for some seconds at most."""
    if _export is not None:
        _export.close()


def set_remote_parent(headers: Mapping[str, str]) -> None:
    """Let the sessions that a request starts, on its connection too, continue the trace that its headers name."""
    if _export is not None:
        given = headers.get("traceparent", "")
        _remote_parent.set(given if len(given) <= MAX_TRACEPARENT else "")


def remote_parent() -> str:
    """The `traceparent` of the request that is being served; empty where it has none."""
    return _remote_parent.get()


def stored_parent(fields: Mapping[str, str]) -> str:
    """The `traceparent` in the hash of a session; empty where it has none that is valid, or traces are off."""
    parent = fields.get("trace", "")
    return parent if _export is not None and _TRACEPARENT.fullmatch(parent) else ""


def trace_id(sid: str) -> str:
    """The trace of a session that is open in this process, in hexadecimal; empty where there is none."""
    trace = _known.get(sid)
    return trace.trace_id if trace is not None else ""


def forget(sid: str) -> None:
    """A session is over in this process."""
    _known.pop(sid, None)


# -- for gateway_traces.py and worker_traces.py ----------------------------------------------------------------------


def is_on() -> bool:
    """Whether this process makes spans."""
    return _export is not None


def remember(sid: str, trace: TracedSession) -> None:
    """Keep a trace for `known` and `trace_id` until it is forgotten; beyond MAX_KNOWN, the oldest are."""
    _known[sid] = trace
    while len(_known) > MAX_KNOWN:
        del _known[next(iter(_known))]


def known(sid: str) -> TracedSession | None:
    """What this process notes of a session; None if it notes nothing."""
    return _known.get(sid)


def start_span(
    name: str, parent: str, began: float | None, kind: str, attributes: dict[str, Any], link: str = ""
) -> Span:
    """Start a span; see otlp.Export.start. Traces must be on."""
    assert _export is not None
    return _export.start(name, parent, began, kind, attributes, link)


def add_span(name: str, parent: str, began: float, ended: float, kind: str, attributes: dict[str, Any]) -> None:
    """Add a span that is over. Clocks of two machines differ: what would end before it began takes no time."""
    start_span(name, parent, min(began, ended), kind, attributes).end(int(ended * 1e9))


def mark_failed(span: Span, error: str) -> None:
    """Mark a span as failed, with an error code."""
    from asrserver.telemetry import otlp

    otlp.mark_failed(span, error)


def traceparent(span: Span) -> str:
    """The W3C `traceparent` of a span, for those below it in other processes."""
    from asrserver.telemetry import otlp

    return otlp.traceparent(span)


def redis_attributes(operation: str) -> dict[str, Any]:
    """The attributes of a span in which something is sent to Redis, or received: those of messaging systems."""
    return {"messaging.system": "redis", "messaging.operation.type": operation}


def is_sampled(parent: str) -> bool:
    """Whether the spans below that of a `traceparent` are exported."""
    return bool(int(parent[-2:], 16) & 1)


def epoch_seconds(moment: float) -> float:
    """A moment of time.monotonic() in seconds since the Unix epoch."""
    return time.time() - time.monotonic() + moment
