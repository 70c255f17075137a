"""Spans of a session in a gateway: its start, and the delivery and storing of its results; see traces.py."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asrserver.telemetry import traces

if TYPE_CHECKING:
    from opentelemetry.trace import Span

#: Entries of a session's audio whose times a gateway keeps. A result that comes after more has no span `audio.append`.
MAX_APPENDS = 128


def start_session(sid: str, **attributes: str) -> SessionTrace | None:
    """Start the trace of a session; None while traces are off.

    Args:
        sid: The id of the session.
        attributes: What the session is, each with the prefix `asr.`.
    """
    if not traces.is_on():
        return None
    described = {"session.id": sid, **{f"asr.{name}": value for name, value in attributes.items()}}
    span = traces.start_span("session", traces.remote_parent(), None, "SERVER", described)
    return SessionTrace(sid, traces.traceparent(span), span)


def resume_session(sid: str, fields: Mapping[str, str]) -> SessionTrace | None:
    """Continue the trace of a session that another gateway, or an earlier connection, has begun.

    Args:
        sid: The id of the session.
        fields: Those of its hash. One that began without a trace gets none.
    """
    if not (parent := traces.stored_parent(fields)):
        return None
    moves, span = fields.get("moves", ""), None
    if not moves.isdigit() or int(moves[:9]) <= traces.MAX_OWNERS:
        span = traces.start_span("session", parent, None, "SERVER", {"session.id": sid, "asr.moves": moves})
    return SessionTrace(sid, parent, span)


def result_stored(sid: str, result: str, made: float) -> None:
    """Note that PostgreSQL has a result.

    Args:
        sid: Its session.
        result: The `traceparent` of its span.
        made: When it was made, in seconds since the Unix epoch. If that was before this gateway got the session,
            another gateway has probably noted it.
    """
    trace = traces.known(sid)
    if isinstance(trace, SessionTrace) and made >= trace.opened:
        traces.add_span("result.store", result, made, time.time(), "CLIENT", {"db.system.name": "postgresql"})


class SessionTrace:
    """A session's spans in a gateway.

    Attributes:
        trace_id: The trace, in hexadecimal.
        parent: The `traceparent` of the session's first span, which its hash has for the spans of others.
        opened: When this gateway got the session, in seconds since the Unix epoch.
    """

    __slots__ = ("_appends", "_is_sampled", "_sid", "_span", "opened", "parent", "trace_id")

    def __init__(self, sid: str, parent: str, span: Span | None) -> None:
        """Begin.

        Args:
            sid: The id of the session.
            parent: The `traceparent` of its first span.
            span: That of this gateway; None: enough of them have had one.
        """
        self.opened = time.time()
        self.parent = parent
        self.trace_id = parent[3:35]
        self._sid = sid
        self._span = span
        self._is_sampled = traces.is_sampled(parent)
        self._appends = deque[tuple[int, float, float]](maxlen=MAX_APPENDS)
        traces.remember(sid, self)

    def started(self) -> None:
        """Note that Redis has the session."""
        traces.add_span("session.start", self.parent, self.opened, time.time(), "INTERNAL", {})

    def appended(self, index: int, taken: float) -> None:
        """Note that Redis has the chunks up to an index, which were received at `taken` (time.monotonic())."""
        if self._is_sampled:
            self._appends.append((index, taken, time.monotonic()))

    def delivered(self, result: str, entry: int, made: float) -> None:
        """Note that a result was given to the client's connection, or that there is no client.

        Args:
            result: The `traceparent` of its span.
            entry: The index of the last chunk of the audio that completed it.
            made: When it was made, in seconds since the Unix epoch.
        """
        at = bisect_left(self._appends, (entry,))
        if at < len(self._appends) and self._appends[0][0] <= entry:
            _, taken, appended = self._appends[at]
            traces.add_span(
                "audio.append",
                result,
                traces.epoch_seconds(taken),
                traces.epoch_seconds(appended),
                "PRODUCER",
                traces.redis_attributes("send"),
            )
        traces.add_span("result.deliver", result, made, time.time(), "PRODUCER", {})

    def end(self, how: str, chunks: int, size: int, results: int) -> None:
        """Note that the session has left this gateway.

        Args:
            how: Its last status here.
            chunks: Chunks that were acknowledged here.
            size: Bytes of them.
            results: Results that were delivered here.
        """
        self._appends.clear()  # while PostgreSQL is away, many sessions that have ended are known
        counts: dict[str, Any] = {"asr.status": how, "asr.chunks": chunks, "asr.bytes": size, "asr.results": results}
        if self._span is not None:
            self._span.set_attributes(counts)
            self._span.end()
            self._span = None  # of a session that was resumed, the final result ends what came before, too
        # Of a session that ended here, the last results are still to be stored.
        if how not in ("done", "interrupted", "error") and traces.known(self._sid) is self:
            traces.forget(self._sid)
