"""Admission: who may connect, start and send how much.

The limits of this gateway are in rate_limits.py. Those of API keys are here; all gateways share them through Redis.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import partial

from asrserver.auth.access import Access
from asrserver.auth.keys import Key, KeyLimits
from asrserver.broker.quota import Quota, minute
from asrserver.config import Settings
from asrserver.errors import Refused
from asrserver.gateway.backlog import Backlog
from asrserver.gateway.rate_limits import RETRY_AFTER, Limits, RateMeter
from asrserver.gateway.session import Session
from asrserver.shares import leaves_room

#: The limits of an unknown key, and of a client without one: none.
_UNLIMITED = KeyLimits()


class Admission:
    """Decides for the gateway `name` who may connect, start and send. Refusals are raised as Refused."""

    def __init__(self, settings: Settings, access: Access, quota: Quota, name: str) -> None:
        self.limits = Limits(settings)
        self._settings = settings
        self._access = access
        self._quota = quota
        self._name = name
        self._serial = itertools.count()
        self._connections: dict[str, str] = {}  # member → owner
        self._held = Counter[str]()  # connections by owner
        self._spent: dict[str, float] = {}  # owner → seconds of audio in the minute _spent_in
        self._spent_in = 0

    # -- connections ---------------------------------------------------------------------------------------------

    async def connect(self, address: str, key: Key | None) -> Callable[[], None]:
        """Admit a connection.

        Args:
            address: The client's IP address.
            key: Its API key, where keys are in use.

        Returns:
            To be called when the connection is closed.

        Raises:
            Refused: A limit of this gateway or of the key is reached.
            Unavailable: Redis, which counts for all gateways, does not answer.
        """
        owner = "" if key is None else key.id
        self.leave_room("max_connections", owner, self.limits.connections, lambda: self._held[owner])
        self.limits.connect(address)
        self._held[owner] += 1
        if key is None:
            return partial(self._disconnect, address, owner)
        try:
            limits = self._limits(owner)
            if limits.audio_per_minute:
                self._note(await self._quota.spent([owner]))
                self._refuse_spent(owner, limits)
            member = f"{self._name}/{next(self._serial)}"
            if limits.connections and not await self._quota.hold("connections", owner, member, limits.connections):
                message = f"connection limit of this API key reached ({limits.connections})"
                raise Refused(429, "too_many_connections", message, retry_after=RETRY_AFTER)
        except BaseException:
            self._disconnect(address, owner)
            raise
        self._connections[member] = owner
        return partial(self._disconnect, address, owner, member)

    def _disconnect(self, address: str, owner: str, member: str = "") -> None:
        if member:
            self._quota.release("connections", self._connections.pop(member), member)
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self.limits.disconnect(address)

    def leave_room(self, setting: str, owner: str, used: int, count: Callable[[], int]) -> None:
        """Check that one more connection, or session, of a key leaves room for other keys; see shares.leaves_room.

        Without keys there is no one to share with: an address is no identity, and has a limit of its own.

        Args:
            setting: `max_connections` or `max_sessions`.
            owner: The id of the key; empty if there is none.
            used: How many there are on this gateway.
            count: Counts those of the key; called only where there may be too many.

        Raises:
            Refused: The key has its share of what is free.
        """
        most: int = getattr(self._settings, setting)
        if not most or not (self._access.count > 1 or (self._access.count and self._settings.allow_keyless)):
            return
        free, weight = most - used, self._limits(owner).weight
        if free <= 0 or leaves_room(used, free, weight):  # with none free, everybody is refused elsewhere
            return
        held = count()
        if leaves_room(held, free, weight):
            return
        what = setting.removeprefix("max_")
        message = f"{held} {what} are of this API key; the {free} that are free are left to others ({setting}={most})"
        if setting == "max_connections":
            raise Refused(429, "too_many_connections", message, retry_after=RETRY_AFTER)
        raise Refused(429, "too_many_sessions", message, retry_after=RETRY_AFTER)

    # -- sessions ------------------------------------------------------------------------------------------------

    async def start(self, sid: str, owner: str) -> None:
        """Admit a session of an API key; `ended` must follow.

        Args:
            sid: The id of the session.
            owner: The id of the key; empty if there is none.

        Raises:
            Refused: A limit of the key is reached.
            Unavailable: Redis, which counts for all gateways, does not answer.
        """
        limits = self._limits(owner)
        if limits.audio_per_minute:
            self._note(await self._quota.spent([owner]))
            self._refuse_spent(owner, limits)
        if limits.sessions and not await self._quota.hold("sessions", owner, sid, limits.sessions):
            message = f"session limit of this API key reached ({limits.sessions})"
            raise Refused(429, "too_many_sessions", message, retry_after=RETRY_AFTER)
        if limits.starts_per_minute and not await self._quota.count_start(owner, limits.starts_per_minute):
            self.ended(sid, owner)
            message = f"rate limit of this API key: {limits.starts_per_minute} session starts a minute"
            raise Refused(429, "rate_limited", message, retry_after=_rest_of_minute())

    def ended(self, sid: str, owner: str) -> None:
        """Stop counting a session: it is over, or held by another gateway."""
        if self._limits(owner).sessions:
            self._quota.release("sessions", owner, sid)

    def chunk(self, session: Session, size: int, seconds: float, length: float) -> None:
        """Admit a chunk, and count its audio.

        Args:
            session: The session that it belongs to.
            size: Bytes of the chunk.
            seconds: Seconds of audio in it, about.
            length: Seconds of audio of the session so far.

        Raises:
            Refused: A limit of this gateway or of the key is reached.
        """
        meter = session.rate_meter
        if meter is None:
            meter = session.rate_meter = RateMeter(self._settings.max_speed, self._settings.speed_burst)
        self.limits.chunk(size, length, meter)
        if session.owner:
            limits = self._limits(session.owner)
            if limits.audio_per_minute:
                self._refuse_spent(session.owner, limits)
        meter.record(seconds)

    def seconds_ahead(self, session: Session, backlog: Backlog, strictly: bool = False) -> float:
        """Return the seconds for which no more of a session should be read; 0 if more may be read now.

        Its audio must be no faster than `max_speed`, and no more than `max_ahead` seconds ahead of the clock. The
        latter does not count while no more than `max_ahead` seconds wait to be recognised, unless `strictly`.
        """
        meter, most = session.rate_meter, self._settings.max_ahead
        if meter is None:
            return 0.0
        debt = meter.debt
        if most and (excess := meter.lead - most) > debt and (strictly or backlog.waiting(session.id) > most):
            return excess
        return debt

    def is_idle(self, session: Session) -> bool:
        """Whether the session has had no audio for longer than `session_idle_timeout`."""
        heard = session.opened if session.rate_meter is None else session.rate_meter.heard
        limit = self._settings.session_idle_timeout
        return bool(limit) and time.monotonic() - heard > limit

    # -- shares of API keys ----------------------------------------------------------------------------------------

    def renew(self, sessions: Iterable[Session]) -> None:
        """Renew in Redis what the clients of this gateway hold; to be called every RENEW_EVERY seconds."""
        held: dict[tuple[str, str], list[str]] = defaultdict(list)
        for member, owner in self._connections.items():
            if self._limits(owner).connections:
                held["connections", owner].append(member)
        for session in sessions:
            if self._limits(session.owner).sessions:
                held["sessions", session.owner].append(session.id)
        for (kind, owner), members in held.items():
            self._quota.renew(kind, owner, members)

    async def watch(self, waiting: dict[str, float]) -> None:
        """Read what API keys have spent in this minute.

        Args:
            waiting: Seconds of audio that wait here to be recognised, by key: these count as spent.
        """
        owners = [owner for owner in waiting if self._limits(owner).audio_per_minute]
        spent = await self._quota.spent(owners)
        self._spent = {}
        self._note({owner: seconds + waiting[owner] for owner, seconds in spent.items()})

    def _limits(self, owner: str) -> KeyLimits:
        """Return the limits of a key as they are now: the file of keys may have changed."""
        key = self._access.key(owner) if owner else None
        return key.limits if key is not None else _UNLIMITED

    def _note(self, spent: dict[str, float]) -> None:
        if self._spent_in != minute():
            self._spent, self._spent_in = {}, minute()
        self._spent |= spent

    def _refuse_spent(self, owner: str, limits: KeyLimits) -> None:
        if self._spent_in == minute() and self._spent.get(owner, 0.0) >= limits.audio_per_minute:
            message = f"rate limit of this API key: {limits.audio_per_minute:g} s of audio a minute"
            raise Refused(429, "quota_exceeded", message, retry_after=_rest_of_minute())


def _rest_of_minute() -> float:
    return round(60 - time.time() % 60, 1)
