"""Takes clients' audio and passes it to Redis: order, limits and back-pressure are decided in one place.

Order         a chunk is the next of its session, one that came before, or one that was refused (ChunkOrder)
Limits        its size, the session's length and speed, the key's audio a minute (Admission.chunk)
Back-pressure whether more may be read before Redis and the workers have caught up (RoomGate.for_audio)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.errors import BadRequest, Refused
from asrserver.gateway.admission import Admission
from asrserver.gateway.archive import Recordings
from asrserver.gateway.held_bytes import LARGE_BYTES, HeldBytes
from asrserver.gateway.room import RoomGate
from asrserver.gateway.session import Session
from asrserver.gateway.sessions import Sessions
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.sessions")

#: This many copies of one chunk in a row mean, most likely, that the client gives all its chunks the same index.
SUSPICIOUS_COPIES = 10


@dataclass(frozen=True, slots=True)
class Accepted:
    """The audio was accepted; its acknowledgement follows when Redis has it.

    Attributes:
        wait: What to wait for before more of the connection is read; None: more may come.
    """

    wait: Awaitable[bool] | None


#: Accepted, and more may be read.
ACCEPTED = Accepted(None)


class Intake:
    """Takes the audio of one gateway's sessions.

    Args:
        broker: Where it goes.
        recordings: Gets each chunk that Redis has.
        admission: The limits.
        sessions: Ends a session that is too long, or whose chunk could not be written.
        room: The back-pressure.
        held: Counts the large chunks that are on their way to Redis.
    """

    def __init__(
        self,
        broker: GatewayBroker,
        recordings: Recordings,
        admission: Admission,
        sessions: Sessions,
        room: RoomGate,
        held: HeldBytes,
    ) -> None:
        self._broker = broker
        self._recordings = recordings
        self._admission = admission
        self._sessions = sessions
        self._backlog = sessions.backlog
        self._backlog.on_shorter = self._refund
        self._room = room
        self._held = held
        self._chunks = metrics.BufferedCounter(metrics.chunks)
        self._copies = metrics.BufferedCounter(metrics.duplicate_chunks)
        self._bytes = metrics.BufferedCounter(metrics.received_bytes)
        self._enqueued = metrics.BufferedHistogram(metrics.enqueue_seconds)

    def flush_metrics(self) -> None:
        """Add what was counted to the shared metrics."""
        for buffer in (self._chunks, self._copies, self._bytes, self._enqueued):
            buffer.flush()

    def offer(self, session: Session, data: bytes, index: Any = None) -> Accepted:
        """Take one chunk.

        Args:
            session: Its session.
            data: The audio.
            index: `chunk_index` as the client sent it; None: the next.

        Returns:
            That it was accepted. A copy of an accepted chunk is acknowledged again, and dropped.

        Raises:
            BadRequest: It is empty or out of order, or the session takes no more audio.
            Refused: A limit is reached.
        """
        if not data:
            where = session.order.where(index)
            session.order.refuse(where.get("chunk_index"))
            raise BadRequest("empty_chunk", "the chunk has no audio", **where)
        sent, (index, fresh) = index, session.check_chunk(index)
        if not fresh:
            self._repeat(session, index)
            return self._accepted(session)
        missing = session.order.missing
        try:
            self._admit(session, index, data)
        except Refused:
            is_first = not missing.is_certain
            session.order.refuse(index)
            missing.refuse(sent, data)
            if is_first:
                self._sessions.save_missing([session])
            raise
        if missing.is_awaited:
            missing.accept(sent, index, data)
            if missing.lost or not missing:
                self._sessions.save_missing([session])
        self._append(session, index, [data])
        return self._accepted(session)

    def offer_run(self, session: Session, pieces: list[bytes], index: int | None = None) -> Accepted | None:
        """Take the next chunks of a session whose chunks may be joined.

        Args:
            session: Their session.
            pieces: The audio of each.
            index: The index of the first one; None: the next.

        Returns:
            That all were accepted; or None, and nothing was done: they are out of order, or come near a limit. Then
            each must be offered by itself, so that those within the limit are accepted.
        """
        largest = max(map(len, pieces))
        if not all(pieces) or largest > LARGE_BYTES:
            return None
        if session.state != "recording" or not session.order.follows(index, len(pieces)):
            return None
        seconds, length = self._backlog.measure(
            session.id, pieces[0], sum(map(len, pieces)), session.pcm_rate, session.options.separate
        )
        try:
            self._admission.chunk(session, largest, seconds, length + seconds)
        except Refused:
            return None
        self._append(session, session.order.next_index, pieces)
        return self._accepted(session)

    def refuse_unread(self, sessions: Collection[Session], index: int | None = None, certain: bool = False) -> None:
        """Note that a message was refused unread, which may have been the next chunk of one of these sessions.

        Args:
            sessions: The sessions.
            index: The chunk's index, as far as it could be read.
            certain: Whether it can only have been a chunk of one of these sessions.
        """
        changed = []
        for session in sessions:
            missing = session.order.missing
            before = missing.is_certain if certain else bool(missing)
            session.order.refuse_unread(index, certain)
            if missing and not before:
                changed.append(session)
        self._sessions.save_missing(changed)

    def _accepted(self, session: Session) -> Accepted:
        wait = self._room.for_audio(session)
        return ACCEPTED if wait is None else Accepted(wait)

    def _admit(self, session: Session, index: int, data: bytes) -> None:
        """Check the limits for a chunk; a session that is too long is ended. Raises Refused."""
        seconds, length = self._backlog.measure(session.id, data, len(data), session.pcm_rate, session.options.separate)
        try:
            self._room.check_large(session.owner, len(data))
            self._admission.chunk(session, len(data), seconds, length)
        except Refused as exc:
            exc.details |= session.order.where(index)
            if exc.code == "session_too_long":
                self._sessions.end(session, "interrupted")
            raise

    def _append(self, session: Session, index: int, pieces: list[bytes]) -> None:
        """Write chunks to Redis, in one entry if they are several."""
        before, count, size = session.order.last, len(pieces), sum(map(len, pieces))
        session.appending(index, count, size)
        if size > LARGE_BYTES:
            self._held.add(session.owner, size)
        self._backlog.taken(
            session.id,
            index + count - 1,
            pieces[0],
            size,
            session.pcm_rate,
            session.live,
            session.owner,
            session.options.separate,
        )
        done = partial(self._appended, session, index, pieces, size, time.monotonic())
        self._broker.append(session.id, index, before, pieces, session.joinable, done)

    def _appended(
        self, session: Session, index: int, pieces: list[bytes], size: int, taken: float, error: Exception | None
    ) -> None:
        """Go on when Redis has the chunks, or has refused them."""
        if size > LARGE_BYTES:
            self._held.add(session.owner, -size)
        if error is not None:
            self._sessions.give_up(session, index, error)
            return
        count, waited = len(pieces), time.monotonic() - taken
        self._enqueued.observe(waited, count)
        self._chunks.value += count
        self._bytes.value += size
        if session.trace is not None:
            session.trace.appended(index + count - 1, taken)
        self._recordings.record(session.id, index, pieces, session.options)
        if session.appended(index, size, count):
            # Chunks that share the entry are reported in the same turn of the loop, and acknowledged together.
            asyncio.get_running_loop().call_later(max(0.0, session.ack_interval - waited), session.acknowledge)

    def _refund(self, sid: str, seconds: float) -> None:
        """Take back audio that was counted, but was shorter than its bytes suggested."""
        with suppress(KeyError):  # the session may be over
            meter = self._sessions[sid].rate_meter
            if meter is not None:
                meter.refund(seconds)

    def _repeat(self, session: Session, index: int) -> None:
        """Acknowledge a copy of a chunk, now or with the chunk itself."""
        copies = session.repeat(index)
        self._copies.value += 1
        if copies == SUSPICIOUS_COPIES:
            log.warning(
                "session=%s chunk=%d came %d times more: is chunk_index the same for all?", session.id, index, copies
            )
