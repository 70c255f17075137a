"""How results reach the clients of one gateway: by Pub/Sub, which is fast and may lose some, and then from Redis.

A result that a client has got is measured, and marked to be stored. The final one ends its session here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.errors import Unavailable
from asrserver.gateway.archive import Recordings
from asrserver.gateway.background_tasks import BackgroundTasks
from asrserver.gateway.backlog import Backlog
from asrserver.gateway.persistence import WriteBehind
from asrserver.gateway.session import Session
from asrserver.protocol.events import ErrorEvent, Final, Partial, Result, SpeechStarted
from asrserver.storage.errors import StorageError
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.sessions")

#: Seconds that a recording waits for its session to be stored.
STORED_TIMEOUT = 30.0


class Delivery:
    """Delivers the events of open sessions, the durable ones once and in their order (Session.deliver).

    Attributes:
        keeping: Recordings that are being assembled.
    """

    def __init__(
        self,
        broker: GatewayBroker,
        write_behind: WriteBehind,
        recordings: Recordings | None,
        backlog: Backlog,
        tasks: BackgroundTasks,
        on_final: Callable[[Session, str], None],
    ) -> None:
        """Deliver nothing yet.

        Args:
            broker: Has the events that Pub/Sub has lost.
            write_behind: Stores what was delivered.
            recordings: Assembles the recordings of sessions; None: they are not recorded.
            backlog: Told what is answered.
            tasks: Run what nobody waits for.
            on_final: Called with a session and its status when its final event was delivered.
        """
        self.keeping = 0
        self._broker = broker
        self._write_behind = write_behind
        self._recordings = recordings
        self._backlog = backlog
        self._tasks = tasks
        self._on_final = on_final
        self._audio = metrics.BufferedCounter(metrics.audio_seconds)

    def flush_metrics(self) -> None:
        """Add what was counted to the shared metrics."""
        self._audio.flush()

    def on_published(self, session: Session, event: Result | Partial | SpeechStarted) -> None:
        """Deliver an event that was published; where one before it is missing, all are read from Redis."""
        if session.replaying:
            return  # `replay` reads it, in its order
        if isinstance(event, Partial | SpeechStarted):
            in_order = session.deliver_passing(event)
        elif in_order := session.deliver(event):
            self.note_delivered(session, event)
        if not in_order:
            self.read_soon(session)

    def read_soon(self, session: Session) -> None:
        """Have the events read and delivered that Pub/Sub may have lost."""
        self._tasks.spawn(self.read(session), f"read-missed {session.id}")

    async def read(self, session: Session) -> None:
        """Read and deliver the events that Pub/Sub may have lost; raises Unavailable."""
        events = [] if session.replaying else await self._broker.read_events(session.id, session.last_event)
        for event in events:
            if session.state != "over" and session.deliver_read(event):
                self.note_delivered(session, event)

    async def replay(self, session: Session, events: list[Result], read: Callable[[], Awaitable[None]]) -> None:
        """Deliver the events that the client has not got yet, no faster than it reads them.

        Args:
            session: The session, which was resumed.
            events: Its events that the client has not got, as `Sessions.resume` returned them.
            read: Waits until the client has read what it was sent.
        """
        session.replaying = True
        reached = None
        try:
            while events and reached != session.last_event:
                reached = session.last_event
                for event in events:
                    if session.state != "over" and session.deliver_read(event):  # or it has moved while it waited
                        self.note_delivered(session, event)
                    await read()
                events = await self._broker.read_events(session.id, session.last_event)
        except Unavailable as exc:
            log.warning("session=%s its further events are replayed later: %s", session.id, exc)
        finally:
            session.replaying = False
        if session.state != "over":  # events that were published since the last read were passed over
            self.read_soon(session)

    def note_delivered(self, session: Session, event: Result) -> None:
        """Store and measure an event that the client has got, or need not get; the final one ends the session here."""
        self._write_behind.mark_dirty(session.id, session.sent)
        self._measure(session, event)
        if event.trace is not None and session.trace is not None:
            session.trace.delivered(event.trace.parent, event.trace.entry, event.time)
        if isinstance(event, Final):
            self._on_final(session, event.status)
            if self._recordings is not None:
                self.keeping += 1  # now: a shutdown that looks before the task has begun must wait for it
                keep = self._keep_recording(self._recordings, session.id, event.chunk_count)
                self._tasks.spawn(keep, f"keep-recording {session.id}")

    def _measure(self, session: Session, event: Result) -> None:
        waited = None
        if event.chunk_index is not None:
            waited = self._backlog.answered(session.id, event.chunk_index, event.cost)
        if waited is not None:
            metrics.answer_seconds.observe(waited)
            metrics.publish_seconds.observe(max(0.0, time.time() - event.time))
        if waited is not None or isinstance(event, Final):
            self._audio.value += self._backlog.heard(session.id, event.cost)
        if isinstance(event, ErrorEvent):
            metrics.count_refusal(event.code)

    async def _keep_recording(self, recordings: Recordings, sid: str, chunks: int) -> None:
        try:
            await self._write_behind.wait_flushed(sid, STORED_TIMEOUT)
            await recordings.assemble(sid, chunks)
        except (StorageError, Unavailable) as exc:
            log.warning("session=%s its recording is assembled later: %s", sid, exc)
        finally:
            self.keeping -= 1
