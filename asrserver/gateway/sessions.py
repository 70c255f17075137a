"""The open sessions of one gateway: started, resumed, handed over, and ended.

The Gateway decides whether a session may start, the Intake takes its audio, and the Delivery gives its client the
results. Everything else that happens to an open session is decided here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from itertools import chain

from asrserver.auth.access import Access
from asrserver.broker.gateway_side import ChunksMissing, GatewayBroker
from asrserver.broker.pipeline import RETRY_SECONDS
from asrserver.config import Settings
from asrserver.errors import AsrError, BadRequest, Unavailable
from asrserver.gateway.admission import Admission
from asrserver.gateway.archive import Recordings
from asrserver.gateway.background_tasks import BackgroundTasks
from asrserver.gateway.backlog import Backlog
from asrserver.gateway.delivery import Delivery
from asrserver.gateway.load_shedding import LoadShedder
from asrserver.gateway.persistence import WriteBehind
from asrserver.gateway.session import Send, Session
from asrserver.process.aio import until
from asrserver.protocol import codec
from asrserver.protocol.events import Moved, Progress, Published, Result
from asrserver.protocol.options import Resume, Start
from asrserver.storage.errors import StorageError
from asrserver.storage.storage import Storage
from asrserver.telemetry import gateway_traces, metrics

log = logging.getLogger("asrserver.sessions")

#: Seconds between searches for missed events: Pub/Sub is the fast path and may lose events.
REPAIR_EVERY = 2.0

#: Seconds that PostgreSQL may take to say whether an id is in use.
KNOWN_TIMEOUT = 2.0


class Sessions(Mapping[str, Session]):
    """The sessions that this gateway holds, by id.

    Attributes:
        backlog: Their audio that has no result yet.
        shedder: Decides what is refused while too much audio waits in the whole system.
        delivery: Gives events to their clients.
        grace: Seconds from now to the deadline after which another gateway may adopt a session with a client. A gateway
            that cannot reach Redis tells its clients after RETRY_SECONDS; then they have time to resume elsewhere.
    """

    def __init__(
        self,
        settings: Settings,
        access: Access,
        broker: GatewayBroker,
        storage: Storage,
        write_behind: WriteBehind,
        recordings: Recordings,
        admission: Admission,
        tasks: BackgroundTasks,
    ) -> None:
        self.backlog = Backlog()
        self.shedder = LoadShedder(settings, access, self.backlog)
        self.grace = RETRY_SECONDS + settings.resume_timeout
        self._settings = settings
        self._broker = broker
        self._now = broker.clock.now
        self._storage = storage
        self._write_behind = write_behind
        self._recordings = recordings
        self._admission = admission
        self._tasks = tasks
        self._open: dict[str, Session] = {}
        self._starting: dict[str, str] = {}  # id → owner of sessions that were admitted and are not open yet
        recorded = recordings if settings.save_audio else None
        self.delivery = Delivery(broker, write_behind, recorded, self.backlog, tasks, self._over)

    def __getitem__(self, sid: str) -> Session:
        return self._open[sid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def flush_metrics(self) -> None:
        """Set the gauges, and add what was counted to the shared metrics."""
        metrics.sessions.set(len(self._open))
        metrics.backlog.set(self.backlog.seconds)
        metrics.oldest_waiting.set(self.backlog.oldest)
        self.delivery.flush_metrics()

    # -- for clients -------------------------------------------------------------------------------------------------

    async def start(self, asked: Start, send: Send, owner: str, siblings: int) -> Session:
        """Open a session.

        Args:
            asked: What the client asks for. An id of its own choice is looked up in PostgreSQL too: Redis may have
                forgotten it.
            send: Where the session's events go.
            owner: The id of its API key; empty where there are no keys.
            siblings: Other sessions of its connection.

        Raises:
            BadRequest: The id is in use, or its model is offered no more.
            Refused: A limit is reached.
            Unavailable: Redis does not answer.
        """
        sid = asked.session_id or str(uuid.uuid4())
        exists = BadRequest("session_exists", "session_id is already in use", session_id=sid)
        if sid in self._open or sid in self._starting:
            raise exists
        self.check_start(siblings, owner)  # before anything is awaited: what this gateway refuses costs no query
        self._starting[sid] = owner
        try:
            if asked.session_id and await self._stored(sid):
                raise exists
            await self._admission.start(sid, owner)
            session = Session(sid, asked.user_id, asked.options, send, owner)
            session.named, session.resumable = bool(asked.session_id), asked.resumable
            self._open[sid] = session  # before its first result can come
        finally:
            del self._starting[sid]
        created = False
        try:
            created = await self._create(session)
        finally:
            if not created and self._open.get(sid) is session:  # or it was resumed here meanwhile
                del self._open[sid]
                self._admission.ended(sid, owner)
                session.end_trace("not_started")
        if not created:
            raise exists
        self._write_behind.mark_dirty(sid)
        self.backlog.started(sid)
        metrics.sessions_started.inc()
        log.info("session=%s open mode=%s key=%s", sid, asked.options.mode, owner or "-")
        return session

    def check_start(self, siblings: int, owner: str) -> None:
        """Check the limits of this gateway for one more session; see `start`. Sessions that are being started count."""
        used = len(self._open) + len(self._starting)
        self._admission.limits.start(siblings, used)
        owners = chain(self._starting.values(), (session.owner for session in self._open.values()))
        self._admission.leave_room("max_sessions", owner, used, lambda: list(owners).count(owner))
        self.shedder.check_start(owner)

    async def _create(self, session: Session) -> bool:
        """Create the session in Redis; False if the id is in use there."""
        traced = session.trace = gateway_traces.start_session(session.id, mode=session.options.mode, key=session.owner)
        fields = {
            **({} if traced is None else {"trace": traced.parent}),
            "gateway": self._broker.name,
            "user_id": session.user_id,
            "owner": session.owner,
            "weight": f"{self.shedder.share(session.owner).weight:g}",
            "created": f"{time.time():.3f}",
            "options": codec.encode_options(session.options),
        }
        nonce, deadline, model = secrets.token_hex(8), self._now() + self.grace, session.options.model
        created = await self._broker.open_session(session.id, nonce, fields, deadline, model, session.named)
        if created and traced is not None:
            traced.started()
        return created

    async def _stored(self, sid: str) -> bool:
        try:
            async with asyncio.timeout(KNOWN_TIMEOUT):
                return await self._storage.known(sid)
        except (StorageError, TimeoutError):
            return False  # sessions can start without PostgreSQL: Redis refuses the ids that it knows

    async def resume(self, asked: Resume, send: Send, owner: str) -> tuple[Session, list[Result]]:
        """Take a session over from wherever it was.

        Args:
            asked: The session, and what its client has of it.
            send: Where its events go from now on. A connection that held it, half-open perhaps, is told that it moved.
            owner: Id of the API key that must own it; empty where there are no keys.

        Returns:
            The session, and the events that its client has not got, for Delivery.replay after the acknowledgement.

        Raises:
            BadRequest: There is no such session, or its client claims to have more than there is.
            Unavailable: Redis is away.
        """
        sid, last_seq = asked.session_id, asked.last_seq
        unknown = BadRequest("no_session", "there is no such session to resume", session_id=sid)
        before = self._open.get(sid)
        if asked.adopted and before is not None:
            if before.send is not None:  # a client is connected to it
                raise unknown
            last_seq = before.sent
        detached = asked.adopted and before is None  # what is here is known to be
        try:
            with nullcontext() if before is None else before.while_resuming():
                deadline = self._now() + self.grace
                fields = await self._broker.resume_session(sid, deadline, owner, detached, last_seq)
                if fields is None:
                    raise unknown
                events = await self._broker.read_events(sid)
                # Up to here `before` is unchanged, and stays so if the client is refused.
                session = Session.resumed(sid, codec.decode_options(fields["options"]), fields, events, last_seq, send)
        except (ValueError, KeyError) as exc:  # another program wrote there
            log.error("session=%s its keys in Redis are damaged: %s: %s", sid, type(exc).__name__, exc)
            raise BadRequest("session_gone", "the session's data is damaged", session_id=sid) from None
        before = self._open.get(sid)  # it may be another one by now, or none
        if before is not None:
            _supersede(before, session)
        if session.state != "over":
            session.trace = gateway_traces.resume_session(sid, fields)
            self._open[sid] = session
            if events:
                self.backlog.restore(sid, events[-1].cost, session.pcm_rate, session.live, owner)
        elif before is not None:  # its final event was not delivered here, and its client has it already
            self.delivery.note_delivered(before, events[-1])
        self._write_behind.mark_dirty(sid)
        log.info("session=%s resumed state=%s next_chunk=%d", sid, session.state, session.order.next_index)
        return session, [event for event in events if event.seq > last_seq]

    def flush(self, session: Session) -> int:
        """Have all audio so far recognised without waiting for a pause; a Flushed event follows.

        Returns:
            The number of that event.

        Raises:
            BadRequest, Refused: See Session.flush.
        """
        number = session.flush()
        flushed = self._broker.flush_session(session.id, number, session.order.last)
        self._tasks.spawn(flushed, f"flush {session.id}")
        return number

    def finish(self, session: Session) -> None:
        """End the audio of a session, as its client asks; its final event follows.

        Raises:
            BadRequest: It was ended before.
        """
        session.require_recording()
        session.acknowledge()
        session.resume_by = None  # the client may be gone by now, but has sent all that it wanted to send
        status = "interrupted" if session.order.missing.is_certain else "done"
        self.end(session, status, last=session.order.last)

    def save_missing(self, sessions: Collection[Session]) -> None:
        """Have Redis know what is missing of sessions before the next `repair`: they may be resumed elsewhere."""
        if sessions:
            self._tasks.spawn(self._refresh({session.id: session for session in sessions}), "save-missing")

    def abandon(self, session: Session) -> None:
        """Note that the client is gone: the session waits for it to resume, and is ended after `resume_timeout`."""
        session.send = None
        if session.state == "recording" and session.resume_by is None:
            session.resume_by = time.monotonic() + self._settings.resume_timeout
            log.info("session=%s waits for its client to resume", session.id)
            self._broker.detach_session(session.id)
            self._tasks.spawn(self._refresh({session.id: session}), f"refresh {session.id}")

    # -- events ------------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read the events that were published while the subscription was lost."""
        for session in self._open.values():
            self.delivery.read_soon(session)

    def on_event(self, event: Published) -> None:
        """Handle an event that a worker, or another gateway, published to this gateway."""
        session = self._open.get(event.session_id)
        if session is None:
            return  # another gateway holds it, or its final event was delivered
        if isinstance(event, Moved):
            if event.move > session.move:  # else it is from before the session came back
                self._lost(session, "ended" if event.ended else "moved")
        elif isinstance(event, Progress):
            self.backlog.progressed(session.id, event.taken, event.cost)
        else:
            self.delivery.on_published(session, event)

    # -- among gateways ----------------------------------------------------------------------------------------------

    async def repair(self) -> None:
        """Renew the deadlines of all sessions, end those not resumed in time, and read events that Pub/Sub has lost."""
        await self._refresh(dict(self._open))
        for session in list(self._open.values()):
            if session.state == "recording" and session.seconds_to_resume(math.inf) < 0:
                log.info("session=%s was not resumed in time", session.id)
                self.end(session, "interrupted")
        now = time.monotonic()
        owed = [s for s in self._open.values() if s.owed and now - s.heard >= REPAIR_EVERY]
        await asyncio.gather(*(self.delivery.read(session) for session in owed))

    def add_ended(self, session: Session) -> None:
        """Add a session of a dead gateway that was ended in Redis: its last results come here."""
        session.state = "finishing"
        self._open[session.id] = session

    async def hand_over(self, timeout: float) -> None:
        """Leave the open sessions to other gateways, or to the next start of this one. No client is connected any more.

        Sessions whose clients may resume keep their deadlines. Those that only wait for their last results may be
        adopted at once.
        """
        now = self._now()
        deadlines = {sid: now + session.seconds_to_resume(0.0) for sid, session in self._open.items()}
        missing = _missing(self._open)
        left, self._open = self._open, {}
        try:
            async with asyncio.timeout(timeout):
                await self._broker.refresh(deadlines, missing)
                await until(lambda: self._write_behind.is_flushed() and not self.delivery.keeping, timeout)
        except (TimeoutError, Unavailable) as exc:
            log.warning("not all sessions are stored, another gateway will store them: %s", exc or "timeout")
        for session in left.values():
            _log_end(session, "left for resume" if session.state == "recording" else "left to be stored")

    async def _refresh(self, sessions: dict[str, Session]) -> dict[str, str]:
        """Renew the deadlines of these sessions; give up, and return, those that another gateway holds."""
        now = self._now()
        deadlines = {sid: now + session.seconds_to_resume(self.grace) for sid, session in sessions.items()}
        lost = await self._broker.refresh(deadlines, _missing(sessions))
        for sid, state in lost.items():
            if self._open.get(sid) is sessions[sid]:
                self._lost(sessions[sid], state)
        return lost

    def _lost(self, session: Session, state: str) -> None:
        """Give up a session that this gateway no longer holds; `state` is moved, ended or gone."""
        if state == "ended":
            session.state = "finishing"  # by another gateway; `repair` reads its results
            self.backlog.closed(session.id)
            return
        if state == "gone":
            session.leave(Unavailable("session_gone", "the session is over"))
            self._write_behind.mark_dirty(session.id)
        else:
            session.leave(Unavailable("session_moved", "the session was resumed elsewhere"))
        self._over(session, state)

    # -- ends --------------------------------------------------------------------------------------------------------

    def end(self, session: Session, status: str, last: int | None = None) -> None:
        """Accept no more audio; the final event follows.

        Args:
            session: The session.
            status: done or interrupted.
            last: The index of its last chunk, if the client has ended it: without that chunk it is not ended, and the
                client may resume.
        """
        session.state = "finishing"
        self.backlog.closed(session.id)
        self._tasks.spawn(self._end_in_order(session, status, last), f"end {session.id}")

    async def _end_in_order(self, session: Session, status: str, last: int | None) -> None:
        """End a session in Redis, after all its chunks: through the same pipeline.

        It is tried until it is done, or the session is another gateway's, or goes on here as another object: its client
        is back, and was told that the session takes audio.
        """
        while session.state == "finishing":
            try:
                now = self._now()
                overdue = None if session.resume_by is None else now  # a client that was awaited may just have come
                if await self._broker.end_session(session.id, status, now + self.grace, overdue=overdue, last=last):
                    session.resume_by = None
                    return
                # Another gateway holds it; or the clock went back since the deadline was set: then try again.
                if await self._refresh({session.id: session}):
                    return
            except ChunksMissing:  # `give_up` has told the client, which may resume and send what is missing
                session.state = "recording"
                self.abandon(session)
                return
            except Unavailable as exc:
                # No other gateway does it: each `repair` renews the deadline after which one would.
                log.warning("session=%s cannot be ended yet: %s", session.id, exc)
            await asyncio.sleep(REPAIR_EVERY)

    def give_up(self, session: Session, index: int, error: Exception) -> None:
        """Give up a session here: a chunk could not be written, nor can those after it. The client may resume at it."""
        if session.failed is not None or self._open.get(session.id) is not session:
            return
        reason = error if isinstance(error, AsrError) else Unavailable("broker_error", "the chunk was refused", 5.0)
        log.error("session=%s chunk=%d could not be written: %s", session.id, index, error)
        session.failed = reason
        if (last := session.order.last) is not None:
            session.order.missing.refuse(last)  # and with it all before that Redis does not have: order is kept
        session.leave(reason, chunk_index=index, resumable=reason.code.startswith("broker_"))
        if reason.code == "session_moved":
            self._over(session, "moved")
        else:
            self.abandon(session)

    def _over(self, session: Session, how: str) -> None:
        self._open.pop(session.id, None)
        session.state = "over"
        self.backlog.over(session.id)
        self._recordings.release(session.id, how not in ("moved", "gone"))
        self._admission.ended(session.id, session.owner)
        _log_end(session, how)


def _supersede(before: Session, session: Session) -> None:
    """End a session here that goes on as another object, on the connection of the client that has resumed it."""
    if before.send == session.send:
        before.send = None  # it is resumed on its own connection
    before.leave(Unavailable("session_moved", "the session was resumed elsewhere"))
    if session.state != "over":
        before.state = "over"  # messages of its connection that still wait are not for it
    before.end_trace("resumed")
    session.rate_meter = before.rate_meter
    if before.move + 1 == session.move:  # no other gateway had it meanwhile: `before` knows more than Redis
        session.order.missing.restore(str(before.order.missing), session.order.last)


def _missing(sessions: Mapping[str, Session]) -> dict[str, str]:
    """The field `missing` of those of the sessions that have it."""
    return {sid: str(missing) for sid, session in sessions.items() if (missing := session.order.missing)}


def _log_end(session: Session, how: str) -> None:
    metrics.sessions_ended.labels(how).inc()
    log.info("session=%s over status=%s %s", session.id, how, session.summary())
    session.end_trace(how)
