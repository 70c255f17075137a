"""A file as a session of the gateway: its bytes go in as they come, its text comes out.

So a file has what every session has: limits, persistence, failover, a place in the history. It is sent as a stream, a
few seconds ahead of its recognition. So neither the gateway nor Redis ever holds much of it, and little is left to do
when it is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from asrserver.errors import AsrError, AudioError, Refused, Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.session import Session
from asrserver.process.aio import Notifier
from asrserver.protocol.events import (
    ChunkResult,
    ErrorEvent,
    Final,
    Lost,
    Received,
    Refusal,
    Segment,
    SegmentResult,
    SessionEvent,
)
from asrserver.protocol.options import Start
from asrserver.text.words import join

log = logging.getLogger("asrserver.rest")

#: Seconds that Redis may take for a submitted file: longer than the broker tries (broker/pipeline.py).
STORED_SECONDS = 60.0

#: Seconds between two lines in the log that say how far a long file is.
REPORT_SECONDS = 30.0


class FileSession:
    """Transcribes one file.

    Args:
        gateway: The gateway.
        start: The session: in mode stream with format file; or in mode chunk, if the file is to be one chunk.
        owner: Id of the API key that it belongs to; empty where there are no keys.
        changed: Notified when there are more segments.

    Attributes:
        segments: Those that are final, in order.
        changed: As above.
    """

    def __init__(self, gateway: Gateway, start: Start, owner: str, changed: Notifier | None = None) -> None:
        self.segments: list[Segment] = []
        self.changed = Notifier() if changed is None else changed
        self._gateway = gateway
        self._start = start
        self._owner = owner
        self._over: asyncio.Future[Final] = asyncio.get_running_loop().create_future()
        self._damage: ErrorEvent | None = None
        self._reported = time.monotonic()

    async def run(self, pieces: AsyncIterator[bytes]) -> Final:
        """Recognise the file whose bytes these are. Cancelling it cancels the session.

        Returns:
            The session's final event.

        Raises:
            AudioError: It cannot be decoded.
            Refused: A limit is reached.
            Unavailable: Not now; the same request may succeed later.
            AsrError: recognition_failed.
        """
        session = await self._open()
        feeding = asyncio.create_task(self._feed(session, pieces), name=f"feed {session.id}")
        try:
            return await self._over
        finally:
            feeding.cancel()
            self._gateway.cancel(session)

    async def submit(self, pieces: AsyncIterator[bytes]) -> str:
        """Submit the file, which must be one chunk: return when Redis has it. Its text will be in the history.

        Returns:
            The id of its session.

        Raises:
            Refused: A limit is reached.
            Unavailable: Not now; the same request may succeed later.
        """
        session = await self._open()
        # Its outcome counts as retrieved, or asyncio would log that nobody asked for it.
        self._over.add_done_callback(lambda over: over.cancelled() or over.exception())
        submitted = False
        try:
            async for piece in pieces:
                wait = self._gateway.offer(session, piece).wait
                if wait is not None:
                    asyncio.ensure_future(wait).cancel()  # it matters only if more audio follows
            self._gateway.finish(session)
            if not await self.changed.wait_for(lambda: not session.in_flight or self._over.done(), STORED_SECONDS):
                raise Unavailable("broker_unavailable", "Redis did not take the file in time")
            if session.in_flight:
                self._over.result()
            submitted = True
        finally:
            if submitted:
                self._gateway.abandon(session)
            else:
                self._gateway.cancel(session)
        return session.id

    async def _open(self) -> Session:
        starting = asyncio.ensure_future(self._gateway.start(self._start, self._on_event, self._owner))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._cancel)  # it may be in Redis already, and must be ended there
            raise

    def _cancel(self, starting: asyncio.Future[Session]) -> None:
        if not starting.cancelled() and starting.exception() is None:
            self._gateway.cancel(starting.result())

    async def follow(self, job: asyncio.Task[Final], idle: float) -> AsyncIterator[Segment | None]:
        """Yield the segments as they become final, until `job`, which runs this, is done.

        After each `idle` seconds without a segment None is yielded.
        """
        told = 0
        job.add_done_callback(lambda _: self.changed.notify())
        while True:
            ended = job.done()
            while told < len(self.segments):
                told += 1
                yield self.segments[told - 1]
            if ended:
                return
            if not job.done() and not await self.changed.wait(idle):
                yield None

    def record(self) -> dict[str, Any]:
        """Return the text so far with its segments, as text/subtitles.py takes a session."""
        segments = self.in_order
        text = join([(one.text, one.language) for one in segments])
        return {"text": text, "segments": [segment.asdict() for segment in segments]}

    @property
    def in_order(self) -> list[Segment]:
        """The segments in the order in which they begin: those of a channel may be final before earlier ones of
        another."""
        return sorted(self.segments, key=lambda segment: segment.start)

    async def _feed(self, session: Session, pieces: AsyncIterator[bytes]) -> None:
        try:
            async for piece in pieces:
                wait = self._gateway.offer(session, piece).wait
                while wait is not None and not await wait:
                    wait = self._gateway.room_for(session)
            self._gateway.finish(session)
        except AsrError as exc:
            self._fail(exc)
        except Exception as exc:
            log.exception("session=%s the upload could not be read", session.id)
            self._fail(AsrError("recognition_failed", f"the file could not be read: {type(exc).__name__}"))

    def _on_event(self, event: SessionEvent) -> None:
        match event:
            case Received():
                self.changed.notify()
            case SegmentResult() | ChunkResult():
                self.segments += event.segments
                self.changed.notify()
                self._report(event)
            case ErrorEvent(code="undecodable_audio"):  # the rest may be intact
                self._damage = self._damage or event
            case ErrorEvent(code="recognition_failed" | "model_unavailable"):
                self._fail(AsrError(event.code, event.message))
            case ErrorEvent():
                self._fail(AudioError(event.code, event.message))
            case Lost():
                self._fail(Unavailable(event.code, event.message, event.retry_after or 2.0))
            case Refusal():
                self._fail(Refused(408, event.code, event.message))
            case Final():
                self._finish(event)

    def _finish(self, event: Final) -> None:
        if self._damage is not None and not event.total:
            self._fail(AudioError(self._damage.code, self._damage.message))
        elif event.status != "done":
            self._fail(Unavailable("session_gone", "the session was interrupted: try again"))
        elif not self._over.done():
            if self._damage is not None:
                log.info("session=%s its file is damaged: %s", event.session_id, self._damage.message)
            self._over.set_result(event)

    def _fail(self, error: AsrError) -> None:
        if not self._over.done():
            self._over.set_exception(error)
            self.changed.notify()

    def _report(self, event: SegmentResult | ChunkResult) -> None:
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            log.info("session=%s %.0f s of the file are recognised", event.session_id, event.total)
