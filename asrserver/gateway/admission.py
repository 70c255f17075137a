"""Who may do how much: the limits of this gateway, and those of API keys, which all gateways share through Redis."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

from asrserver.auth import Access, Key, KeyLimits
from asrserver.broker.quota import Quota, minute
from asrserver.config import Settings
from asrserver.errors import Refused
from asrserver.gateway.backlog import Backlog
from asrserver.gateway.rate_limits import SOON, Limits, RateMeter
from asrserver.gateway.session import Session

_FREE = KeyLimits()


class Admission:
    """Decides for one gateway, `name`, who connects, starts and sends. Refusals are raised as Refused."""

    def __init__(self, settings: Settings, access: Access, quota: Quota, name: str) -> None:
        self.limits = Limits(settings)
        self._settings = settings
        self._access = access
        self._quota = quota
        self._name = name
        self._serial = itertools.count()
        self._connections: dict[str, str] = {}  # member → owner
        self._spent: dict[str, float] = {}  # owner → seconds of audio in the minute _spent_in
        self._spent_in = 0

    # -- connections ---------------------------------------------------------------------------------------------

    async def connect(self, address: str, key: Key | None) -> Callable[[], None]:
        """Let a connection in, until what this returns is called; raises Refused or Unavailable."""
        self.limits.connect(address)
        if key is None:
            return partial(self.limits.disconnect, address)
        try:
            limits = self._limits(key.id)
            if limits.audio_per_minute:
                self._note(await self._quota.spent([key.id]))
                self._refuse_spent(key.id, limits)
            member = f"{self._name}/{next(self._serial)}"
            if limits.connections and not await self._quota.hold("connections", key.id, member, limits.connections):
                message = f"the key has its {limits.connections} connections"
                raise Refused(429, "too_many_connections", message, retry_after=SOON)
        except BaseException:
            self.limits.disconnect(address)
            raise
        self._connections[member] = key.id
        return partial(self._disconnect, address, member)

    def _disconnect(self, address: str, member: str) -> None:
        self._quota.release("connections", self._connections.pop(member), member)
        self.limits.disconnect(address)

    # -- sessions ------------------------------------------------------------------------------------------------

    async def start(self, sid: str, owner: str, siblings: int, sessions: int, backlog: float) -> None:
        """Let a session start; `ended` must follow sooner or later. Raises Refused or Unavailable."""
        self.limits.start(siblings, sessions, backlog)
        limits = self._limits(owner)
        if limits.audio_per_minute:
            self._note(await self._quota.spent([owner]))
            self._refuse_spent(owner, limits)
        if limits.sessions and not await self._quota.hold("sessions", owner, sid, limits.sessions):
            message = f"the key has its {limits.sessions} sessions: finish one"
            raise Refused(429, "too_many_sessions", message, retry_after=SOON)
        if limits.starts_per_minute and not await self._quota.count_start(owner, limits.starts_per_minute):
            self.ended(sid, owner)
            message = f"the key has its {limits.starts_per_minute} starts of this minute"
            raise Refused(429, "rate_limited", message, retry_after=_rest_of_minute())

    def ended(self, sid: str, owner: str) -> None:
        """The session is over, or is not this gateway's any more."""
        if self._limits(owner).sessions:
            self._quota.release("sessions", owner, sid)

    def chunk(self, session: Session, size: int, seconds: float, length: float) -> None:
        """Let a session of `length` seconds so far take a chunk of so many bytes, or about so many seconds; raises
        Refused."""
        meter = session.rate_meter
        if meter is None:
            meter = session.rate_meter = RateMeter(self._settings.max_speed, self._settings.speed_burst)
        self.limits.chunk(size, length, meter)
        if session.owner:
            limits = self._limits(session.owner)
            if limits.audio_per_minute:
                self._refuse_spent(session.owner, limits)
        meter.record(seconds)

    def seconds_ahead(self, session: Session, backlog: Backlog) -> float:
        """Return for how many seconds no more of a session should be read; 0 if more may be read now.

        That is until its audio is no faster than `max_speed`; and until it is no more than `max_ahead` seconds ahead of
        the clock, unless no more than these are still to be recognised.
        """
        meter, most = session.rate_meter, self._settings.max_ahead
        if meter is None:
            return 0.0
        debt = meter.debt
        if most and (excess := meter.lead - most) > debt and backlog.waiting(session.id) > most:
            return excess
        return debt

    def is_idle(self, session: Session) -> bool:
        """Whether the session has had no audio for too long."""
        heard = session.opened if session.rate_meter is None else session.rate_meter.heard
        limit = self._settings.session_idle_timeout
        return bool(limit) and time.monotonic() - heard > limit

    # -- keys' shares --------------------------------------------------------------------------------------------

    def keep(self, sessions: Iterable[Session]) -> None:
        """Go on holding what this gateway's clients hold; called every RENEW_EVERY seconds."""
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
        """See what the keys of open sessions have spent; `waiting` is their audio here, in seconds, that is still to be
        recognised: it is as good as spent."""
        owners = [owner for owner in waiting if self._limits(owner).audio_per_minute]
        spent = await self._quota.spent(owners)
        self._spent = {}
        self._note({owner: seconds + waiting[owner] for owner, seconds in spent.items()})

    def _limits(self, owner: str) -> KeyLimits:
        """The key's limits as they are now: they may change while it is used."""
        key = self._access.key(owner) if owner else None
        return key.limits if key is not None else _FREE

    def _note(self, spent: dict[str, float]) -> None:
        if self._spent_in != minute():
            self._spent, self._spent_in = {}, minute()
        self._spent |= spent

    def _refuse_spent(self, owner: str, limits: KeyLimits) -> None:
        if self._spent_in == minute() and self._spent.get(owner, 0.0) >= limits.audio_per_minute:
            message = f"the key has its {limits.audio_per_minute:g} s of audio of this minute"
            raise Refused(429, "quota_exceeded", message, retry_after=_rest_of_minute())


def _rest_of_minute() -> float:
    return round(60 - time.time() % 60, 1)
