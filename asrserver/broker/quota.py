"""What API keys use at once and in a minute, counted in Redis for all gateways together.

Connections and sessions that a dead gateway held expire by themselves. Minutes are those of the writer's clock. The
seconds of audio are charged by workers, in event_scripts.APPEND_EVENT and event_scripts.CHECKPOINT.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from asrserver.broker.connection import ignore_reply
from asrserver.broker.keys import held_key, quota_key, starts_key
from asrserver.broker.pipeline import Pipeline

#: Seconds for which a connection or session counts without renewal, and seconds between renewals.
HOLD_SECONDS = 30.0
RENEW_EVERY = 10.0

# KEYS held · ARGV now deadline member limit → 1, or 0 if `limit` others are held already
_HOLD = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if not redis.call('ZSCORE', KEYS[1], ARGV[3]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], 300)
return 1
"""

# KEYS starts · ARGV limit → 1, or 0 if there were `limit` already
_COUNT = """
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], 300)
return 1
"""


def minute(now: float | None = None) -> int:
    """Return the number of the minute of a time in seconds since the epoch; by default, of now."""
    return int((time.time() if now is None else now) // 60)


class Quota:
    """Counts what API keys use. `owner` is the id of a key, `kind` is connections or sessions.

    Methods that wait for Redis raise Unavailable if it does not answer soon.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def hold(self, kind: str, owner: str, member: str, limit: int) -> bool:
        """Count one more connection or session, `member`, of a key; return False if `limit` others are held."""
        now = time.time()
        return bool(
            await self._pipeline.ask("EVAL", _HOLD, 1, held_key(kind, owner), now, now + HOLD_SECONDS, member, limit)
        )

    def renew(self, kind: str, owner: str, members: Iterable[str]) -> None:
        """Hold these members for another HOLD_SECONDS."""
        until = time.time() + HOLD_SECONDS
        pairs = [part for member in members for part in (until, member)]
        if pairs:
            self._pipeline.call(ignore_reply, "ZADD", held_key(kind, owner), *pairs)
            self._pipeline.call(ignore_reply, "EXPIRE", held_key(kind, owner), 300)

    def release(self, kind: str, owner: str, member: str) -> None:
        """Count this member no more."""
        self._pipeline.call(ignore_reply, "ZREM", held_key(kind, owner), member)

    async def count_start(self, owner: str, limit: int) -> bool:
        """Count a session start of this minute; return False, without counting it, if there were `limit` already."""
        return bool(await self._pipeline.ask("EVAL", _COUNT, 1, starts_key(owner, minute()), limit))

    async def spent(self, owners: Iterable[str]) -> dict[str, float]:
        """Return the seconds of audio that were decoded in this minute, by key."""
        names = list(owners)
        if not names:
            return {}
        found = await self._pipeline.ask("MGET", *(quota_key(owner, minute()) for owner in names))
        return {owner: float(value or 0) for owner, value in zip(names, found, strict=True)}
