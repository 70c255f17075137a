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
each result after the first MAX_RESULTS is a trace of its own, with a link to the session. Spans of a session travel
with its hash in Redis, and those of a result with the event, as W3C `traceparent`s: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from asrserver.telemetry.otlp import Export

#: Results of a session in its trace, about eight spans each: Tempo takes 5 MB for a trace, which are some 12,000.
MAX_RESULTS = 500

#: Spans of a session for the gateways, and for the workers, that have had it.
MAX_OWNERS = 50

#: Entries of a session's audio whose times a gateway keeps: of a result that is later its `audio.append` is missing.
MAX_APPENDS = 128

#: What a worker notes of a session: reads of its audio, and pieces in which segments ended that wait for the engine.
MAX_READS = 128
MAX_FEEDS = 32

#: Characters of a client's `traceparent`: 55 today, and versions to come may add to them.
MAX_TRACEPARENT = 128

#: Seconds in a worker's inbox from which they make a span.
MIN_INBOX_SECONDS = 0.005

#: Sessions whose trace is known for log lines and for `result.store`, at most.
MAX_KNOWN = 20_000

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

#: The `traceparent` of the request that is being served; empty where it has none.
_caller: ContextVar[str] = ContextVar("traceparent", default="")

_export: Export | None = None
_known: dict[str, SessionTrace | WorkTrace] = {}


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


def is_possible() -> bool:
    """Whether the extra otel is installed."""
    try:
        return all(map(importlib.util.find_spec, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:  # not even the packages around them
        return False


def close() -> None:
    """Export what waits, at the end of this process. It blocks for some seconds at most."""
    if _export is not None:
        _export.close()


def called_by(headers: Mapping[str, str]) -> None:
    """Have the sessions that a request starts, on its connection too, continue the trace that its headers name."""
    if _export is not None:
        given = headers.get("traceparent", "")
        _caller.set(given if len(given) <= MAX_TRACEPARENT else "")


def trace_id(sid: str) -> str:
    """The trace of a session that is open in this process, in hexadecimal; empty where there is none."""
    trace = _known.get(sid)
    return trace.trace_id if trace is not None else ""


def forget(sid: str) -> None:
    """A session is over in this process."""
    _known.pop(sid, None)


def begin(sid: str, **attributes: str) -> SessionTrace | None:
    """Begin the trace of a session; None while traces are off.

    Args:
        sid: The id of the session.
        attributes: What the session is, each with the prefix `asr.`.
    """
    if _export is None:
        return None
    described = {"session.id": sid, **{f"asr.{name}": value for name, value in attributes.items()}}
    span = _start("session", _caller.get(), None, "SERVER", described)
    return SessionTrace(sid, _traceparent(span), span)


def resume(sid: str, fields: Mapping[str, str]) -> SessionTrace | None:
    """Continue the trace of a session that another gateway, or an earlier connection, has begun.

    Args:
        sid: The id of the session.
        fields: Those of its hash. One that began without a trace gets none.
    """
    if _export is None or not _TRACEPARENT.fullmatch(fields.get("trace", "")):
        return None
    moves, span = fields.get("moves", ""), None
    if not moves.isdigit() or int(moves[:9]) <= MAX_OWNERS:
        span = _start("session", fields["trace"], None, "SERVER", {"session.id": sid, "asr.moves": moves})
    return SessionTrace(sid, fields["trace"], span)


def claimed(sid: str, fields: Mapping[str, str], epoch: int) -> WorkTrace | None:
    """Continue the trace of a session in the worker that has taken it.

    Args:
        sid: The id of the session.
        fields: Those of its hash.
        epoch: The number of this ownership, from 1.
    """
    if _export is None or not _TRACEPARENT.fullmatch(fields.get("trace", "")):
        return None
    return WorkTrace(sid, fields["trace"], float(fields.get("created") or 0.0), epoch)


def stored(sid: str, result: str, made: float) -> None:
    """Note that PostgreSQL has a result.

    Args:
        sid: Its session.
        result: The `traceparent` of its span.
        made: When it was made, in seconds since the Unix epoch. Of one that was made before this gateway got the
            session, another gateway has probably noted it.
    """
    trace = _known.get(sid)
    if isinstance(trace, SessionTrace) and made >= trace.opened:
        _note("result.store", result, made, time.time(), "CLIENT", {"db.system.name": "postgresql"})


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
        self._is_sampled = _is_sampled(parent)
        self._appends = deque[tuple[int, float, float]](maxlen=MAX_APPENDS)
        _remember(sid, self)

    def started(self) -> None:
        """Redis has the session."""
        _note("session.start", self.parent, self.opened, time.time(), "INTERNAL", {})

    def appended(self, index: int, taken: float) -> None:
        """Redis has the chunks up to an index, which were received at `taken` (time.monotonic())."""
        if self._is_sampled:
            self._appends.append((index, taken, time.monotonic()))

    def delivered(self, result: str, entry: int, made: float) -> None:
        """A result was given to the client's connection, or there is no client.

        Args:
            result: The `traceparent` of its span.
            entry: The index of the last chunk of the audio that completed it.
            made: When it was made, in seconds since the Unix epoch.
        """
        at = bisect_left(self._appends, (entry,))
        if at < len(self._appends) and self._appends[0][0] <= entry:
            _, taken, appended = self._appends[at]
            _note("audio.append", result, _wall(taken), _wall(appended), "PRODUCER", _redis("send"))
        _note("result.deliver", result, made, time.time(), "PRODUCER", {})

    def end(self, how: str, chunks: int, size: int, results: int) -> None:
        """The session has left this gateway.

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
        if how not in ("done", "interrupted", "error") and _known.get(self._sid) is self:
            forget(self._sid)


class AudioEntry(Protocol):
    """What is known of an entry of a session's audio; see broker/replies.py."""

    id: str
    received: float | None

    @property
    def index(self) -> int: ...


class Call(NamedTuple):
    """When the engine had a window, or several: all by time.monotonic().

    Attributes:
        queued: When it, or the first, was put into the queue.
        began: When its call, or that of the first, began.
        ended: When its call, or that of the last, ended.
        windows: How many they were.
    """

    queued: float
    began: float
    ended: float
    windows: int = 1

    @classmethod
    def of(cls, calls: Sequence[Call | None]) -> Call | None:
        """What several were together; None: there was none."""
        known = [call for call in calls if call is not None]
        if not known:
            return None
        return cls(
            min(call.queued for call in known),
            min(call.began for call in known),
            max(call.ended for call in known),
            sum(call.windows for call in known),
        )


class _Cause(NamedTuple):
    """The audio that completed a result: the index of its last chunk, and its times in seconds since the Unix epoch."""

    chunk: int
    received: float
    read: float
    began: float
    decoded: float | None = None
    call: Call | None = None


class _Feed(NamedTuple):
    """Pieces of a live stream that were processed in one go, and in which a segment ended."""

    label: str
    ends: list[int]  # samples of the stream after each
    causes: list[_Cause]


class WorkTrace:
    """What a worker notes of a session, for the spans of its results.

    Attributes:
        trace_id: The trace, in hexadecimal.
    """

    def __init__(self, sid: str, parent: str, created: float, epoch: int) -> None:
        """Note that the session was claimed.

        Args:
            sid: The id of the session.
            parent: The `traceparent` of its first span.
            created: When it was started, in seconds since the Unix epoch.
            epoch: The number of this ownership, from 1.
        """
        self.trace_id = parent[3:35]
        self._sid = sid
        self._parent = parent
        self._epoch = epoch
        self._reads = deque[tuple[int, float]](maxlen=MAX_READS)
        self._feeds = deque[_Feed](maxlen=MAX_FEEDS)
        self._cause = _Cause(-1, time.time(), time.time(), time.time())
        _remember(sid, self)
        if epoch <= MAX_OWNERS:
            now = time.time()
            attributes = {"asr.epoch": epoch, **_redis("receive")}
            _note("session.claim", parent, created if epoch == 1 and created else now, now, "CONSUMER", attributes)

    def read(self, index: int) -> None:
        """The entries up to the one of this index were read."""
        self._reads.append((index, time.time()))

    def take(self, entry: AudioEntry) -> None:
        """An entry is processed now: a result that follows is of it, if nothing else is said."""
        self._cause = self._of(entry, time.time())

    def fed(self, entries: Sequence[AudioEntry], ends: list[int], began: float, label: str) -> None:
        """Pieces of a live stream were processed.

        Args:
            entries: Their entries.
            ends: Samples of the stream after each.
            began: When that began, in seconds since the Unix epoch.
            label: That of the last entry with which a segment ended: only such pieces are needed again.
        """
        if label.endswith(f" {entries[-1].id}"):
            now = time.time()
            causes = [self._of(entry, began)._replace(decoded=now) for entry in entries]
            self._feeds.append(_Feed(label, ends, causes))

    def segment(self, label: str, known_at: int, call: Call | None) -> None:
        """The next result is that of a segment of a live stream.

        Args:
            label: That of the entry with which it ended.
            known_at: The sample of the stream that had to come before it was known to have ended.
            call: When the engine had it.
        """
        feed = next((feed for feed in self._feeds if feed.label == label), None)
        if feed is not None:
            piece = min(bisect_left(feed.ends, known_at), len(feed.causes) - 1)
            self._cause = feed.causes[piece]
        self._cause = self._cause._replace(call=call)

    def utterance(self, call: Call | None) -> None:
        """The next result is that of the entry that was taken; `call` is when the engine had its windows."""
        decoded = time.time() if call is None else _wall(call.queued)
        self._cause = self._cause._replace(decoded=decoded, call=call)

    def result(self, kind: str, seq: int, error: str) -> ResultTrace | None:
        """Begin the span of a result that is about to be published; None if it is not sampled.

        Args:
            kind: The type of the event.
            seq: Its number among the session's.
            error: Its error code; empty where it is none.
        """
        cause, self._cause = self._cause, self._cause._replace(decoded=None, call=None)
        if not _is_sampled(self._parent):
            return None
        attributes = {
            "session.id": self._sid,
            "asr.result": kind,
            "asr.seq": seq,
            "asr.epoch": self._epoch,
            "asr.chunk": cause.chunk,
        }
        parent, link = (self._parent, "") if seq <= MAX_RESULTS else ("", self._parent)
        span = _start("result", parent, cause.received, "CONSUMER", attributes, link)
        if not span.get_span_context().trace_flags.sampled:
            return None
        if error:
            _mark_failed(span, error)
        return ResultTrace(span, cause)

    def _of(self, entry: AudioEntry, began: float) -> _Cause:
        at = bisect_left(self._reads, (entry.index,))
        read = self._reads[at][1] if at < len(self._reads) else began
        return _Cause(entry.index, entry.received or read, read, began)


class ResultTrace:
    """The span of a result while it is published.

    Attributes:
        parent: Its `traceparent`, for the gateway's spans.
        entry: The index of the last chunk of the audio that completed it.
    """

    def __init__(self, span: Span, cause: _Cause) -> None:
        """Add what has happened so far."""
        self.parent = _traceparent(span)
        self.entry = cause.chunk
        self._span = span
        self._began = time.time()
        self._add("audio.queue", cause.received, cause.read, "CONSUMER", operation="receive")
        if cause.began - cause.read >= MIN_INBOX_SECONDS:
            self._add("audio.inbox", cause.read, cause.began)
        if cause.decoded is not None:
            self._add("audio.decode", cause.began, cause.decoded)
        if cause.call is not None:
            queued, began, ended = map(_wall, cause.call[:3])
            self._add("engine.wait", queued, began)
            self._add("engine.run", began, ended, windows=cause.call.windows)

    def end(self, accepted: bool) -> None:
        """The result is published; or it is not, because another worker owns the session or Redis is away."""
        self._add("result.publish", self._began, time.time(), "PRODUCER", operation="send")
        if not accepted:
            _mark_failed(self._span, "not_published")
        self._span.end()

    def _add(
        self, name: str, began: float, ended: float, kind: str = "INTERNAL", operation: str = "", windows: int = 0
    ) -> None:
        attributes = _redis(operation) if operation else {}
        if windows:
            attributes["asr.windows"] = windows
        _note(name, self.parent, began, ended, kind, attributes)


def _start(name: str, parent: str, began: float | None, kind: str, attributes: dict[str, Any], link: str = "") -> Span:
    assert _export is not None
    return _export.start(name, parent, began, kind, attributes, link)


def _note(name: str, parent: str, began: float, ended: float, kind: str, attributes: dict[str, Any]) -> None:
    """Add a span that is over. Clocks of two machines differ: what would end before it began takes no time."""
    _start(name, parent, min(began, ended), kind, attributes).end(int(ended * 1e9))


def _mark_failed(span: Span, error: str) -> None:
    from asrserver.telemetry import otlp

    otlp.mark_failed(span, error)


def _traceparent(span: Span) -> str:
    from asrserver.telemetry import otlp

    return otlp.traceparent(span)


def _remember(sid: str, trace: SessionTrace | WorkTrace) -> None:
    _known[sid] = trace
    while len(_known) > MAX_KNOWN:
        del _known[next(iter(_known))]


def _redis(operation: str) -> dict[str, Any]:
    """The attributes of a span in which something is sent to Redis, or received: those of messaging systems."""
    return {"messaging.system": "redis", "messaging.operation.type": operation}


def _is_sampled(parent: str) -> bool:
    return bool(int(parent[-2:], 16) & 1)


def _wall(moment: float) -> float:
    """A moment of time.monotonic() in seconds since the Unix epoch."""
    return time.time() - time.monotonic() + moment
