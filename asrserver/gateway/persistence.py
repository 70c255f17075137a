"""Write-behind persistence: durable events in Redis become rows in PostgreSQL, in batches, and no client waits for it.

A session with new events is only marked here; the events are read from Redis when a batch is written. So a session that
waits takes one small entry of memory, and PostgreSQL may be away for as long as Redis has room.

Of an open session Redis keeps the last results for a client that resumes. Older ones are trimmed once they are stored
and the client was sent at least MIN_KEPT_EVENTS more, so a session of many hours has a bounded size in Redis.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.errors import Unavailable
from asrserver.process.aio import Notifier
from asrserver.protocol import codec
from asrserver.protocol.events import ChunkResult, ErrorEvent, Final, Result, Segment, UnknownEvent
from asrserver.storage.errors import StorageUnavailable
from asrserver.storage.storage import Storage
from asrserver.storage.tables import Record
from asrserver.telemetry import gateway_traces, metrics, traces

log = logging.getLogger("asrserver.persistence")

#: Seconds between batches, unless a full one is waiting, or a reader: several results of one session become one write,
#: and several sessions one transaction. With twice as many batches, fifty chunks a second cost a twentieth more.
BATCH_INTERVAL_SECONDS = 0.5

#: Sessions in one batch.
BATCH_SESSIONS = 200

#: Open sessions without new events whose last stored event is remembered. Of any other session all events are read
#: again, which is harmless and slow.
MAX_REMEMBERED = 20_000

#: Events of an open session that Redis keeps at least; at most it keeps twice as many. No client can be that far
#: behind: its socket buffers some hundred kilobytes at most (handlers/).
MIN_KEPT_EVENTS = 1000

#: Seconds that a reader of the history waits for final texts that clients have already, at most; and between checks.
FINISHED_TIMEOUT = 5.0
LOOK_SECONDS = 0.05

#: Longest pause between attempts while PostgreSQL is away, in seconds.
MAX_RETRY_SECONDS = 5.0


@dataclass(slots=True)
class _Flushed:
    """How far a session's events are stored and sent.

    Attributes:
        stored: Id of the last event that is stored.
        sent: `seq` of the last event that the client was sent.
        mark: Id and `seq` of a stored event; events up to it are trimmed when the client is MIN_KEPT_EVENTS further.
        session: The part of the session's row that never changes; None until it was read.
    """

    stored: str = "0-1"
    sent: int = 0
    mark: tuple[str, int] | None = None
    session: dict[str, Any] | None = None


class WriteBehind:
    """Stores the sessions that are marked dirty."""

    def __init__(self, broker: GatewayBroker, storage: Storage, ttl: float) -> None:
        """Store from the broker into the storage; Redis keeps a session for `ttl` seconds after its end is stored."""
        self._broker = broker
        self._storage = storage
        self._ttl = ttl
        self._dirty: dict[str, _Flushed] = {}  # sessions with new events
        self._clean: dict[str, _Flushed] = {}  # open sessions without
        self._wake = asyncio.Event()
        self._writing: dict[str, _Flushed] = {}
        self._dirty_since: float | None = None  # when the session that waits longest became dirty, or before
        self._batch_ended = Notifier()
        self._awaited = asyncio.Event()  # see `flush_soon`
        self._failing = False  # whether the last batch could not be written

    def mark_dirty(self, sid: str, sent: int = 0) -> None:
        """Have the session's new events stored.

        Args:
            sid: The session.
            sent: `seq` of the last event that its client was sent.
        """
        if sid not in self._dirty:
            self._dirty[sid] = self._clean.pop(sid, self._writing.get(sid, _Flushed()))
            if self._dirty_since is None:
                self._dirty_since = time.monotonic()
            self._wake.set()
        upto = self._dirty[sid]
        upto.sent = max(upto.sent, sent)

    @property
    def waiting(self) -> int:
        """Sessions with events that are not stored yet, those of the batch in hand included: it may be long."""
        return len(self._dirty.keys() | self._writing.keys())

    @property
    def lag(self) -> float:
        """Seconds that the oldest event which is not stored has waited, at most."""
        return 0.0 if self._dirty_since is None else time.monotonic() - self._dirty_since

    def is_flushed(self, sid: str | None = None) -> bool:
        """Whether all known events of the session, or (None) of every session, are stored."""
        if sid is None:
            return not self._dirty and not self._writing
        return sid not in self._dirty and sid not in self._writing

    def flush_soon(self) -> None:
        """Write the next batch at once, if there is one: a reader is about to wait for it."""
        if self._dirty:
            self._awaited.set()

    async def wait_flushed(self, sid: str, timeout: float) -> bool:
        """Wait until all known events of the session are stored, for at most `timeout` seconds.

        Returns:
            Whether it is stored.
        """
        return await self._batch_ended.wait_for(lambda: self.is_flushed(sid), timeout)

    async def wait_finished(self, sids: Collection[str] = ()) -> None:
        """Wait until the final texts that clients may have by now are stored, whichever gateway stores them.

        So whoever got a final text finds it in the history, although no client waits for PostgreSQL. The wait is
        bounded, and there is none while PostgreSQL accepts nothing.

        Args:
            sids: The sessions; without any, all.
        """
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(FINISHED_TIMEOUT):
                left = await self._broker.unstored(sids)
                while left and not self._failing:
                    await self._batch_ended.wait(LOOK_SECONDS)
                    left = await self._broker.unstored(left)

    async def run(self) -> None:
        """Write batches until cancelled."""
        pause = BATCH_INTERVAL_SECONDS
        while True:
            await self._wake.wait()
            await self._pause(pause)
            self._wake.clear()
            try:
                whole = await self._write()
                # None while there is a backlog, such as after PostgreSQL was away.
                pause = 0.0 if whole and len(self._dirty) >= BATCH_SESSIONS else BATCH_INTERVAL_SECONDS
                self._failing = False
            except (StorageUnavailable, Unavailable) as exc:
                if not self._failing:
                    log.warning("%d sessions wait to be stored: %s", len(self._dirty), exc)
                pause, self._failing = min(max(pause, BATCH_INTERVAL_SECONDS) * 2, MAX_RETRY_SECONDS), True
            except Exception:
                log.exception("a batch could not be stored: %d sessions wait", len(self._dirty))
                pause, self._failing = MAX_RETRY_SECONDS, True
            finally:
                self._writing = {}
                self._batch_ended.notify()
            if self._dirty:
                self._wake.set()

    async def _pause(self, seconds: float) -> None:
        """Wait this long, or until `flush_soon`; after a batch that could not be written, wait in full."""
        if self._failing:
            await asyncio.sleep(seconds)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._awaited.wait()
        self._awaited.clear()

    async def _write(self) -> bool:
        """Store a batch; return whether all of it could be read: one of several Redis servers may be away."""
        began = time.monotonic()
        batch = self._writing = dict(list(self._dirty.items())[:BATCH_SESSIONS])
        for sid in batch:
            del self._dirty[sid]  # an event from now on marks it again
        try:
            after = {sid: upto.stored for sid, upto in batch.items()}
            known = {sid for sid, upto in batch.items() if upto.session is not None}
            found = await self._broker.read_sessions(after, known)
            records = []
            for sid, (fields, events) in found.items():
                await self._report_unknown(sid, events)
                try:
                    if fields:
                        batch[sid].session = row(sid, fields)
                    session = batch[sid].session
                    records += [record(session, events)] if session and (fields or events) else []
                except Exception as exc:  # one session that cannot be stored must not hold up the others
                    unexpected = not isinstance(exc, (ValueError, KeyError, OverflowError))  # not its keys' damage
                    log.error("session=%s cannot be stored: %s: %s", sid, type(exc).__name__, exc, exc_info=unexpected)
                    await self._broker.dead_letter(sid, "", f"not stored: {type(exc).__name__}: {exc}")
            for sid, reason in await self._storage.save(records):
                await self._broker.dead_letter(sid, "", f"not stored: {reason}")
        except BaseException:
            self._dirty |= batch
            raise
        for sid in batch.keys() - found.keys():
            self._dirty.setdefault(sid, batch[sid])
        _measure(began, found)
        self._dirty_since = began if self._dirty else None
        over = []
        for sid, (fields, events) in found.items():
            if not fields and sid not in known:
                log.warning("session=%s is no longer in Redis: its last events are not stored", sid)
                over.append(sid)
            elif events and isinstance(events[-1], Final):
                over.append(sid)
                self._dirty.pop(sid, None)
            elif events:
                await self._advance(sid, batch[sid], events[-1])
                if sid not in self._dirty:
                    self._clean[sid] = batch[sid]
            elif sid in known:
                # Its event came with an earlier batch; or the session is gone: read its fields again to tell.
                batch[sid].session = None
                self._dirty.setdefault(sid, batch[sid])
            elif sid not in self._dirty:
                self._clean[sid] = batch[sid]
        await asyncio.gather(*(self._broker.close_session(sid, self._ttl) for sid in over))
        while len(self._clean) > MAX_REMEMBERED:  # mostly those that another gateway has now
            del self._clean[next(iter(self._clean))]
        return len(found) == len(batch)

    async def _report_unknown(self, sid: str, events: Sequence[Result]) -> None:
        for event in events:
            if isinstance(event, UnknownEvent):
                what = f"event {event.id} of type {event.type!r}: {event.problem or 'this release does not know it'}"
                log.warning("session=%s is stored without %s", sid, what)
                if event.problem:
                    await self._broker.dead_letter(sid, "", f"not stored: {what}")

    async def _advance(self, sid: str, upto: _Flushed, last: Result) -> None:
        """Note that the session's events are stored up to `last`, and trim those that no client can ask for."""
        upto.stored = last.id
        here = (last.id, last.seq)
        if upto.mark is None:
            upto.mark = here
        elif min(last.seq, upto.sent) >= upto.mark[1] + MIN_KEPT_EVENTS:
            await self._broker.trim_events(sid, upto.mark[0])
            upto.mark = here


def _measure(began: float, stored: Mapping[str, tuple[dict[str, str], list[Result]]]) -> None:
    metrics.persist_batch_seconds.observe(time.monotonic() - began)
    now = time.time()
    for sid, (_, events) in stored.items():
        for event in events:
            if event.time:
                metrics.persist_seconds.observe(max(0.0, now - event.time))
            if event.trace is not None:
                gateway_traces.result_stored(sid, event.trace.parent, event.time)
        if events and isinstance(events[-1], Final):
            traces.forget(sid)


def row(sid: str, fields: dict[str, str]) -> dict[str, Any]:
    """Make the row of a session that has begun, of its hash in Redis."""
    return {
        "id": sid,
        "user_id": fields.get("user_id") or None,
        "owner": fields.get("owner") or None,
        "status": "recording",
        "mode": codec.decode_options(fields["options"]).mode,
        "created_at": datetime.fromtimestamp(float(fields["created"]), UTC),
    }


def record(session: dict[str, Any], events: Sequence[Result]) -> Record:
    """Make rows of a session's new durable events.

    Args:
        session: Its row as it began, as `row` made it.
        events: The events, oldest first.
    """
    session, sid = dict(session), session["id"]
    chunks, segments = [], []
    for event in events:
        at = datetime.fromtimestamp(event.time, UTC)
        session |= {"total_duration": event.total, "chunk_count": event.chunk_count}
        if event.model:
            session["model"] = event.model
        if event.language:
            session["language"] = event.language
        match event:
            case ChunkResult():
                chunks.append(_answer(sid, event, at) | _text(event))
            case ErrorEvent(chunk_index=None):
                session |= _error(event)
            case ErrorEvent():
                chunks.append(_answer(sid, event, at) | _error(event))
            case Final():
                session |= {"status": event.status, "final_text": event.text, "completed_at": at}
        segments += [_segment(sid, event.worker, segment) for segment in event.segments]
    return Record(session, chunks, segments)


def _answer(sid: str, event: ChunkResult | ErrorEvent, at: datetime) -> dict[str, Any]:
    return {
        "session_id": sid,
        "chunk_index": event.chunk_index,
        "language": event.language,
        "received_at": event.received,
        "recognised_at": at,
    }


def _text(event: ChunkResult) -> dict[str, Any]:
    return {"text": event.text, "duration": event.duration}


def _error(event: ErrorEvent) -> dict[str, Any]:
    return {"error_code": event.code, "error_message": event.message}


def _segment(sid: str, worker: str, segment: Segment) -> dict[str, Any]:
    return {
        "session_id": sid,
        "number": segment.number,
        "chunk_index": segment.chunk_index,
        "start_time": segment.start,
        "end_time": segment.end,
        "text": segment.text,
        "language": segment.language,
        "confidence": segment.confidence,
        "words": [word.asdict() for word in segment.words] or None,
        "worker": worker,
        "channel": segment.channel,
    }
