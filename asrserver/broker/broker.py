"""Every Redis command of the system, under the names of the design.

    asr_tasks                     stream, group asr_workers: one entry a session; its pending entry is the lease
    asr_open                      sorted set, session → deadline of the gateway that answers for it
    asr_session:{sid}             hash: options, gateway, first and last chunk, how it ended, strikes, where a next
                                  owner goes on, the seconds that are charged without an event
    asr_audio:{sid}               stream, ids <index+1>-0: the bytes of chunks, of one or (`n`) of some in a row, by the
                                  last one's index; control entries at <last>-<k>
    asr_events:{sid}              stream, ids <epoch>-<n>: durable results, fenced by the epoch
    asr_results:<gateway>         Pub/Sub channel: the same results, at once
    asr_ended                     Pub/Sub channel: sessions that have ended, for workers that read seldom
    worker:<name>:heartbeat, gateway:<name>:heartbeat      JSON with a TTL
    asr_alive:worker, asr_alive:gateway                    sorted sets, name → last heartbeat: their index
    asr_dead                      stream: audio that killed workers three times
    asr_held:…, asr_starts:…, asr_quota:…                  what API keys use, see quota.py

What must be atomic is a script; every script may be sent again after a lost reply and then does nothing new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import orjson
import redis

from asrserver.broker import replies, scripts
from asrserver.broker.batching import Batch, ChunkBatcher
from asrserver.broker.keys import (
    DEAD,
    ENDED,
    GROUP,
    OPEN,
    TASKS,
    alive_key,
    audio_key,
    events_key,
    heartbeat_key,
    quota_key,
    results_channel,
    session_key,
    transcript_key,
)
from asrserver.broker.lease import LeaseRenewer, WorkerJanitor
from asrserver.broker.pipeline import CONNECTION_ERRORS, Pipeline, ScriptCall, connect, encode
from asrserver.broker.quota import Quota, minute
from asrserver.broker.replies import Claim, Entry
from asrserver.broker.subscription import listen
from asrserver.errors import Unavailable
from asrserver.protocol import codec
from asrserver.protocol.events import Final, Partial, Progress, Published, Result

__all__ = ["HEARTBEAT_EVERY", "STRIKES", "Broker", "Claim", "Entry", "LeaseRenewer", "WorkerJanitor"]

#: Seconds that a heartbeat outlives its writer; it is written every HEARTBEAT_EVERY.
HEARTBEAT_TTL = 6.0
HEARTBEAT_EVERY = 2.0

#: Seconds of silence after which a name leaves the index of heartbeats; more than clocks differ.
HEARTBEAT_INDEX_TTL = 3600.0

#: Bytes on their way to Redis at which partial results are dropped.
MAX_PARTIAL_BYTES = 1 << 20

#: Strikes after which a piece of audio is buried.
STRIKES = 3

#: Sessions whose deadlines one script puts off: it holds Redis for less than a millisecond.
REFRESH_BATCH = 200

#: Entries of asr_dead that are kept: enough to look into, bounded.
MAX_DEAD_LETTERS = 1000


_NOT_APPENDED = {
    0: ("session_moved", "the session was resumed elsewhere"),
    -1: ("broker_error", "a chunk before it could not be written"),
    -2: ("session_gone", "the session is over"),
}


class Broker:
    """Redis, as gateways and workers use it. `name` is the gateway's or worker's own."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self._client = connect(url, timeout=None)
        self._blocking = connect(url, timeout=10.0, connections=2)
        self.pipeline = Pipeline(self._client)
        self.quota = Quota(self.pipeline)
        self._batcher = ChunkBatcher(self._append)

    async def open(self) -> None:
        """Wait for Redis (bounded by RETRY_SECONDS) and see that the group is there; raises Unavailable."""
        try:
            # Id 0 and never $: sessions that were started before the first worker are waiting, not lost.
            await self.pipeline.submit("XGROUP", "CREATE", TASKS, GROUP, "0", "MKSTREAM")
        except redis.ResponseError as exc:
            if "BUSYGROUP" not in str(exc):
                raise

    async def close(self) -> None:
        self._batcher.flush_all()
        await self.pipeline.drain()
        await self._client.aclose()
        await self._blocking.aclose()

    async def ping(self) -> float:
        """Seconds that a PING takes now; raises Unavailable after two."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(2):
                await self._client.ping()
        except (TimeoutError, redis.RedisError, OSError) as exc:
            raise Unavailable("broker_unavailable", str(exc) or type(exc).__name__) from exc
        return time.perf_counter() - started

    # -- gateway: sessions and audio -----------------------------------------------------------------------------

    async def open_session(self, sid: str, nonce: str, fields: dict[str, str], deadline: float) -> bool:
        """Create a session with all its keys and its task; False if the id is taken."""
        reply = await self.pipeline.submit(
            "EVAL",
            scripts.OPEN,
            5,
            session_key(sid),
            audio_key(sid),
            events_key(sid),
            OPEN,
            TASKS,
            sid,
            deadline,
            nonce,
            *_flat(fields),
        )
        return bool(reply)

    async def resume_session(self, sid: str, deadline: float, owner: str) -> dict[str, str] | None:
        """Take a session over from whichever gateway has it: its fields, or None if the owner has no such session.

        Commands of this gateway issued before are done by then, and those of the other are refused from then on.
        """
        self._batcher.flush(sid)
        keys = (session_key(sid), OPEN)
        reply = await self.pipeline.submit("EVAL", scripts.RESUME, 2, *keys, sid, self.name, deadline, owner)
        return None if reply is None else replies.strings(dict(zip(reply[::2], reply[1::2], strict=True)))

    def append(
        self,
        sid: str,
        index: int,
        before: int | None,
        pieces: list[bytes],
        joins: bool,
        done: Callable[[Exception | None], None],
    ) -> None:
        """Append chunks, from this index on, after the one with the index `before`; `done` gets None once Redis has
        them.

        What arrived before its reply was lost changes nothing the second time. Those that `joins` may share an entry,
        with others around them too, and wait for them: their borders mean nothing. Any other comes alone.
        """
        self._batcher.add(sid, index, before, pieces, joins, done)

    def _append(self, sid: str, batch: Batch) -> None:
        def replied(reply: Any) -> None:
            if reply == 1:
                batch.answer(None)
            else:
                batch.answer(reply if isinstance(reply, Exception) else Unavailable(*_NOT_APPENDED[reply]))

        before = b"" if batch.before is None else b"%d" % batch.before
        data = batch.data[0] if len(batch.data) == 1 else b"".join(batch.data)
        arguments = (b"%d" % batch.index, before, data, b"%.6f" % batch.received, b"%d" % len(batch.data))
        keys = encode(session_key(sid).encode(), audio_key(sid).encode())
        part = ScriptCall(scripts.APPEND, keys, self.name, len(arguments), encode(*arguments))
        self.pipeline.call(replied, part, size=batch.size + 100)

    @property
    def bytes_on_their_way(self) -> int:
        """Bytes that wait for Redis; those that wait for others to come along are bounded by themselves."""
        return self.pipeline.bytes

    async def end_session(
        self, sid: str, status: str, deadline: float, seen: str | None = None, overdue: float | None = None
    ) -> bool:
        """Append the end and answer for the session from now on; False if its gateway is not `seen` (any more).

        With `overdue`, a time, also False if somebody answers for it since.
        """
        self._batcher.flush(sid)
        try:
            return bool(
                await self.pipeline.submit(
                    "EVAL",
                    scripts.END,
                    3,
                    session_key(sid),
                    audio_key(sid),
                    OPEN,
                    sid,
                    seen or self.name,
                    self.name,
                    status,
                    deadline,
                    "" if overdue is None else overdue,
                )
            )
        except redis.ResponseError as exc:
            if "no such key" in str(exc):
                return False
            raise

    async def refresh(self, deadlines: Mapping[str, float]) -> dict[str, str]:
        """Set the deadlines of this gateway's open sessions; what is not open stays out.

        Of those that are not this gateway's (any more), what they are: moved, ended (by another) or gone.
        """
        lost: dict[str, str] = {}
        pairs = list(deadlines.items())
        for begin in range(0, len(pairs), REFRESH_BATCH):
            some = pairs[begin : begin + REFRESH_BATCH]
            session_keys = [session_key(sid) for sid, _ in some]
            arguments = [part for pair in some for part in pair]
            reply = await self.pipeline.submit(
                "EVAL", scripts.REFRESH, 1 + len(some), OPEN, *session_keys, self.name, *arguments
            )
            found = [part.decode() for part in reply]
            lost.update(zip(found[::2], found[1::2], strict=True))
        return lost

    async def overdue(self, now: float, count: int) -> list[str]:
        """Sessions whose gateway has not put off their deadline."""
        found = await self.pipeline.submit("ZRANGEBYSCORE", OPEN, "-inf", now, "LIMIT", 0, count)
        return [sid.decode() for sid in found]

    async def read_events(self, sid: str, after: str = "0-1") -> list[Result]:
        """Durable events past an id, oldest first."""
        entries = await self.pipeline.submit("XRANGE", events_key(sid), f"({after}", "+")
        return replies.events(entries)

    async def read_sessions(
        self, after: Mapping[str, str], known: Collection[str] = ()
    ) -> dict[str, tuple[dict[str, str], list[Result]]]:
        """Fields and durable events past an id, of several sessions in one round trip; no fields of those `known`."""
        fields = {sid: self.pipeline.submit("HGETALL", session_key(sid)) for sid in after if sid not in known}
        events = {sid: self.pipeline.submit("XRANGE", events_key(sid), f"({last}", "+") for sid, last in after.items()}
        await asyncio.gather(*fields.values(), *events.values())
        return {
            sid: (replies.strings(fields[sid].result()) if sid in fields else {}, replies.events(found.result()))
            for sid, found in events.items()
        }

    async def forget_events(self, sid: str, upto: str) -> None:
        """Trim the durable events up to and with an id: they are stored, and their reader has them."""
        await self.pipeline.submit("XTRIM", events_key(sid), "MINID", _following(upto))

    async def close_session(self, sid: str, ttl: float) -> None:
        """Let go of a stored session: all its keys get one TTL, so that a late reader finds all or nothing.

        Those of one that was deleted meanwhile go at once.
        """
        keys = (session_key(sid), audio_key(sid), events_key(sid), transcript_key(sid), OPEN)
        await self.pipeline.submit("EVAL", scripts.CLOSE, 5, *keys, sid, int(ttl * 1000))

    async def delete_session(self, sid: str, owner: str | None) -> bool:
        """Delete the keys of a session that is stored; of one that is open, when it will be. Whether there is one.

        With an owner, only if it is that owner's.
        """
        keys = (session_key(sid), audio_key(sid), events_key(sid), transcript_key(sid), OPEN)
        return bool(await self.pipeline.submit("EVAL", scripts.DELETE, 5, *keys, sid, owner or ""))

    async def open_sessions(self, sids: Iterable[str]) -> set[str]:
        """Those of the sessions that some gateway answers for."""
        waits = {sid: self.pipeline.submit("ZSCORE", OPEN, sid) for sid in sids}
        await asyncio.gather(*waits.values())
        return {sid for sid, found in waits.items() if found.result() is not None}

    async def known(self, sids: Iterable[str]) -> set[str]:
        """Those of the sessions that Redis has something of."""
        waits = {sid: self.pipeline.submit("EXISTS", session_key(sid)) for sid in sids}
        await asyncio.gather(*waits.values())
        return {sid for sid, found in waits.items() if found.result()}

    async def memory(self) -> float:
        """How full Redis is: used memory over maxmemory, 0 where there is no limit."""
        info = await self.pipeline.submit("INFO", "memory")
        return info["used_memory"] / info["maxmemory"] if info.get("maxmemory") else 0.0

    async def subscribe(self, on_event: Callable[[Published], None], on_subscribed: Callable[[], None]) -> None:
        """Hand every event published to this gateway to `on_event`, for ever.

        `on_subscribed` is called at each (re)subscription: what was published before it may be lost.
        """
        channel = results_channel(self.name)
        await listen(self._client, channel, lambda data: on_event(codec.decode_published(data)), on_subscribed)

    # -- worker: claims, audio, events ---------------------------------------------------------------------------

    async def claim(self, lease: float | None, count: int, block: float) -> list[tuple[str, str]]:
        """(task, sid) of up to `count` sessions: with `lease`, first those whose lease of so many seconds ran out; then
        new ones, waiting `block` seconds for one."""
        found: list[tuple[str, str]] = []
        if lease is not None:
            idle = int(lease * 1000)
            found = replies.tasks(
                await self.pipeline.submit("EVAL", scripts.STALE, 1, TASKS, GROUP, self.name, idle, count)
            )
        if len(found) < count:
            command = ["XREADGROUP", "GROUP", GROUP, self.name, "COUNT", count - len(found)]
            if block and not found:
                reply = await self._block(*command, "BLOCK", int(block * 1000), "STREAMS", TASKS, ">")
            else:
                reply = await self.pipeline.submit(*command, "STREAMS", TASKS, ">")
            for _, entries in reply or ():
                found += replies.tasks(entries)
        return found

    async def listen_for_ends(self, on_end: Callable[[str], None]) -> None:
        """Tell `on_end` the id of every session that ends, for ever. One that goes by is seen when it is read next."""
        await listen(self._client, ENDED, lambda data: on_end(orjson.loads(data)["session_id"]), lambda: None)

    async def _block(self, *command: Any) -> Any:
        """A command that waits in Redis, on a connection of its own: in the pipeline it would hold up all others."""
        try:
            return await self._blocking.execute_command(*command)
        except CONNECTION_ERRORS as exc:
            await asyncio.sleep(0.2)  # what was claimed for a lost reply is found by its idle time
            raise Unavailable("broker_unavailable", str(exc) or type(exc).__name__) from exc

    async def acquire(self, task: str, sid: str) -> Claim | None:
        """Become the session's owner: fence off every older one, read what is done; None if there is nothing to do."""
        epoch, fields, entries, transcript = await asyncio.gather(
            self.pipeline.submit("EVAL", scripts.FENCE, 1, events_key(sid), self.name),
            self.pipeline.submit("HGETALL", session_key(sid)),
            self.pipeline.submit("XRANGE", events_key(sid), "(0-1", "+"),
            self.pipeline.submit("LRANGE", transcript_key(sid), 0, -1),
        )
        events = replies.events(entries)
        if epoch is None or not fields or (events and isinstance(events[-1], Final)):
            await asyncio.gather(
                self.pipeline.submit("XACK", TASKS, GROUP, task), self.pipeline.submit("XDEL", TASKS, task)
            )
            return None
        session = replies.strings(fields)
        counted = max(events[-1].total if events else 0.0, float(session.get("charged", 0.0)))
        return Claim(sid, task, epoch, session, events, replies.texts(transcript), counted)

    async def read_audio(self, cursors: Mapping[str, str], count: int) -> dict[str, list[Entry]]:
        """Up to `count` audio entries past each session's cursor, of all sessions in one command."""
        if not cursors:
            return {}
        keys = {audio_key(sid): sid for sid in cursors}
        reply = await self.pipeline.submit("XREAD", "COUNT", count, "STREAMS", *keys, *cursors.values())
        return {
            keys[key.decode()]: [replies.entry(*pair) for pair in replies.pairs(entries)]
            for key, entries in reply or ()
        }

    async def append_event(
        self, claim: Claim, event: Result, after: str, fields: Mapping[str, str] | None = None
    ) -> bool:
        """Make an event durable and publish it; False if another worker owns the session now.

        Audio up to and with the entry `after` is not needed again and is trimmed; `fields` of the session change with
        it. A final event gives the lease back. The audio that is new in the event's `total` is charged to the key.
        """
        sid = claim.sid
        owner = claim.fields.get("owner", "")
        texts = [(segment.text, segment.language) for segment in event.segments]
        charge = max(0.0, event.total - claim.counted) if owner else 0.0
        try:
            accepted = bool(
                await self.pipeline.submit(
                    "EVAL",
                    scripts.EMIT,
                    6,
                    events_key(sid),
                    session_key(sid),
                    audio_key(sid),
                    TASKS,
                    quota_key(owner, minute()),
                    transcript_key(sid),
                    event.id,
                    event.seq,
                    codec.encode(event),
                    _following(after),
                    "1" if isinstance(event, Final) else "0",
                    claim.task,
                    GROUP,
                    f"{charge:.3f}",
                    orjson.dumps(texts) if texts else "",
                    *_flat(fields or {}),
                )
            )
            claim.counted += charge
            return accepted
        except redis.ResponseError as exc:  # full, say: the event must come to be, by the next owner if not by this one
            raise Unavailable("broker_error", str(exc)) from exc

    async def checkpoint(self, claim: Claim, after: str, total: float, fields: Mapping[str, str]) -> bool:
        """Trim audio that gave no event, of a session of so many seconds by then, and charge it, as `emit` does; False
        if another worker owns the session now."""
        sid, owner = claim.sid, claim.fields.get("owner", "")
        keys = (events_key(sid), session_key(sid), audio_key(sid), quota_key(owner, minute()))
        seconds = (f"{total:.3f}", f"{claim.counted:.3f}") if owner else (0, 0)
        arguments = (claim.epoch, _following(after), *seconds, *_flat(fields))
        try:
            accepted = bool(await self.pipeline.submit("EVAL", scripts.COVER, 4, *keys, *arguments))
        except redis.ResponseError as exc:
            raise Unavailable("broker_error", str(exc)) from exc
        claim.counted = max(claim.counted, total)
        return accepted

    def publish(self, claim: Claim, event: Partial | Progress) -> None:
        """Publish what may be lost: it is stored nowhere, and none of an older owner's gets out."""
        if self.pipeline.bytes > MAX_PARTIAL_BYTES:
            return  # Redis is away or behind: a partial result is worth less than what waits
        payload = codec.encode(event)
        keys = (events_key(claim.sid), session_key(claim.sid))
        self.pipeline.call(_ignore, "EVAL", scripts.PUBLISH, 2, *keys, claim.epoch, payload, size=len(payload))

    async def release(self, tasks: Iterable[str] = ()) -> int:
        """Give sessions up so that any worker may claim them at once: those of the tasks, or all."""
        return int(await self.pipeline.submit("EVAL", scripts.RELEASE, 1, TASKS, GROUP, self.name, *tasks))

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None:
        """Note a piece of audio that killed or failed its workers, with the reason."""
        await self.pipeline.submit(
            "XADD", DEAD, "MAXLEN", "~", MAX_DEAD_LETTERS, "*", "sid", sid, "entry", entry, "reason", reason
        )

    # -- both: heartbeats and numbers ----------------------------------------------------------------------------

    def heartbeat(self, kind: str, state: dict[str, Any]) -> None:
        """Say that this gateway or worker lives, and how it is."""
        payload = orjson.dumps({"name": self.name, "time": time.time(), **state})
        self.pipeline.call(_ignore, "SET", heartbeat_key(kind, self.name), payload, "PX", int(HEARTBEAT_TTL * 1000))
        self.pipeline.call(_ignore, "ZADD", alive_key(kind), time.time(), self.name)

    async def deregister(self, kind: str) -> None:
        """Take the heartbeat back at a stop that was asked for."""
        await asyncio.gather(
            self.pipeline.submit("DEL", heartbeat_key(kind, self.name)),
            self.pipeline.submit("ZREM", alive_key(kind), self.name),
        )

    async def heartbeats(self, kind: str) -> list[dict[str, Any]]:
        """The heartbeats of all living gateways or workers, by name."""
        # The index saves a SCAN of all sessions' keys; the heartbeats themselves say who lives, whatever the clocks.
        long_ago = time.time() - HEARTBEAT_INDEX_TTL
        _, names = await asyncio.gather(
            self.pipeline.submit("ZREMRANGEBYSCORE", alive_key(kind), "-inf", long_ago),
            self.pipeline.submit("ZRANGEBYSCORE", alive_key(kind), long_ago, "+inf"),
        )
        keys = [heartbeat_key(kind, name.decode()) for name in names]
        values = await self.pipeline.submit("MGET", *keys) if keys else []
        return sorted((orjson.loads(value) for value in values if value), key=lambda state: state["name"])

    async def oldest_waiting(self) -> float:
        """Seconds that the first session no worker has claimed has waited; 0 if there is none."""
        return float(await self.pipeline.submit("EVAL", scripts.OLDEST, 1, TASKS, GROUP)) / 1000

    async def keyspace_stats(self) -> dict[str, int]:
        """Keys in Redis, those of them that do not expire, and bytes of memory used."""
        keyspace, memory = await asyncio.gather(
            self.pipeline.submit("INFO", "keyspace"), self.pipeline.submit("INFO", "memory")
        )
        number = self._client.connection_pool.connection_kwargs.get("db") or 0
        here = keyspace.get(f"db{number}", {"keys": 0, "expires": 0})
        return {
            "keys": here["keys"],
            "lasting_keys": here["keys"] - here["expires"],
            "memory_bytes": memory["used_memory"],
        }

    async def queue(self) -> dict[str, int]:
        """Sessions waiting for a worker, sessions with one, and audio buried."""
        total, pending, dead = await asyncio.gather(
            self.pipeline.submit("XLEN", TASKS),
            self.pipeline.submit("XPENDING", TASKS, GROUP),
            self.pipeline.submit("XLEN", DEAD),
        )
        held = pending["pending"] if isinstance(pending, dict) else pending[0]
        return {"waiting": max(0, total - held), "processing": held, "dead": dead}


def _following(entry: str) -> str:
    ms, n = entry.split("-")
    return f"{ms}-{int(n) + 1}"


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def _ignore(_reply: Any) -> None:
    """For commands that are sent again anyway."""
