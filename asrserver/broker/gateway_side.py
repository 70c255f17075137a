"""What gateways do with Redis: open, resume and end sessions, append their audio, read their events, clean up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import redis

from asrserver.broker import audio_scripts, replies, session_scripts
from asrserver.broker.batching import Batch, ChunkBatcher
from asrserver.broker.client_secrets import ClientSecretStore
from asrserver.broker.connection import BrokerConnection, flattened, ignore_reply, next_id
from asrserver.broker.keys import (
    FINISHED,
    OFFERED,
    OPEN,
    audio_key,
    events_key,
    results_channel,
    session_key,
    tasks_key,
    transcript_key,
)
from asrserver.broker.large_chunks import PART_BYTES, LargeChunks
from asrserver.broker.pipeline import ScriptCall, is_foreign
from asrserver.broker.quota import Quota
from asrserver.broker.raw_connection import encode
from asrserver.broker.subscription import listen
from asrserver.errors import BadRequest, Unavailable
from asrserver.protocol import codec
from asrserver.protocol.events import Published, Result

#: Sessions whose deadlines one script sets: it holds Redis for less than a millisecond.
REFRESH_BATCH = 200

#: Sessions that one script checks for being stored: it holds Redis for less than a millisecond.
MAX_UNSTORED = 500

#: No session lacks any audio.
NONE_MISSING: Mapping[str, str] = MappingProxyType({})

#: The errors for the refusals of audio_scripts.APPEND.
_NOT_APPENDED = {
    0: ("session_moved", "the session was resumed elsewhere"),
    -1: ("broker_error", "an earlier chunk could not be written"),
    -2: ("session_gone", "the session is over"),
}


class ChunksMissing(Exception):
    """Raised when a session cannot be ended as its client asks, because a chunk before the end was refused."""


class GatewayBroker(BrokerConnection):
    """The broker of one gateway. Redis refuses the audio of a session that another gateway holds.

    Attributes:
        quota: What API keys use.
        client_secrets: Short-lived keys.
        fullness: Used memory over maxmemory of one of several Redis servers, when last asked; 0 if there is only one.
    """

    KIND = "gateway"
    fullness = 0.0

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name)
        self.quota = Quota(self.pipeline)
        self.client_secrets = ClientSecretStore(self.pipeline)
        self._large = LargeChunks(self.pipeline, name)
        self._batcher = ChunkBatcher(lambda sid, batch: self._large.in_order(sid, partial(self._append, sid, batch)))

    async def close(self) -> None:
        """Send all waiting chunks, wait until all commands have their replies, and disconnect."""
        self._batcher.flush_all()
        await super().close()

    # -- several Redis servers, see shards.py --------------------------------------------------------------------------

    @property
    def members(self) -> Sequence[GatewayBroker]:
        """The broker of each Redis."""
        return (self,)

    def of(self, sid: str) -> GatewayBroker:
        """Return the broker of the Redis that holds a session of this gateway."""
        return self

    def shards(self) -> list[dict[str, Any]]:
        """Describe the shards, for operators; none where there is only one Redis."""
        return []

    # -- sessions ----------------------------------------------------------------------------------------------------

    async def open_session(
        self,
        sid: str,
        nonce: str,
        fields: Mapping[str, str],
        deadline: float,
        model: str | None = None,
        chosen: bool = False,
    ) -> bool:
        """Create a session: its keys, and its task for the workers.

        Args:
            sid: The id of the session.
            nonce: A random text by which a repeated command recognises its own session.
            fields: The fields of the session's hash.
            deadline: Until when (epoch seconds) this gateway answers for the session.
            model: The model that the session names: only workers that offer it will claim the session.
            chosen: Whether the client chose the id, which then may be in use.

        Returns:
            False if the id is in use.

        Raises:
            BadRequest: `unknown_model`: nobody has offered the model lately.
        """
        keys = (session_key(sid), audio_key(sid), events_key(sid), OPEN, tasks_key(model), OFFERED)
        arguments = (sid, deadline, nonce, model or "", *flattened(fields))
        try:
            reply = await self.pipeline.submit("EVAL", session_scripts.OPEN, 6, *keys, *arguments)
        except redis.ResponseError as exc:
            if "equal or smaller" in str(exc) or is_foreign(exc):  # another program has keys of this name
                return False
            raise
        if reply < 0:
            raise BadRequest("unknown_model", f"no worker offers the model {model!r}", option="model")
        return bool(reply)

    async def resume_session(
        self, sid: str, deadline: float, owner: str, detached: bool = False, last_seq: int = 0
    ) -> dict[str, str] | None:
        """Take over a session from whichever gateway holds it.

        Earlier commands of this gateway are executed first; from then on the other gateway's chunks are refused.

        Args:
            sid: The id of the session.
            deadline: Until when (epoch seconds) this gateway answers for it.
            owner: The id of the API key that it must belong to.
            detached: Whether no client may be connected to it.
            last_seq: The last event that its client has; 0: none.

        Returns:
            The fields of its hash; None if the owner has no such session.

        Raises:
            BadRequest: `bad_seq`: it has no such event. It stays where it is.
        """
        self._batcher.flush(sid)
        keys = (session_key(sid), OPEN, events_key(sid))
        arguments = (sid, self.name, deadline, owner, int(detached), last_seq)
        asked = self._large.submit(sid, "EVAL", session_scripts.RESUME, 3, *keys, *arguments)
        reply = await self._unless_damaged(sid, asked, None)
        if reply == -1:
            raise BadRequest("bad_seq", f"last_seq {last_seq} is past the session's last result", session_id=sid)
        return None if reply is None else replies.strings(dict(zip(reply[::2], reply[1::2], strict=True)))

    async def end_session(
        self,
        sid: str,
        status: str,
        deadline: float,
        seen: str | None = None,
        overdue: float | None = None,
        last: int | None = None,
    ) -> bool:
        """Append the end of the audio, and answer for the session from now on.

        Args:
            sid: The id of the session.
            status: How it ended: done or interrupted.
            deadline: Until when (epoch seconds) this gateway answers for it.
            seen: The gateway that must hold it now; by default, this one.
            overdue: If given, the session must not have a deadline after this time (epoch seconds).
            last: If given, the index of the session's last chunk.

        Returns:
            False if these conditions do not hold; nothing was changed then.

        Raises:
            ChunksMissing: The session's last chunk is not `last`: one was refused on its way. Nothing was changed.
        """
        self._batcher.flush(sid)
        keys = (session_key(sid), audio_key(sid), OPEN)
        conditions = ("" if overdue is None else overdue, "" if last is None else last)
        arguments = (sid, seen or self.name, self.name, status, deadline, *conditions)
        asked = self._large.submit(sid, "EVAL", session_scripts.END, 3, *keys, *arguments)
        try:
            reply = await self._unless_damaged(sid, asked, 0)
        except redis.ResponseError as exc:
            if "no such key" in str(exc):
                return False
            raise
        if reply < 0:
            raise ChunksMissing
        return bool(reply)

    def detach_session(self, sid: str) -> None:
        """Note that no client is connected to a session of this gateway, until it is resumed."""
        self.pipeline.call(ignore_reply, "EVAL", session_scripts.DETACH, 1, session_key(sid), self.name)

    def flush_session(self, sid: str, number: int, last: int | None) -> asyncio.Future[Any]:
        """Append a flush behind the chunks that were appended before, even while the future is not awaited.

        Args:
            sid: The id of the session.
            number: The number of the flush among the session's, from 1.
            last: The index of the chunk before it; None if there is none.

        Returns:
            A future that is done when Redis has it; its exception is Unavailable. If the session takes no more audio
            here, or Redis has refused that chunk, nothing was changed.
        """
        self._batcher.flush(sid)
        keys = (session_key(sid), audio_key(sid))
        arguments = (sid, self.name, number, "" if last is None else last)
        return self._large.submit(sid, "EVAL", session_scripts.FLUSH, 2, *keys, *arguments)

    async def change_options(self, sid: str, options: str) -> None:
        """Have the audio behind the chunks that were appended before recognised with other options.

        Args:
            sid: The id of the session. If it takes no more audio here, nothing is changed.
            options: As the session's hash has them.

        Raises:
            Unavailable: Redis does not answer.
        """
        self._batcher.flush(sid)
        await self._large.submit(
            sid, "EVAL", session_scripts.CHANGE, 2, session_key(sid), audio_key(sid), self.name, options
        )

    async def refresh(
        self, deadlines: Mapping[str, float], missing: Mapping[str, str] = NONE_MISSING
    ) -> dict[str, str]:
        """Set the deadlines (epoch seconds) of this gateway's sessions; a closed one stays closed.

        Args:
            deadlines: The deadlines.
            missing: The field `missing` of the sessions that have it.

        Returns:
            Session id → moved, ended (by another gateway) or gone, for sessions that this gateway does not hold.
        """
        lost: dict[str, str] = {}
        pairs = list(deadlines.items())
        for begin in range(0, len(pairs), REFRESH_BATCH):
            some = pairs[begin : begin + REFRESH_BATCH]
            session_keys = [session_key(sid) for sid, _ in some]
            arguments = [part for sid, deadline in some for part in (sid, deadline, missing.get(sid, ""))]
            reply = await self.pipeline.submit(
                "EVAL", session_scripts.REFRESH, 1 + len(some), OPEN, *session_keys, self.name, *arguments
            )
            found = [part.decode() for part in reply]
            lost.update(zip(found[::2], found[1::2], strict=True))
        return lost

    async def overdue(self, now: float, count: int) -> list[str]:
        """Return up to `count` open sessions whose deadline is before `now` (epoch seconds)."""
        found = await self.pipeline.submit("ZRANGEBYSCORE", OPEN, "-inf", now, "LIMIT", 0, count)
        return [sid.decode() for sid in found]

    async def close_session(self, sid: str, ttl: float) -> None:
        """Let a stored session expire: all its keys get the same TTL in seconds, so that a reader finds all or nothing.

        The keys of a session that was deleted meanwhile are deleted at once.
        """
        keys = (session_key(sid), audio_key(sid), events_key(sid), transcript_key(sid), OPEN, FINISHED)
        await self.pipeline.submit("EVAL", session_scripts.CLOSE, 6, *keys, sid, int(ttl * 1000))

    async def unstored(self, sids: Collection[str] = ()) -> list[str]:
        """Return the sessions whose final event is published and not stored yet.

        Args:
            sids: The sessions; without any, the newest MAX_UNSTORED finished ones of all gateways.
        """
        found = await self.pipeline.submit("EVAL", session_scripts.UNSTORED, 2, FINISHED, OPEN, MAX_UNSTORED, *sids)
        return [sid.decode() for sid in found]

    async def delete_session(self, sid: str, owner: str | None) -> bool:
        """Delete the keys of a session: at once if it is stored; of an open one when it is closed.

        Args:
            sid: The id of the session.
            owner: If given, the id of the API key that it must belong to.

        Returns:
            Whether there was such a session.
        """
        keys = (session_key(sid), audio_key(sid), events_key(sid), transcript_key(sid), OPEN)
        return bool(await self.pipeline.submit("EVAL", session_scripts.DELETE, 5, *keys, sid, owner or ""))

    async def open_sessions(self, sids: Iterable[str]) -> set[str]:
        """Return those of the sessions for which some gateway answers."""
        waits = {sid: self.pipeline.submit("ZSCORE", OPEN, sid) for sid in sids}
        await asyncio.gather(*waits.values())
        return {sid for sid, found in waits.items() if found.result() is not None}

    async def known(self, sids: Iterable[str]) -> set[str]:
        """Return those of the sessions that Redis has."""
        waits = {sid: self.pipeline.submit("EXISTS", session_key(sid)) for sid in sids}
        await asyncio.gather(*waits.values())
        return {sid for sid, found in waits.items() if found.result()}

    # -- audio -------------------------------------------------------------------------------------------------------

    def append(
        self,
        sid: str,
        index: int,
        before: int | None,
        pieces: list[bytes],
        joins: bool,
        done: Callable[[Exception | None], None],
    ) -> None:
        """Append consecutive chunks to a session's audio. Chunks that Redis has already change nothing.

        Args:
            sid: The id of the session.
            index: The index of the first chunk.
            before: The index of the chunk that it must follow; None if it is the session's first.
            pieces: The chunks.
            joins: Whether they may be joined with their neighbours: they wait for those, and share an entry. Otherwise
                there must be only one chunk.
            done: Called with None once Redis has them, or with the exception.
        """
        self._batcher.add(sid, index, before, pieces, joins, done)

    def _append(self, sid: str, batch: Batch) -> None:
        def replied(reply: Any) -> None:
            if reply == 1:
                batch.answer(None)
            else:
                batch.answer(reply if isinstance(reply, Exception) else Unavailable(*_NOT_APPENDED[reply]))

        if batch.size > PART_BYTES and len(batch.data) == 1:
            self._large.append(sid, batch, replied)
            return
        before = b"" if batch.before is None else b"%d" % batch.before
        data = batch.data[0] if len(batch.data) == 1 else b"".join(batch.data)
        arguments = (b"%d" % batch.index, before, data, b"%.6f" % batch.received, b"%d" % len(batch.data))
        keys = encode(session_key(sid).encode(), audio_key(sid).encode())
        call = ScriptCall(audio_scripts.APPEND, keys, self.name, len(arguments), encode(*arguments))
        self.pipeline.call(replied, call, size=batch.size + 100)

    @property
    def bytes_on_their_way(self) -> int:
        """Bytes that wait for the replies of Redis. Those that wait for their batch are bounded by the batcher."""
        return self.pipeline.bytes + self._large.bytes

    # -- events ------------------------------------------------------------------------------------------------------

    async def subscribe(self, on_event: Callable[[Published], None], on_subscribed: Callable[[], None]) -> None:
        """Call `on_event` with every event that is published to this gateway, forever.

        `on_subscribed` is called after each (re)subscription: what was published before may be lost.
        """
        channel = results_channel(self.name)
        await listen(self._client, channel, lambda data: on_event(codec.decode_published(data)), on_subscribed)

    async def read_events(self, sid: str, after: str = "0-1") -> list[Result]:
        """Return the durable events of a session after an id, oldest first."""
        asked = self.pipeline.submit("XRANGE", events_key(sid), f"({after}", "+")
        return replies.events(await self._unless_damaged(sid, asked, ()))

    async def read_sessions(
        self, after: Mapping[str, str], known: Collection[str] = ()
    ) -> dict[str, tuple[dict[str, str], list[Result]]]:
        """Read many sessions in one round trip. One that has a key of another program is given up, and gone.

        Args:
            after: Session id → id of the durable event after which to read.
            known: Sessions whose hashes need not be read.

        Returns:
            Session id → the fields of its hash (none of a session that is `known` or gone), and its events.
        """
        fields = {sid: self.pipeline.submit("HGETALL", session_key(sid)) for sid in after if sid not in known}
        events = {sid: self.pipeline.submit("XRANGE", events_key(sid), f"({last}", "+") for sid, last in after.items()}
        await asyncio.gather(*fields.values(), *events.values(), return_exceptions=True)
        read: dict[str, tuple[dict[str, str], list[Result]]] = {}
        for sid, found in events.items():
            try:
                hashed = replies.strings(fields[sid].result()) if sid in fields else {}
                read[sid] = hashed, replies.events(found.result())
            except redis.ResponseError as exc:
                await self._damaged(sid, exc)
                read[sid] = {}, []
        return read

    async def _unless_damaged(self, sid: str, asked: Awaitable[Any], instead: Any) -> Any:
        """Return the reply to a command about a session; give the session up where a key is another program's."""
        try:
            return await asked
        except redis.ResponseError as exc:
            await self._damaged(sid, exc)
            return instead

    async def _damaged(self, sid: str, error: redis.ResponseError) -> None:
        """Give a session up if this is the error that a key of another program causes; otherwise raise it."""
        if not is_foreign(error):
            raise error
        await self.give_up_session(sid, str(error))

    async def trim_events(self, sid: str, upto: str) -> None:
        """Trim the durable events up to and including an id: they are stored, and the client has them."""
        await self.pipeline.submit("XTRIM", events_key(sid), "MINID", next_id(upto))
