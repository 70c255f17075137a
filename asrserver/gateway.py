"""The gateway's sessions: opened, fed, delivered to, repaired, ended and stored.

Handlers translate a protocol into calls of `Gateway` and its events back; what is decided is decided here.
Redis and SQL are known only through their owners.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import orjson

from asrserver import metrics
from asrserver.access import Access, Key
from asrserver.admission import Admission
from asrserver.backlog import Backlog
from asrserver.broker import HEARTBEAT_EVERY, Broker
from asrserver.broker.quota import KEEP_EVERY
from asrserver.config import Settings
from asrserver.errors import AsrError, BadRequest, Refused, SettingError, Unavailable
from asrserver.recorder import Recorder
from asrserver.recordings import Recordings
from asrserver.session import Options, Session, valid_id
from asrserver.storage import Storage, StorageError
from asrserver.waiting import until

log = logging.getLogger("asrserver.gateway")

#: Seconds after which a session whose gateway is silent may be ended by another gateway; or the time that a client has
#: to resume, if that is longer.
GRACE = 30.0

#: Seconds between looks at sessions that are owed a result: Pub/Sub is the fast path and may lose.
REPAIR_EVERY = 2.0

#: Seconds between sweeps for sessions of dead gateways, and after which Redis is back for long enough: while it was
#: away, no gateway could put off the deadlines of its sessions.
SWEEP_EVERY = 5.0

#: Seconds between housekeepings, and for how long a deleted session is remembered.
TIDY_EVERY = 60.0
REMEMBERED = 30 * 86400.0

#: Seconds that a request of REST waits for Redis.
ANSWER = 5.0

#: How full Redis may be before new sessions wait, and before audio does; the rest is for events and heartbeats.
FULL_FOR_SESSIONS = 0.8
FULL_FOR_AUDIO = 0.9

#: Bytes on their way to Redis at which sockets are no longer read.
MAX_IN_FLIGHT = 16 * 2**20

#: Seconds between looks whether the file of keys has changed.
KEYS_EVERY = 1.0

#: Seconds between looks at idle sessions, and at what the keys of open ones have spent.
WATCH_EVERY = 1.0

#: Longest that one message waits for room, in seconds; below any sensible ping timeout, for pongs wait with it.
MAX_WAIT = 8.0

Event = dict[str, Any]
Send = Callable[[Event], None]


class Gateway:
    """All that one gateway process does for its sessions. `alive` is called as a sign of life for the supervisor."""

    def __init__(self, settings: Settings, alive: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.access = Access(settings.keys_file, settings.api_keys, settings.allowed_origins, settings.trusted_proxies)
        self.broker = Broker(settings.redis, self.name)
        self.storage = Storage(settings.database)
        self.recorder = Recorder(self.broker, self.storage, settings.session_ttl)
        self.recordings = Recordings(settings, self.name, self.broker, self.storage)
        self.sessions: dict[str, Session] = {}
        self._keeping = 0  # recordings being put together
        self.backlog = Backlog()
        self._chunks = metrics.Flow(metrics.chunks)
        self._bytes = metrics.Flow(metrics.received_bytes)
        self._audio = metrics.Flow(metrics.audio_seconds)
        self.admission = Admission(settings, self.access, self.broker.quota, self.name)
        self.connections = 0
        self.closing = False
        self._alive = alive
        self._grace = max(GRACE, settings.resume_timeout)
        self._fullness = 0.0
        self._backlog_elsewhere = 0.0  # seconds of audio that other gateways wait for
        self._languages: frozenset[str] = frozenset()
        self._tasks: list[asyncio.Task[None]] = []
        self._once: set[asyncio.Task[Any]] = set()
        self._subscribed = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; returns when results can be received. PostgreSQL may come later. Raises Unavailable."""
        await self.broker.open()
        self._tasks = [
            self._forever(self.broker.subscribe(self._on_event, self._on_subscribed)),
            self._forever(self.recorder.run()),
            self._every(min(HEARTBEAT_EVERY, self.settings.hang_timeout / 4), self._live),
            self._every(HEARTBEAT_EVERY, self._beat),
            self._every(REPAIR_EVERY, self._repair),
            self._every(SWEEP_EVERY, self._sweep),
            self._every(KEYS_EVERY, self._reread_keys),
            self._every(TIDY_EVERY, self._tidy),
            self._every(KEEP_EVERY, self._keep_shares),
            self._every(WATCH_EVERY, self._watch),
        ]
        async with asyncio.timeout(10):
            await self._subscribed.wait()
        try:
            await self.storage.open()
        except StorageError as exc:
            log.warning("PostgreSQL is not there yet, sessions will be stored later: %s", exc)

    async def drain(self, timeout: float) -> None:
        """Let the sessions end whose clients are here, for at most `timeout` seconds: not every client can resume."""
        await until(lambda: all(session.send is None for session in self.sessions.values()), timeout)

    async def hand_over(self, timeout: float) -> None:
        """Leave what is still open to other gateways, or to the next start; nobody is connected any more.

        Clients may resume for as long as they were promised. What only waits for its last results is anybody's now.
        """
        now = time.time()
        deadlines = {sid: session.resume_by or now for sid, session in self.sessions.items()}
        left, self.sessions = self.sessions, {}
        try:
            async with asyncio.timeout(timeout):
                await self.broker.refresh(deadlines)
                await until(lambda: self.recorder.settled() and not self._keeping, timeout)
        except (TimeoutError, Unavailable) as exc:
            log.warning("not all is stored, another gateway will do it: %s", exc or "too slow")
        for session in left.values():
            self._log_end(session, "left for resume" if session.state == "recording" else "left to be stored")

    async def close(self) -> None:
        self._share_metrics()
        for task in (*self._tasks, *self._once):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._once, return_exceptions=True)
        with contextlib.suppress(Unavailable):
            await self.broker.forget("gateway")
        await self.broker.close()
        await self.storage.close()
        await asyncio.get_running_loop().run_in_executor(None, self.recordings.close)

    def _forever(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except Exception:
                log.critical("a background task failed: this gateway cannot go on", exc_info=True)
                os._exit(1)  # its supervisor starts another; another gateway adopts the sessions

        return asyncio.get_running_loop().create_task(run())

    def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def run() -> None:
            while True:
                try:
                    await work()
                except (Unavailable, StorageError) as exc:
                    log.warning("%s: %s", work.__name__.strip("_"), exc)
                except Exception:
                    log.exception("%s failed", work.__name__.strip("_"))
                await asyncio.sleep(seconds)

        return asyncio.get_running_loop().create_task(run())

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        async def run() -> None:
            try:
                await work
            except AsrError as exc:
                log.warning("%s", exc)
            except Exception:
                log.exception("a background job failed")

        task = asyncio.get_running_loop().create_task(run())
        self._once.add(task)
        task.add_done_callback(self._once.discard)

    async def _live(self) -> None:
        self._alive()  # apart from the heartbeat in Redis, which waits while Redis is away

    async def _beat(self) -> None:
        self.broker.beat(
            "gateway",
            {
                "pid": os.getpid(),
                "host": self.settings.host,
                "port": self.settings.port,
                "connections": self.connections,
                "sessions": len(self.sessions),
                "to_store": self.recorder.waiting,
                "backlog": round(self.backlog.seconds, 1),
                "oldest_waiting": round(self.backlog.oldest, 3),
            },
        )
        self._share_metrics()
        self._fullness = await self.broker.memory()
        metrics.redis_fullness.set(self._fullness)
        queue = await self.broker.queue()
        for state in ("waiting", "processing"):
            metrics.queue.labels(state).set(queue[state])
        metrics.buried.set(queue["dead"])
        others = [g for g in await self.broker.heartbeats("gateway") if g["name"] != self.name]
        self._backlog_elsewhere = sum(gateway.get("backlog", 0.0) for gateway in others)
        workers = await self.broker.heartbeats("worker")
        self._languages = frozenset(language for worker in workers for language in worker.get("languages", ()))

    def _share_metrics(self) -> None:
        metrics.connections.set(self.connections)
        metrics.sessions.set(len(self.sessions))
        metrics.backlog.set(self.backlog.seconds)
        metrics.oldest_waiting.set(self.backlog.oldest)
        metrics.to_store.set(self.recorder.waiting)
        metrics.persist_lag.set(self.recorder.lag)
        for flow in (self._chunks, self._bytes, self._audio):
            flow.share()

    async def _reread_keys(self) -> None:
        try:
            if await asyncio.get_running_loop().run_in_executor(None, self.access.reread):
                log.info("the file of keys was read again")
                self.access.on_change()
        except SettingError as exc:
            log.error("%s; the keys that were read before go on to count", exc)

    async def _keep_shares(self) -> None:
        self.admission.keep(self.sessions.values())

    async def _watch(self) -> None:
        """End sessions without audio; see what keys have spent."""
        waiting: dict[str, float] = {}
        for session in list(self.sessions.values()):
            if session.state == "recording" and session.send is not None and self.admission.is_idle(session):
                limit = self.settings.session_idle_timeout
                error = Refused(408, "session_idle", f"no audio came for {limit:g} s", session_id=session.id)
                self.refused(error, None, session.owner)
                session.send(error.event())
                self._end(session, "interrupted")
            if session.owner:
                waiting[session.owner] = waiting.get(session.owner, 0.0) + self.backlog.waiting(session.id)
        await self.admission.watch(waiting)

    # -- the door ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def connection(self, address: str, key: Key | None) -> AsyncIterator[None]:
        """Let a connection in for as long as the block runs; raises Refused or Unavailable before it."""
        if self.closing:
            raise Unavailable("shutting_down", "the server is shutting down: connect again", 1.0)
        async with self.admission.connection(address, key):
            yield

    def refused(self, error: AsrError, address: str | None, key_id: str, at_door: bool = False) -> None:
        """Every refusal passes here, of a request at the door or of a message on a connection."""
        metrics.refused(error.code)
        level = logging.INFO if at_door else logging.DEBUG  # not a line a chunk
        log.log(level, "refused code=%s from %s key=%s", error.code, address, key_id or "-")

    # -- sessions ------------------------------------------------------------------------------------------------

    async def start(self, message: dict[str, Any], send: Send, owner: str = "", siblings: int = 0) -> Session:
        """Open a session as a `start` message asks, of the key `owner`, on a connection with `siblings` other sessions.

        Raises BadRequest, Refused or Unavailable. What is refused here has not begun; what has begun is served.
        An id of the client's own is looked up in PostgreSQL too, where Redis has forgotten it.
        """
        self._refuse_when_closing()
        sid = message.get("session_id")
        ours = sid in (None, "")
        sid = str(uuid.uuid4()) if ours else valid_id(sid, "session_id")
        user_id = message.get("user_id")
        user_id = "" if user_id in (None, "") else valid_id(user_id, "user_id")
        options = Options.parse(message)
        if options.language and self._languages and options.language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise BadRequest(
                "bad_option", f"language {options.language} is not one of the model's: {known}", option="language"
            )
        if not await until(lambda: self._fullness < FULL_FOR_SESSIONS, MAX_WAIT):
            raise Unavailable("overloaded", "the queue has no room for a new session", 5.0)
        exists = BadRequest("session_exists", "there is a session with this id", session_id=sid)
        if not ours and (sid in self.sessions or await self._stored(sid) or sid in self.sessions):
            raise exists
        backlog = self.backlog.seconds + self._backlog_elsewhere
        await self.admission.start(sid, owner, siblings, len(self.sessions), backlog)
        session = Session(sid, user_id, options, send, owner)
        session.resumable = message.get("resume") is True
        self.sessions[sid] = session  # before its first result can come
        fields = {
            "gateway": self.name,
            "user_id": user_id,
            "owner": owner,
            "created": f"{time.time():.3f}",
            "options": orjson.dumps(options.asdict()).decode(),
        }
        created = False
        try:
            created = await self.broker.open_session(sid, secrets.token_hex(8), fields, time.time() + self._grace)
        finally:
            if not created:
                del self.sessions[sid]
                self.admission.ended(sid, owner)
        if not created:
            raise exists
        self.recorder.mark(sid)
        self.backlog.started(sid)
        metrics.sessions_started.inc()
        log.info("session=%s open mode=%s key=%s", sid, options.mode, owner or "-")
        return session

    async def resume(self, message: dict[str, Any], send: Send, owner: str = "") -> tuple[Session, list[Event]]:
        """Take a session as a `resume` message asks, wherever it was; raises BadRequest or Unavailable.

        The second is what the client has not got: to be given to `replay` after the acknowledgement. Whoever held the
        session, a connection that is half open say, is told that it moved. It must be the `owner`'s.
        """
        self._refuse_when_closing()
        sid = valid_id(message.get("session_id"), "session_id")
        last_seq = message.get("last_seq", 0)
        if isinstance(last_seq, bool) or not isinstance(last_seq, int) or last_seq < 0:
            raise BadRequest("bad_seq", "last_seq must be a whole number from 0", session_id=sid)
        fields = await self.broker.resume_session(sid, time.time() + self._grace, owner)
        if fields is None:
            raise BadRequest("no_session", "there is no such session to resume", session_id=sid)
        before = self.sessions.pop(sid, None)
        if before is not None:
            if before.send == send:
                before.send = None  # it resumes on the connection that it is on
            self._tell(before, Unavailable("session_moved", "the session was resumed elsewhere"))
        events = await self.broker.read_events(sid)
        session = Session.resumed(sid, fields, events, last_seq, send)
        if session.state != "over":
            self.sessions[sid] = session
            if events:
                self.backlog.restore(sid, events[-1]["total"], session.options.bytes_per_second)
        self.recorder.mark(sid)
        log.info("session=%s resumed state=%s next_chunk=%d", sid, session.state, session.next_index)
        return session, [event for event in events if event["seq"] > last_seq]

    async def replay(self, session: Session, events: list[Event], read: Callable[[], Awaitable[None]]) -> None:
        """Deliver what the client has not got yet, no faster than it reads: `read` waits until it has."""
        session.replaying = True
        reached = None
        try:
            while events and reached != session.last_event:
                reached = session.last_event
                for event in events:
                    if session.deliver(event):
                        self._delivered(session, event)
                    await read()
                events = await self.broker.read_events(session.id, session.last_event)
        except Unavailable as exc:
            log.warning("session=%s the rest is replayed later: %s", session.id, exc)
        finally:
            session.replaying = False
        if session.state != "over":  # what was published since the last reading went by
            self._in_background(self._read_missed(session))

    def _refuse_when_closing(self) -> None:
        if self.closing:
            raise Unavailable("shutting_down", "the server is shutting down: connect again", 1.0)

    async def place(self) -> int:
        """How many sessions wait for a worker before one that was started just now; 0 if it need not wait."""
        return max(0, (await self.broker.queue())["waiting"] - 1)

    async def _stored(self, sid: str) -> bool:
        try:
            async with asyncio.timeout(2):
                return await self.storage.known(sid)
        except (StorageError, TimeoutError):
            return False  # PostgreSQL away costs nothing but delay: Redis still refuses what it knows

    def append(self, session: Session, index: int, data: bytes, fresh: bool) -> None:
        """Append a chunk that the session accepted; its acknowledgement follows when Redis has it. Raises Refused."""
        rate = session.options.bytes_per_second
        if fresh:
            self._admit(session, index, data, rate)
        before = session.last
        if not session.appending(index, len(data), fresh):
            return

        self.backlog.taken(session.id, index, data, rate)
        taken, size = time.monotonic(), len(data)

        def done(error: Exception | None) -> None:
            if error is None:
                metrics.enqueue_seconds.observe(time.monotonic() - taken)
                self._chunks.value += 1
                self._bytes.value += size
                self.recordings.chunk(session.id, index, data, session.options)
                session.appended(index)
            else:
                self._fail(session, index, error)

        self.broker.append(session.id, index, before, data, done)

    def _admit(self, session: Session, index: int, data: bytes, rate: float) -> None:
        seconds = self.backlog.estimate(session.id, data, rate)
        try:
            self.admission.chunk(session, len(data), seconds, self.backlog.length(session.id))
        except Refused as exc:
            exc.details |= {"session_id": session.id, "chunk_index": index}
            if exc.code == "session_too_long":
                self._end(session, "interrupted")
            raise

    def room(self, session: Session) -> Awaitable[bool] | None:
        """None, or what to wait for before more audio of this session's connection is read."""
        return None if self._has_room(session) else until(lambda: self._has_room(session), MAX_WAIT)

    def _has_room(self, session: Session) -> bool:
        if self.broker.lane.bytes >= MAX_IN_FLIGHT or self._fullness >= FULL_FOR_AUDIO:
            return False
        return session.state != "recording" or self.admission.has_room(session, self.backlog.waiting(session.id))

    def finish(self, session: Session) -> None:
        """No more audio comes: `final` follows. Raises BadRequest if that was said before."""
        if session.state != "recording":
            raise BadRequest("session_finished", "finish was sent before", session_id=session.id)
        self._end(session, "done")

    def abandon(self, session: Session) -> None:
        """The client is gone: the session waits for it to resume, and then ends with what it has."""
        session.send = None
        if session.state == "recording" and session.resume_by is None:
            session.resume_by = time.time() + self.settings.resume_timeout
            log.info("session=%s waits for its client", session.id)
            self._in_background(self._refresh({session.id: session}))

    def _end(self, session: Session, status: str) -> None:
        session.state = "finishing"
        self._in_background(self._end_in_order(session, status))

    async def _end_in_order(self, session: Session, status: str) -> None:
        # In one lane with the session's chunks, so it comes after them.
        overdue = session.resume_by and time.time()
        while True:
            try:
                deadline = time.time() + self._grace
                if await self.broker.end_session(session.id, status, deadline, overdue=overdue):
                    session.resume_by = None
                else:  # it is not ours: what is it?
                    await self._refresh({session.id: session})
                return
            except Unavailable as exc:
                # Nobody else will: every repair puts off the deadline after which another gateway would.
                log.warning("session=%s cannot be ended yet: %s", session.id, exc)
                await asyncio.sleep(REPAIR_EVERY)

    def _fail(self, session: Session, index: int, error: Exception) -> None:
        """A chunk could not be written, nor can any after it. The client may resume, from this chunk on."""
        if session.failed is not None or self.sessions.get(session.id) is not session:
            return
        reason = error if isinstance(error, AsrError) else Unavailable("broker_error", "the chunk was refused", 5.0)
        log.error("session=%s chunk=%d could not be written: %s", session.id, index, error)
        session.failed = reason
        self._tell(session, reason, chunk_index=index, resumable=reason.code.startswith("broker_"))
        if reason.code == "session_moved":
            self._over(session, "moved")
        else:
            self.abandon(session)

    def _tell(self, session: Session, error: AsrError, **details: Any) -> None:
        """The last thing that the client hears of the session from here."""
        send, session.send = session.send, None
        if send is not None:
            send({**error.event(), "session_id": session.id, "lost": True, **details})

    def _over(self, session: Session, how: str) -> None:
        self.sessions.pop(session.id, None)
        self.backlog.over(session.id)
        self.recordings.leave(session.id, how not in ("moved", "gone"))
        self.admission.ended(session.id, session.owner)
        self._log_end(session, how)

    def _log_end(self, session: Session, how: str) -> None:
        metrics.sessions_ended.labels(how).inc()
        log.info(
            "session=%s over status=%s chunks=%d bytes=%d results=%d seconds=%.1f",
            session.id,
            how,
            session.chunk_count,
            session.bytes_in,
            session.results,
            time.monotonic() - session.opened,
        )

    # -- results -------------------------------------------------------------------------------------------------

    def _on_subscribed(self) -> None:
        self._subscribed.set()
        for session in self.sessions.values():
            self._in_background(self._read_missed(session))

    def _on_event(self, event: Event) -> None:
        session = self.sessions.get(event["session_id"])
        if session is None:
            return  # of a session that another gateway has, or whose final result is out
        taken = True
        if event["type"] == "moved":
            if event["move"] > session.move:  # else from before it came back
                self._lost(session, "ended" if event["ended"] else "moved")
        elif event["type"] == "progress":
            self.backlog.progressed(session.id, event["taken"], event["total"])
        elif session.replaying:
            pass  # it is read, after what is before it
        elif event["type"] == "partial":
            taken = session.guess(event)
        elif taken := session.deliver(event):
            self._delivered(session, event)
        if not taken:
            self._in_background(self._read_missed(session))

    def _delivered(self, session: Session, event: Event) -> None:
        self.recorder.mark(session.id)
        self._measure(session, event)
        if event["type"] == "final":
            self._over(session, event["status"])
            if self.settings.save_audio:
                self._in_background(self._keep_recording(session.id, event["chunk_count"]))

    def _measure(self, session: Session, event: Event) -> None:
        index, waited = event.get("chunk_index"), None
        if index is not None:
            waited = self.backlog.answered(session.id, index, event["total"])
        if waited is not None:
            metrics.answer_seconds.observe(waited)
            metrics.publish_seconds.observe(max(0.0, time.time() - event["time"]))
        if waited is not None or event["type"] == "final":
            self._audio.value += self.backlog.heard(session.id, event["total"])
        if event["type"] == "error":
            metrics.refused(event["code"])

    async def _read_missed(self, session: Session) -> None:
        events = [] if session.replaying else await self.broker.read_events(session.id, session.last_event)
        for event in events:
            if session.state != "over" and session.deliver(event):
                self._delivered(session, event)

    async def _repair(self) -> None:
        await self._refresh(dict(self.sessions))
        for session in list(self.sessions.values()):
            if session.state == "recording" and session.resume_by is not None and session.resume_by < time.time():
                log.info("session=%s was not resumed", session.id)
                self._end(session, "interrupted")
        now = time.monotonic()
        owed = [s for s in self.sessions.values() if s.owed and now - s.heard >= REPAIR_EVERY]
        await asyncio.gather(*(self._read_missed(session) for session in owed))

    async def _refresh(self, sessions: dict[str, Session]) -> None:
        """Say until when this gateway answers for its sessions, and let go of those that are another's."""
        deadline = time.time() + self._grace
        deadlines = {sid: session.resume_by or deadline for sid, session in sessions.items()}
        for sid, state in (await self.broker.refresh(deadlines)).items():
            if self.sessions.get(sid) is sessions[sid]:
                self._lost(sessions[sid], state)

    def _lost(self, session: Session, state: str) -> None:
        """The session is no longer this gateway's: it moved, it was ended by another gateway, or it is gone."""
        if state == "ended":
            session.state = "finishing"  # its results are found by the repair
            return
        if state == "gone":
            self._tell(session, Unavailable("session_gone", "the session is over"))
            self.recorder.mark(session.id)
        else:
            self._tell(session, Unavailable("session_moved", "the session was resumed elsewhere"))
        self._over(session, state)

    async def _sweep(self) -> None:
        """End sessions that nobody holds or resumes, and store what a dead gateway left."""
        if self.closing or time.monotonic() - self.broker.lane.back_at < SWEEP_EVERY:
            return
        sids = [sid for sid in await self.broker.overdue(time.time(), 100) if sid not in self.sessions]
        found = await self.broker.read_sessions(dict.fromkeys(sids, "0-1"))
        for sid, (fields, events) in found.items():
            if not fields:
                self.recorder.mark(sid)
                continue
            now = time.time()
            if not await self.broker.end_session(
                sid, "interrupted", now + self._grace, seen=fields["gateway"], overdue=now
            ):
                continue  # it was resumed
            if events and events[-1]["type"] == "final":
                self.recorder.mark(sid)
            elif sid not in self.sessions:
                options = Options.parse(orjson.loads(fields["options"]))
                session = Session(sid, fields["user_id"], options, None, fields.get("owner", ""))
                session.state = "finishing"
                self.sessions[sid] = session
                log.info("session=%s adopted from gateway %s", sid, fields["gateway"])

    async def _keep_recording(self, sid: str, chunks: int) -> None:
        self._keeping += 1
        try:
            await until(lambda: self.recorder.settled(sid), 30.0)
            await self.recordings.keep(sid, chunks)
        except (StorageError, Unavailable) as exc:
            log.warning("session=%s recording is noted later: %s", sid, exc)
        finally:
            self._keeping -= 1

    async def _tidy(self) -> None:
        """Keep the tables small: the tally's rows, and the memory of what was deleted long ago."""
        await self.storage.add_up()
        old = await self.storage.old_tombstones(REMEMBERED, 1000)
        if old:
            await self.storage.forget_tombstones(set(old) - await self.broker.known(old))
        await self.recordings.tidy()

    # -- what REST asks ------------------------------------------------------------------------------------------

    async def settled(self, sid: str) -> None:
        """Wait, at most two seconds, until what this gateway knows of the session is stored."""
        await until(lambda: self.recorder.settled(sid), 2.0)

    async def delete(self, sid: str, owner: str | None = None) -> bool:
        """Delete a session of the owner's: its rows now, its keys now or, of one that is open, when it is over.

        Whether there was one. Raises StorageError or Unavailable; then the same call again does the rest.
        """
        try:
            async with asyncio.timeout(ANSWER):
                known = await self.broker.delete_session(sid, owner)
        except TimeoutError:
            raise Unavailable("broker_unavailable", "the broker cannot be reached") from None
        deleted = await self.storage.delete(sid, pending=known, owner=owner) or known
        if deleted:  # after its row, without which no recording is kept that is put together just now
            await self.recordings.delete(sid)
        return deleted
