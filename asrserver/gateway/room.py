"""Back-pressure: connections wait here, unread, until there is room for more of their audio.

There is no room while Redis is nearly full, while too many bytes are on their way to it, while a session is too far
ahead of the clock or of its results, in seconds or in bytes, or while its API key uses what others need. Waiting costs
nothing: a waiter is woken by what it waits for (a reply of Redis, a heartbeat that finds it less full, a result of the
session), or at the time at which the clock alone makes room.

A large chunk takes memory while it waits, and many connections could begin with one. So large chunks are refused.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from functools import partial

from asrserver.broker.fullness import FULL_FOR_AUDIO, FULL_FOR_GREEDY, FULL_FOR_SESSIONS
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.errors import Refused
from asrserver.gateway.admission import Admission
from asrserver.gateway.backlog import Backlog
from asrserver.gateway.held_bytes import LARGE_BYTES, HeldBytes
from asrserver.gateway.load_shedding import LoadShedder
from asrserver.gateway.rate_limits import RETRY_AFTER
from asrserver.gateway.session import Session
from asrserver.process.aio import Notifier

#: Bytes on their way to Redis at which connections are no longer read.
MAX_IN_FLIGHT = 16 * 2**20

#: Seconds between checks whether a key that uses more than its share is still held back.
HOLD_SECONDS = 1.0

#: Seconds that one message waits for room at most. Then the connection is read again, so that its end is noticed.
MAX_WAIT = 8.0


class RoomGate:
    """Decides for one gateway whether more audio may be read, and wakes those who wait for it.

    It must learn of every change: `pipeline.on_replies` and `backlog.on_answer` call it, and `fullness` is set at every
    heartbeat.
    """

    def __init__(
        self, broker: GatewayBroker, admission: Admission, backlog: Backlog, shedder: LoadShedder, held: HeldBytes
    ) -> None:
        self._broker = broker
        self._admission = admission
        self._backlog = backlog
        self._shedder = shedder
        self._held = held
        self._fullness = 0.0
        self._starts = Notifier()
        self._redis = {redis: Notifier() for redis in broker.members}
        self._sessions: dict[str, Notifier] = {}  # those with waiters
        for redis in broker.members:
            redis.pipeline.on_replies = partial(self._on_replies, redis)
        backlog.on_answer = self._on_answer

    @property
    def fullness(self) -> float:
        """Used memory of Redis over its maxmemory; of several, of the least full one."""
        return self._fullness

    @fullness.setter
    def fullness(self, value: float) -> None:
        self._fullness = value
        if value < FULL_FOR_SESSIONS:
            self._starts.notify()
        for redis in self._redis:
            self._on_replies(redis)

    async def for_session(self, owner: str) -> bool:
        """Wait until Redis has room for a new session of a key, for at most MAX_WAIT seconds; return whether it has."""

        def has_room() -> bool:
            return self._fullness < (FULL_FOR_GREEDY if self._shedder.holds_back(owner) else FULL_FOR_SESSIONS)

        return await self._starts.wait_for(has_room, MAX_WAIT)

    def check_large(self, owner: str, size: int) -> None:
        """Check whether a chunk of this many bytes may come from a key, if it is large.

        Raises:
            Refused: `overloaded`: too many bytes of the key wait to be recognised, or are on their way to Redis.
        """
        if size <= LARGE_BYTES:
            return
        if self._backlog.is_full_for(owner):
            message = "too many bytes of this client's audio wait to be recognised"
        elif self._held.is_full_for(owner, size) or self._fullness >= FULL_FOR_AUDIO:
            message = "too many bytes of audio are on their way to Redis"
        else:
            return
        raise Refused(503, "overloaded", f"{message}: send it again later", retry_after=RETRY_AFTER)

    def for_audio(self, session: Session) -> Awaitable[bool] | None:
        """Return None if more audio of the session may be read, else what to wait for first.

        The awaitable takes at most MAX_WAIT seconds; its result is whether there is room then.
        """
        return None if self._has_room(session) else self._wait(session)

    async def _wait(self, session: Session) -> bool:
        deadline = time.monotonic() + MAX_WAIT
        while not self._has_room(session):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            redis = self._broker.of(session.id)
            if not self._redis_has_room(redis):
                await self._redis[redis].wait(left)
            else:
                await self._wait_for_answer(session.id, min(left, self._seconds_ahead(session)))
        return True

    async def _wait_for_answer(self, sid: str, seconds: float) -> None:
        changed = self._sessions.setdefault(sid, Notifier())
        try:
            await changed.wait(seconds)
        finally:
            if not changed:
                self._sessions.pop(sid, None)

    def _has_room(self, session: Session) -> bool:
        return self._redis_has_room(self._broker.of(session.id)) and not self._seconds_ahead(session)

    def _redis_has_room(self, redis: GatewayBroker) -> bool:
        return redis.bytes_on_their_way < MAX_IN_FLIGHT and self._fullness < FULL_FOR_AUDIO > redis.fullness

    def _seconds_ahead(self, session: Session) -> float:
        """Seconds until the clock makes room for more of the session; its results may do so earlier."""
        if session.state != "recording":
            return 0.0
        ahead = self._admission.seconds_ahead(session, self._backlog, self._shedder.holds_batches)
        held = self._shedder.holds_back(session.owner) or self._backlog.is_heavy(session.id)
        return max(ahead, HOLD_SECONDS) if held else ahead

    def _on_replies(self, redis: GatewayBroker) -> None:
        if self._redis[redis] and self._redis_has_room(redis):
            self._redis[redis].notify()

    def _on_answer(self, sid: str) -> None:
        changed = self._sessions.get(sid)
        if changed is not None:
            changed.notify()
