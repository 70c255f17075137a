"""One gateway process: what clients and operators may ask of it, and its periodic duties.

Handlers translate protocols into calls of a Gateway, and its events back; they decide nothing. What happens to open
sessions is in sessions.py, intake.py and delivery.py. Only the broker knows Redis, and only the storage SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from asrserver.auth.access import Access
from asrserver.auth.keys import Key
from asrserver.broker.connection import HEARTBEAT_EVERY
from asrserver.broker.gateway_shards import gateway_broker
from asrserver.broker.quota import RENEW_EVERY
from asrserver.config import Settings
from asrserver.errors import AsrError, Refused, SettingError, Unavailable
from asrserver.gateway.admission import Admission
from asrserver.gateway.adoption import Adoption
from asrserver.gateway.archive import Recordings
from asrserver.gateway.background_tasks import BackgroundTasks
from asrserver.gateway.client_secrets import ClientSecrets
from asrserver.gateway.held_bytes import HeldBytes
from asrserver.gateway.hotwords import Hotwords
from asrserver.gateway.intake import Accepted, Intake
from asrserver.gateway.offers import Offers
from asrserver.gateway.persistence import WriteBehind
from asrserver.gateway.retention import Retention
from asrserver.gateway.room import RoomGate
from asrserver.gateway.session import Send, Session
from asrserver.gateway.sessions import REPAIR_EVERY, Sessions
from asrserver.process.aio import until
from asrserver.protocol import codec
from asrserver.protocol.events import Refusal, Result
from asrserver.protocol.options import Normalise, Options, Resume, Start
from asrserver.storage.errors import StorageError, StorageUnavailable
from asrserver.storage.storage import Storage
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.gateway")

#: Seconds between sweeps for sessions of dead gateways: a living one renews its deadlines more often.
SWEEP_EVERY = 5.0

#: Seconds between two rounds of housekeeping, and seconds for which a deleted session is remembered.
TIDY_EVERY = 60.0
TOMBSTONE_SECONDS = 30 * 86400.0

#: Seconds without a result after which an unfinished session is looked up in Redis. Redis may have come back empty, and
#: nobody else would end the session.
DORMANT_SECONDS = 600.0

#: Rows of each kind that one round of housekeeping looks at, at most.
TIDY_BATCH = 1000

#: Seconds that Redis may take for a REST request, and that such a request waits for a session to be stored.
DELETE_TIMEOUT = 5.0
STORED_TIMEOUT = 2.0

#: Seconds that the first subscription to results may take.
SUBSCRIBE_TIMEOUT = 10.0

#: Seconds between checks whether the files of API keys, hot words and keys of recordings have changed.
FILES_EVERY = 1.0

#: Seconds between checks for idle sessions, and for what API keys have spent.
WATCH_EVERY = 1.0


class Gateway:
    """All parts of one gateway process.

    Attributes:
        settings: Its settings.
        name: Its name in Redis and in logs.
        access: API keys, origins and proxies.
        closing: Whether it accepts nothing new, because it shuts down.
        accepting_since: When it began to accept connections, by time.monotonic(); set by the application.
        held: Bytes of memory that wait to be handled.
        uploads: Bytes of uploads that are not recognised yet.
        broker, storage, write_behind, recordings, retention, admission, offers, sessions, adoption, room, intake,
        client_secrets:
            Its parts; see their modules.
    """

    def __init__(self, settings: Settings, alive: Callable[[], None] = lambda: None) -> None:
        """Create the parts; `alive` is called regularly, as a sign of life for the supervisor."""
        self.settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.access = Access(
            settings.keys_file,
            settings.api_keys,
            settings.allowed_origins,
            settings.trusted_proxies,
            settings.allowed_hosts,
        )
        self._hotwords = Hotwords(settings.hotwords_file)
        self._normalise = Normalise.parse(settings.normalise)
        self.broker = gateway_broker(settings.redis, self.name)
        self.storage = Storage(settings.database)
        self.write_behind = WriteBehind(self.broker, self.storage, settings.session_ttl)
        self.recordings = Recordings(settings, self.name, self.broker, self.storage)
        self.retention = Retention(settings.keep_days, self.access, self.storage, self.delete)
        self.admission = Admission(settings, self.access, self.broker.quota, self.name)
        self._tasks = BackgroundTasks()
        self.sessions = Sessions(
            settings,
            self.access,
            self.broker,
            self.storage,
            self.write_behind,
            self.recordings,
            self.admission,
            self._tasks,
        )
        self.adoption = Adoption(self.broker, self.write_behind, self.sessions)
        self.held = HeldBytes(settings.message_memory, self.sessions.shedder.share)
        self.uploads = HeldBytes(settings.upload_space, self.sessions.shedder.share)
        self.room = RoomGate(self.broker, self.admission, self.sessions.backlog, self.sessions.shedder, self.held)
        self.intake = Intake(self.broker, self.recordings, self.admission, self.sessions, self.room, self.held)
        self.client_secrets = ClientSecrets(self.access, self.broker.client_secrets)
        self._watched = (
            ("API keys", settings.keys_file, self.access.reread),
            ("hot words", settings.hotwords_file, self._hotwords.reread),
            ("keys of recordings", settings.save_audio_keys, self.recordings.reread_keys),
        )
        self.closing = False
        self._alive = alive
        self.accepting_since = math.inf
        self.offers = Offers(self.broker.status, settings.served_model_names)
        self._subscribed = asyncio.Event()

    @property
    def connections(self) -> int:
        """Open connections."""
        return self.admission.limits.connections

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self, strict: bool = False) -> None:
        """Connect to Redis and PostgreSQL, and start all tasks; return when results can be received.

        PostgreSQL may be away: sessions are stored when it is there.

        Args:
            strict: Whether a database that only an operator can repair is an error. Otherwise sessions stay in Redis
                until it is repaired: a server that was running had better go on.

        Raises:
            Unavailable: Redis is away.
            TimeoutError: The subscription took too long.
            StorageError: The database cannot be used, and `strict`.
        """
        await self.broker.open()
        for problem in (await self.broker.status.describe())["warnings"]:
            log.warning("Redis should be set up otherwise: %s", problem)
        tasks = self._tasks
        tasks.critical(self.broker.subscribe(self.sessions.on_event, self._on_subscribed), "subscribe")
        tasks.critical(self.write_behind.run(), "write-behind")
        tasks.periodic(min(HEARTBEAT_EVERY, self.settings.hang_timeout / 4), self._report_alive)
        tasks.periodic(HEARTBEAT_EVERY, self._send_heartbeat)
        tasks.periodic(REPAIR_EVERY, self.sessions.repair)
        tasks.periodic(SWEEP_EVERY, self._sweep)
        tasks.periodic(FILES_EVERY, self._reread_files)
        tasks.periodic(RENEW_EVERY, self._renew_shares)
        tasks.periodic(WATCH_EVERY, self._watch)
        async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
            await self._subscribed.wait()
        try:
            await self.storage.open()
        except StorageUnavailable as exc:
            log.warning("PostgreSQL is unavailable, sessions will be stored later: %s", exc)
        except StorageError as exc:
            if strict:
                raise
            log.error("PostgreSQL cannot be used, sessions are kept in Redis until it can: %s", exc)
        tasks.periodic(TIDY_EVERY, self._tidy)  # which needs the tables

    def _on_subscribed(self) -> None:
        self._subscribed.set()
        self.sessions.catch_up()

    async def drain(self, timeout: float) -> None:
        """Wait until all sessions with a connected client have ended, for at most `timeout` seconds.

        Not every client can resume its session on another gateway.
        """
        await until(lambda: all(session.send is None for session in self.sessions.values()), timeout)

    async def close(self) -> None:
        """Stop all tasks, and disconnect."""
        self._flush_metrics()
        await self._tasks.close()
        with contextlib.suppress(Unavailable):
            await self.broker.deregister()
        await self.broker.close()
        await self.storage.close()
        await asyncio.get_running_loop().run_in_executor(None, self.recordings.close)

    # -- for connections ---------------------------------------------------------------------------------------------

    async def connect(self, address: str, key: Key | None) -> Callable[[], None]:
        """Admit a connection until the returned function is called; see Admission.connect.

        Raises:
            Refused: A limit is reached.
            Unavailable: The gateway shuts down, or Redis does not answer.
        """
        self._refuse_when_closing()
        return await self.admission.connect(address, key)

    def refused(self, error: AsrError, address: str | None, key_id: str, is_request: bool = False) -> None:
        """Count and log a refusal.

        Args:
            error: What the client is told.
            address: Its IP address.
            key_id: The id of its API key; may be empty.
            is_request: Whether a request or connection was refused, and not a message.
        """
        metrics.count_refusal(error.code)
        level = logging.INFO if is_request else logging.DEBUG  # a client could cause one for every chunk
        log.log(level, "refused code=%s from %s key=%s", error.code, address, key_id or "-")

    async def start(self, asked: Start, send: Send, owner: str = "", siblings: int = 0) -> Session:
        """Open a session.

        Args:
            asked: What the client asks for.
            send: Where the session's events go.
            owner: Id of the API key it belongs to; empty where there are no keys.
            siblings: Open sessions of the same connection.

        Raises:
            BadRequest: The id is in use, no worker offers the model, or an option is not for it.
            Refused: A limit is reached.
            Unavailable: Not now: no room, shutting down, Redis away.
        """
        self._refuse_when_closing()
        await self.offers.check(asked.options)
        if not await self.room.for_session(owner):
            raise Unavailable("overloaded", "Redis has no room for a new session", 5.0)
        asked = asked.changed(
            hotwords=self._hotwords.join(asked.options.hotwords, self.access.key(owner)),
            normalise=asked.options.normalise.or_else(self._normalise),
        )
        return await self.sessions.start(asked, send, owner, siblings)

    async def resume(self, asked: Resume, send: Send, owner: str = "") -> tuple[Session, list[Result]]:
        """Take a session over, with the events that its client has not got; see Sessions.resume."""
        self._refuse_when_closing()
        return await self.sessions.resume(asked, send, owner)

    async def queue_position(self, options: Options) -> int:
        """How many sessions wait for a worker before one that was started just now; 0 if it need not wait."""
        return max(0, await self.broker.status.waiting(options.model) - 1)

    def offer(self, session: Session, data: bytes, index: Any = None) -> Accepted:
        """Take a chunk; see Intake.offer."""
        return self.intake.offer(session, data, index)

    def offer_run(self, session: Session, pieces: list[bytes], index: int | None = None) -> Accepted | None:
        """Take several chunks at once, or none; see Intake.offer_run."""
        return self.intake.offer_run(session, pieces, index)

    def room_for(self, session: Session) -> Awaitable[bool] | None:
        """Return what to wait for before more of a session's audio is read; see RoomGate.for_audio."""
        return self.room.for_audio(session)

    def change_hotwords(self, session: Session, hotwords: str) -> None:
        """Replace the client's hot words for the segments that follow; those of the setting hotwords-file stay."""
        joined = self._hotwords.join(hotwords, self.access.key(session.owner))
        session.options = session.options.with_hotwords(joined)
        change = self.broker.change_options(session.id, codec.encode_options(session.options))
        self._tasks.spawn(change, f"options {session.id}")

    def finish(self, session: Session) -> None:
        """End a session as its client asks; see Sessions.finish."""
        self.sessions.finish(session)

    def abandon(self, session: Session) -> None:
        """Keep a session for its client to resume; see Sessions.abandon."""
        self.sessions.abandon(session)

    def cancel(self, session: Session, gone: bool = True) -> None:
        """End a session without its client: what was accepted is still recognised.

        Args:
            session: The session.
            gone: Whether its client is gone, and cannot resume it; otherwise it still gets the last events.
        """
        if gone:
            session.send = None
        if session.state == "recording":
            log.info("session=%s cancelled: %s", session.id, "its client is gone" if gone else "by the server")
            self.sessions.end(session, "interrupted")

    def refuse_when_full(self, owner: str) -> None:
        """Raise what `start` would raise for this gateway's own limits. To be called before a large upload is read.

        Args:
            owner: The id of the client's API key; empty where there are no keys.

        Raises:
            Refused: A limit is reached.
            Unavailable: The gateway shuts down.
        """
        self._refuse_when_closing()
        self.sessions.check_start(0, owner)

    def _refuse_when_closing(self) -> None:
        if self.closing:
            raise Unavailable("shutting_down", "the server is shutting down: connect again", 1.0)

    # -- for REST ----------------------------------------------------------------------------------------------------

    async def wait_stored(self, sid: str | None = None) -> None:
        """Wait until the final texts that clients may have by now are stored; see WriteBehind.wait_finished.

        Args:
            sid: If given, only this session's, and what else this gateway knows of it, for STORED_TIMEOUT seconds.
        """
        self.write_behind.flush_soon()
        if sid is not None:
            await self.write_behind.wait_flushed(sid, STORED_TIMEOUT)
        await self.write_behind.wait_finished([] if sid is None else [sid])

    async def delete(self, sid: str, owner: str | None = None) -> bool:
        """Delete a session: its rows and recording now, its keys in Redis now or, if it is open, at its end.

        Args:
            sid: The id of the session.
            owner: If given, the id of the API key that it must belong to.

        Returns:
            Whether there was such a session.

        Raises:
            StorageError: PostgreSQL cannot be asked; the same call again does the rest.
            Unavailable: Redis or the disk cannot be asked; likewise.
        """
        try:
            async with asyncio.timeout(DELETE_TIMEOUT):
                known = await self.broker.delete_session(sid, owner)
        except TimeoutError:
            raise Unavailable("broker_unavailable", "Redis cannot be reached") from None
        deleted = await self.storage.delete(sid, pending=known, owner=owner) or known
        if deleted:  # after the row: without one, a recording that is being assembled just now is removed
            await self.recordings.delete(sid)
        return deleted

    # -- periodic duties ---------------------------------------------------------------------------------------------

    async def _report_alive(self) -> None:
        self._alive()  # not with the heartbeat in Redis, which waits while Redis is away

    async def _send_heartbeat(self) -> None:
        self.broker.heartbeat(
            {
                "pid": os.getpid(),
                "host": self.settings.host,
                "port": self.settings.port,
                "connections": self.connections,
                "sessions": len(self.sessions),
                "to_store": self.write_behind.waiting,
                "backlog": round(self.sessions.backlog.seconds, 1),
                "backlogs": {owner: round(seconds, 1) for owner, seconds in self.sessions.backlog.by_owner().items()},
                "oldest_waiting": round(self.sessions.backlog.oldest, 3),
            },
        )
        self._flush_metrics()
        self.room.fullness = await self.broker.status.fullness()
        metrics.redis_fullness.set(max(self.room.fullness, *(redis.fullness for redis in self.broker.members)))
        queue = await self.broker.status.queue()
        for state in ("waiting", "processing"):
            metrics.queue.labels(state).set(queue[state])
        metrics.dead_letters.set(queue["dead"])
        for shard in self.broker.shards():
            metrics.shard_up.labels(shard["name"]).set(shard["ready"])
            metrics.shard_sessions.labels(shard["name"]).set(shard["waiting"] + shard["processing"])
            metrics.shard_fullness.labels(shard["name"]).set(shard["memory_ratio"])
        others = [g for g in await self.broker.status.heartbeats("gateway") if g["name"] != self.name]
        elsewhere = Counter[str]()
        for gateway in others:
            elsewhere.update(gateway.get("backlogs", {"": gateway.get("backlog", 0.0)}))
        self.sessions.shedder.elsewhere = elsewhere
        await self.offers.refresh()

    def _flush_metrics(self) -> None:
        metrics.connections.set(self.connections)
        metrics.unstored_sessions.set(self.write_behind.waiting)
        metrics.persist_lag.set(self.write_behind.lag)
        self.sessions.flush_metrics()
        self.intake.flush_metrics()

    async def _reread_files(self) -> None:
        for what, path, reread in self._watched:
            try:
                if await asyncio.get_running_loop().run_in_executor(None, reread):
                    log.info("%s were reloaded from %s", what, path)
                    if reread == self.access.reread:
                        self.access.on_change()
            except SettingError as exc:
                log.error("%s; the %s that were read before stay in use", exc, what)

    async def _renew_shares(self) -> None:
        self.admission.renew(self.sessions.values())

    async def _watch(self) -> None:
        """End idle sessions, and read what API keys have spent."""
        waiting: dict[str, float] = {}
        for session in list(self.sessions.values()):
            if session.state == "recording" and session.send is not None and self.admission.is_idle(session):
                limit = self.settings.session_idle_timeout
                error = Refused(
                    408, "session_idle", f"no audio for {limit:g} s (session_idle_timeout)", session_id=session.id
                )
                self.refused(error, None, session.owner)
                session.send(Refusal.of(error))
                self.sessions.end(session, "interrupted")
            if session.owner:
                waiting[session.owner] = waiting.get(session.owner, 0.0) + self.sessions.backlog.waiting(session.id)
        self.sessions.shedder.review(self.room.fullness)
        metrics.shedding.set(self.sessions.shedder.step)
        await self.admission.watch(waiting)

    async def _sweep(self) -> None:
        if not self.closing:
            # After all gateways were down, clients cannot come back before connections are accepted again: the time for
            # their resumption counts from then.
            spare = time.monotonic() < self.accepting_since + self.settings.resume_timeout
            await self.adoption.sweep(spare)

    async def _tidy(self) -> None:
        """Clean up: end sessions that Redis has lost, compact counters, delete what is too old."""
        await self.storage.add_up()
        lost = set(await self.storage.dormant(DORMANT_SECONDS, TIDY_BATCH))
        if lost and (lost := lost - await self.broker.known(lost)):
            log.error("%d sessions are no longer in Redis: given up, with the results that are stored", len(lost))
            await self.storage.give_up(lost)
        old = await self.storage.old_tombstones(TOMBSTONE_SECONDS, TIDY_BATCH)
        if old:
            await self.storage.forget_tombstones(set(old) - await self.broker.known(old))
        await self.recordings.tidy()
        await self.retention.tidy()
