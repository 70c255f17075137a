"""Spans of a session in a worker: its claim, and each result from the receipt of its audio on; see traces.py."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from asrserver.telemetry import traces

if TYPE_CHECKING:
    from opentelemetry.trace import Span

#: Results of a session in its trace, about eight spans each: Tempo takes 5 MB for a trace, which are some 12,000.
MAX_RESULTS = 500

#: What a worker notes of a session: reads of its audio, and pieces in which segments ended that wait for the engine.
MAX_READS = 128
MAX_FEEDS = 32

#: Seconds in a worker's inbox from which they make a span.
MIN_INBOX_SECONDS = 0.005


def claim_session(sid: str, fields: Mapping[str, str], epoch: int) -> WorkerTrace | None:
    """Continue the trace of a session in the worker that has taken it.

    Args:
        sid: The id of the session.
        fields: Those of its hash.
        epoch: The number of this ownership, from 1.
    """
    if not (parent := traces.stored_parent(fields)):
        return None
    return WorkerTrace(sid, parent, float(fields.get("created") or 0.0), epoch)


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


class WorkerTrace:
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
        traces.remember(sid, self)
        if epoch <= traces.MAX_OWNERS:
            now = time.time()
            attributes = {"asr.epoch": epoch, **traces.redis_attributes("receive")}
            traces.add_span(
                "session.claim", parent, created if epoch == 1 and created else now, now, "CONSUMER", attributes
            )

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
        decoded = time.time() if call is None else traces.epoch_seconds(call.queued)
        self._cause = self._cause._replace(decoded=decoded, call=call)

    def result(self, kind: str, seq: int, error: str) -> ResultTrace | None:
        """Begin the span of a result that is about to be published; None if it is not sampled.

        Args:
            kind: The type of the event.
            seq: Its number among the session's.
            error: Its error code; empty where it is none.
        """
        cause, self._cause = self._cause, self._cause._replace(decoded=None, call=None)
        if not traces.is_sampled(self._parent):
            return None
        attributes = {
            "session.id": self._sid,
            "asr.result": kind,
            "asr.seq": seq,
            "asr.epoch": self._epoch,
            "asr.chunk": cause.chunk,
        }
        parent, link = (self._parent, "") if seq <= MAX_RESULTS else ("", self._parent)
        span = traces.start_span("result", parent, cause.received, "CONSUMER", attributes, link)
        if not span.get_span_context().trace_flags.sampled:
            return None
        if error:
            traces.mark_failed(span, error)
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
        self.parent = traces.traceparent(span)
        self.entry = cause.chunk
        self._span = span
        self._began = time.time()
        self._add("audio.queue", cause.received, cause.read, "CONSUMER", operation="receive")
        if cause.began - cause.read >= MIN_INBOX_SECONDS:
            self._add("audio.inbox", cause.read, cause.began)
        if cause.decoded is not None:
            self._add("audio.decode", cause.began, cause.decoded)
        if cause.call is not None:
            queued, began, ended = map(traces.epoch_seconds, cause.call[:3])
            self._add("engine.wait", queued, began)
            self._add("engine.run", began, ended, windows=cause.call.windows)

    def end(self, accepted: bool) -> None:
        """The result is published; or it is not, because another worker owns the session or Redis is away."""
        self._add("result.publish", self._began, time.time(), "PRODUCER", operation="send")
        if not accepted:
            traces.mark_failed(self._span, "not_published")
        self._span.end()

    def _add(
        self, name: str, began: float, ended: float, kind: str = "INTERNAL", operation: str = "", windows: int = 0
    ) -> None:
        attributes = traces.redis_attributes(operation) if operation else {}
        if windows:
            attributes["asr.windows"] = windows
        traces.add_span(name, self.parent, began, ended, kind, attributes)
