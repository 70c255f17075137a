"""What workers do with Redis: claim sessions, read their audio, append and publish their events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import orjson
import redis

from asrserver.broker import event_scripts, replies, task_scripts
from asrserver.broker.connection import BrokerConnection, flattened, ignore_reply, next_id
from asrserver.broker.drains import DRAIN_TTL
from asrserver.broker.keys import (
    ENDED,
    FINISHED,
    GROUP,
    OFFERED,
    TASKS,
    audio_key,
    drain_key,
    events_key,
    quota_key,
    session_key,
    tasks_key,
    transcript_key,
)
from asrserver.broker.pipeline import CONNECTION_ERRORS, connect, is_foreign
from asrserver.broker.quota import minute
from asrserver.broker.raw_connection import cannot_serve
from asrserver.broker.replies import Claim, Entry, Task
from asrserver.broker.subscription import listen
from asrserver.errors import Unavailable
from asrserver.protocol import codec
from asrserver.protocol.events import Final, Partial, Progress, Result, SpeechStarted

log = logging.getLogger("asrserver.broker")

#: Bytes on their way to Redis above which partial results are dropped.
MAX_PARTIAL_BYTES = 1 << 20

#: A piece of audio becomes a dead letter after this many deaths of workers that had it in hand.
MAX_STRIKES = 3

#: Seconds after the last offer of a model until any worker claims the sessions that name it, to end them.
ABANDONED_AFTER = 600.0

#: Seconds before a blocking command is tried again after the connection was lost.
RECONNECT_PAUSE = 0.2


class WorkerBroker(BrokerConnection):
    """The broker of one worker. Only the owner of a session may write: Redis refuses every earlier owner."""

    KIND = "worker"

    def __init__(self, url: str, name: str, models: Iterable[str] = ()) -> None:
        """Connect when it is opened.

        Args:
            url: Redis URL.
            name: The name of this worker.
            models: The models that it offers: it claims sessions that name one of them, or none.
        """
        super().__init__(url, name)
        self._blocking = connect(url, timeout=10.0, connections=2)
        self._models = tuple(models)
        self._streams = (TASKS, *map(tasks_key, self._models))

    async def open(self) -> None:
        """Wait for Redis, and create the group of workers in each stream of tasks; raises Unavailable."""
        await super().open()
        try:
            for command in self._offers():
                await self.pipeline.submit(*command)
        except Unavailable as exc:
            if exc.code != "broker_full":
                raise
            log.warning("models are offered with a later heartbeat: %s", exc)  # it would not help to stop

    def heartbeat(self, state: Mapping[str, Any]) -> None:
        """Write that this worker lives, with its state, and that it still offers its models."""
        super().heartbeat(state)
        for command in self._offers():
            self.pipeline.call(ignore_reply, *command)

    def _offers(self) -> list[tuple[Any, ...]]:
        now = self.clock.now()
        return [("EVAL", task_scripts.OFFER, 2, OFFERED, tasks_key(name), name, now, GROUP) for name in self._models]

    async def close(self) -> None:
        """Wait until all commands have their replies, and disconnect."""
        await super().close()
        await self._blocking.aclose()

    # -- claims ------------------------------------------------------------------------------------------------------

    async def claim(
        self, lease: float | None, count: int, block: float, passed: Collection[str] = ()
    ) -> list[tuple[Task, str]]:
        """Take leases on sessions: first on those whose lease has expired, then on new ones.

        The sessions name no model, or one that this worker offers, or one that nobody has offered for ABANDONED_AFTER.

        Args:
            lease: Seconds after which a lease that was not renewed has expired; None: claim new sessions only.
            count: Sessions at most, of each model.
            block: Seconds to wait for a new session if there is none; 0 does not wait.
            passed: API keys whose sessions are not claimed: they wait in line until a worker has room for them.

        Returns:
            (task, session id) of each.
        """
        try:
            found = await self._claimed(lease, count, block, passed)
        except redis.ResponseError as exc:
            if "NOGROUP" not in str(exc):
                raise
            log.warning("the group of workers is gone, Redis was emptied: it is made again")
            await self.open()
            return []
        foreign = [task for task, sid in found if not sid]
        if foreign:
            await self._discard(foreign)
        return [(task, sid) for task, sid in found if sid]

    async def _claimed(
        self, lease: float | None, count: int, block: float, passed: Collection[str]
    ) -> list[tuple[Task, str]]:
        idle = -1 if lease is None else int(lease * 1000)
        asked = [
            self.pipeline.submit("EVAL", task_scripts.CLAIM, 1, stream, GROUP, self.name, idle, count, *passed)
            for stream in self._streams
        ]
        pairs = list(zip(self._streams, await asyncio.gather(*asked), strict=True))
        if lease is not None and not passed:
            pairs += await self._abandoned(idle, count)
        if block and not any(entries for _, entries in pairs):
            command = ("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", count, "BLOCK", int(block * 1000))
            reply = await self._block(*command, "STREAMS", *self._streams, *(">" for _ in self._streams))
            pairs = [(stream.decode(), entries) for stream, entries in reply or ()]
        return [found for stream, entries in pairs for found in replies.tasks(stream, entries)]

    async def _block(self, *command: Any) -> Any:
        """Send a command that blocks in Redis, on its own connection: in the pipeline all others would wait for it."""
        try:
            return await self._blocking.execute_command(*command)
        except (*CONNECTION_ERRORS, redis.ResponseError) as exc:
            if isinstance(exc, redis.ResponseError) and not cannot_serve(exc):
                raise
            await self._blocking.connection_pool.disconnect()
            # If the command claimed something and its reply was lost, that is found later, by its idle time.
            await asyncio.sleep(RECONNECT_PAUSE)
            raise Unavailable("broker_unavailable", str(exc) or type(exc).__name__) from exc

    async def _abandoned(self, idle: int, count: int) -> list[tuple[str, Any]]:
        """Take sessions whose model nobody offers any more: (stream, entries)."""
        since = self.clock.now() - ABANDONED_AFTER
        reply = await self.pipeline.submit(
            "EVAL", task_scripts.ABANDONED, 1, OFFERED, GROUP, self.name, idle, count, since
        )
        return [(stream.decode(), entries) for stream, entries in zip(reply[::2], reply[1::2], strict=True)]

    async def _discard(self, foreign: list[Task]) -> None:
        """Delete entries that another program wrote: they cannot be processed, and would be claimed again for ever."""
        for task in foreign:
            log.warning(
                "%s in %s is no session of this program: deleted; two programs use this Redis", task.id, task.stream
            )
        await self._delete(foreign)

    async def _delete(self, tasks: Iterable[Task]) -> None:
        for stream, entries in replies.by_stream(tasks).items():
            await asyncio.gather(
                self.pipeline.submit("XACK", stream, GROUP, *entries), self.pipeline.submit("XDEL", stream, *entries)
            )

    async def acquire(self, task: Task, sid: str) -> Claim | None:
        """Become the owner of a claimed session: fence off every earlier owner, and read what it has done.

        Returns:
            None if the session is over or gone, or its keys are damaged; its task is then deleted.
        """
        try:
            return await self._acquire(task, sid)
        except (ValueError, KeyError, TypeError) as exc:
            await self.give_up(task, sid, f"{type(exc).__name__}: {exc}")
        except redis.ResponseError as exc:
            if not is_foreign(exc):
                raise
            await self.give_up(task, sid, str(exc))
        return None

    async def give_up(self, task: Task, sid: str, why: str) -> None:
        """Give up a claimed session whose keys another program has damaged: nobody claims it again."""
        await self.give_up_session(sid, why)
        await self._delete([task])

    async def _acquire(self, task: Task, sid: str) -> Claim | None:
        epoch, fields, entries, transcript = await asyncio.gather(
            self.pipeline.submit("EVAL", event_scripts.FENCE, 1, events_key(sid), self.name),
            self.pipeline.submit("HGETALL", session_key(sid)),
            self.pipeline.submit("XRANGE", events_key(sid), "(0-1", "+"),
            self.pipeline.submit("LRANGE", transcript_key(sid), 0, -1),
        )
        events = replies.events(entries)
        if epoch is None or not fields or (events and isinstance(events[-1], Final)):
            await self._delete([task])
            return None
        session = replies.strings(fields)
        charged = max(events[-1].cost if events else 0.0, float(session.get("charged", 0.0)))
        return Claim(sid, task, epoch, session, events, replies.texts(transcript), charged)

    async def release(self, tasks: Iterable[Task] = ()) -> int:
        """Give up the leases on these tasks, or all of this worker's: any worker may claim them at once.

        Returns:
            The number of released leases.
        """
        wanted = replies.by_stream(tasks) or {stream: list[str]() for stream in self._streams}
        released = await asyncio.gather(
            *(
                self.pipeline.submit("EVAL", task_scripts.RELEASE, 1, stream, GROUP, self.name, *ids)
                for stream, ids in wanted.items()
            )
        )
        return sum(map(int, released))

    # -- drains ------------------------------------------------------------------------------------------------------

    async def is_drained(self) -> bool:
        """Whether an operator wants this worker drained; the request is kept as long as the worker asks."""
        return bool(await self.pipeline.submit("EXPIRE", drain_key(self.name), DRAIN_TTL))

    async def hand_over(self, claims: Iterable[Claim]) -> None:
        """Put sessions in line for another worker; until one takes them, this worker still owns them."""
        by_stream: dict[str, list[str]] = {}
        for claim in claims:
            by_stream.setdefault(claim.task.stream, []).extend((claim.task.id, claim.fields.get("owner", "")))
        await asyncio.gather(
            *(
                self.pipeline.submit("EVAL", task_scripts.HAND_OVER, 1, stream, GROUP, self.name, *ids)
                for stream, ids in by_stream.items()
            )
        )

    async def in_line(self, tasks: Iterable[Task]) -> set[Task]:
        """Return those of the tasks that no worker has taken since they were handed over."""
        found: set[Task] = set()
        for stream, ids in replies.by_stream(tasks).items():
            reply = await self.pipeline.submit("EVAL", task_scripts.IN_LINE, 1, stream, GROUP, *ids)
            found.update(Task(stream, entry.decode()) for entry in reply)
        return found

    # -- audio -------------------------------------------------------------------------------------------------------

    async def read_audio(self, cursors: Mapping[str, str], count: int) -> dict[str, list[Entry]]:
        """Read the audio of many sessions in one command.

        Args:
            cursors: Session id → id of the last entry that was read.
            count: Entries of each session at most.

        Returns:
            Session id → its next entries, for sessions that have any.
        """
        if not cursors:
            return {}
        keys = {audio_key(sid): sid for sid in cursors}
        try:
            reply = await self.pipeline.submit("XREAD", "COUNT", count, "STREAMS", *keys, *cursors.values())
        except redis.ResponseError as exc:
            if not is_foreign(exc):
                raise
            await self._delete_foreign(keys)
            return {}
        return {
            keys[key.decode()]: [replies.entry(*pair) for pair in replies.pairs(entries)]
            for key, entries in reply or ()
        }

    async def _delete_foreign(self, keys: Iterable[str]) -> None:
        """Delete keys that are no streams: one of them would keep all sessions from being read."""
        for key in keys:
            kind = await self.pipeline.submit("TYPE", key)
            if kind not in (b"stream", b"none"):
                log.error("%s is not of this program: deleted; two programs use this Redis", key)
                await self.pipeline.submit("DEL", key)

    async def listen_for_ends(
        self, on_end: Callable[[str], None], on_flush: Callable[[str], None], on_release: Callable[[], None]
    ) -> None:
        """Listen for sessions that must be read, or can be claimed, at once. What is missed is found a little later.

        Runs forever.

        Args:
            on_end: Called with the id of every session that ends.
            on_flush: Called with the id of every session that is flushed.
            on_release: Called when a worker has gone and left sessions.
        """

        def heard(data: bytes) -> None:
            try:
                news = orjson.loads(data)
                released, flush, sid = news.get("released"), news.get("flush"), news.get("session_id", "")
            except (ValueError, AttributeError):
                log.warning("a message in %s is not of this program: two programs use this Redis", ENDED)
                return
            if released:
                on_release()
            else:
                (on_flush if flush else on_end)(str(sid))

        await listen(self._client, ENDED, heard, lambda: None)

    # -- events ------------------------------------------------------------------------------------------------------

    async def append_event(
        self, claim: Claim, event: Result, after: str, fields: Mapping[str, str] | None = None
    ) -> bool:
        """Make an event durable and publish it. A final event gives the lease back.

        The audio that is new in the event's `cost` is charged to the session's API key.

        Args:
            claim: The session, which this worker owns.
            event: The event.
            after: Audio up to and including the entry of this id is not needed again, and is trimmed.
            fields: Fields of the session's hash that change with the event.

        Returns:
            False if another worker owns the session now; nothing was changed then.

        Raises:
            Unavailable: Redis refused the event; the next owner of the session must append it.
        """
        sid = claim.sid
        owner = claim.fields.get("owner", "")
        texts = [(segment.text, segment.language) for segment in event.segments]
        charge = max(0.0, event.cost - claim.charged) if owner else 0.0
        keys = (
            events_key(sid),
            session_key(sid),
            audio_key(sid),
            claim.task.stream,
            quota_key(owner, minute()),
            transcript_key(sid),
            FINISHED,
        )
        encoded = codec.encode(event)
        arguments = (
            event.id,
            event.seq,
            encoded,
            next_id(after),
            sid if isinstance(event, Final) else "",
            claim.task.id,
            GROUP,
            f"{charge:.3f}",
            orjson.dumps(texts) if texts else "",
            *flattened(fields or {}),
        )
        try:
            appended = self.pipeline.submit("EVAL", event_scripts.APPEND_EVENT, 7, *keys, *arguments, size=len(encoded))
            accepted = bool(await appended)
        except redis.ResponseError as exc:
            raise Unavailable("broker_error", str(exc)) from exc
        claim.charged += charge
        return accepted

    async def checkpoint(self, claim: Claim, after: str, total: float, fields: Mapping[str, str]) -> bool:
        """Trim and charge audio without an event.

        Args:
            claim: The session, which this worker owns.
            after: Audio up to and including the entry of this id is not needed again, and is trimmed.
            total: Seconds of audio of the session by then, of all channels; those that are new are charged to its API
                key.
            fields: Fields of the session's hash that change with it.

        Returns:
            False if another worker owns the session now; nothing was changed then.

        Raises:
            Unavailable: Redis refused it.
        """
        sid, owner = claim.sid, claim.fields.get("owner", "")
        keys = (events_key(sid), session_key(sid), audio_key(sid), quota_key(owner, minute()))
        seconds = (f"{total:.3f}", f"{claim.charged:.3f}") if owner else (0, 0)
        arguments = (claim.epoch, next_id(after), *seconds, *flattened(fields))
        try:
            accepted = bool(await self.pipeline.submit("EVAL", event_scripts.CHECKPOINT, 4, *keys, *arguments))
        except redis.ResponseError as exc:
            raise Unavailable("broker_error", str(exc)) from exc
        claim.charged = max(claim.charged, total)
        return accepted

    def publish(self, claim: Claim, event: Partial | SpeechStarted | Progress) -> None:
        """Publish an event that may be lost: it is not stored, and not published if another worker owns the session.

        It is dropped while Redis is away or behind: the commands that wait are worth more.
        """
        if self.pipeline.bytes > MAX_PARTIAL_BYTES:
            return
        payload = codec.encode(event)
        keys = (events_key(claim.sid), session_key(claim.sid))
        self.pipeline.call(
            ignore_reply, "EVAL", event_scripts.PUBLISH, 2, *keys, claim.epoch, payload, size=len(payload)
        )
