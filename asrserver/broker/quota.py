"""What API keys use, counted in Redis for all gateways together.

    asr_held:<kind>:<key>        sorted set, connection or session → until when its gateway answers for it
    asr_starts:<key>:<minute>    sessions started in a minute
    asr_quota:<key>:<minute>     seconds of audio that workers decoded in a minute; written by scripts.EMIT

What a dead gateway held runs out by itself. Minutes are those of the writer's clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from asrserver.broker.keys import held_key, quota_key, starts_key
from asrserver.broker.pipeline import Pipeline
from asrserver.errors import Unavailable

#: Seconds that something is held without being kept, and seconds between keepings.
HOLD_SECONDS = 30.0
KEEP_EVERY = 10.0

#: Seconds that the answer to one of these may take: somebody waits at the door for it.
QUOTA_TIMEOUT = 3.0

# KEYS held · ARGV now deadline member limit → 1, or 0 if so many others are held
_HOLD = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if not redis.call('ZSCORE', KEYS[1], ARGV[3]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], 300)
return 1
"""

# KEYS starts · ARGV limit → 1, or 0 if there were so many
_COUNT = """
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], 300)
return 1
"""


def minute(now: float | None = None) -> int:
    """The minute that a time (now by default) is in."""
    return int((time.time() if now is None else now) // 60)


class Quota:
    """The counters. Methods raise Unavailable when Redis does not answer in time."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def hold(self, kind: str, owner: str, member: str, limit: int) -> bool:
        """Hold one more connection or session for a key; False if it has its limit."""
        now = time.time()
        return bool(await self._ask("EVAL", _HOLD, 1, held_key(kind, owner), now, now + HOLD_SECONDS, member, limit))

    def keep(self, kind: str, owner: str, members: Iterable[str]) -> None:
        """Go on holding these."""
        until = time.time() + HOLD_SECONDS
        pairs = [part for member in members for part in (until, member)]
        if pairs:
            self._pipeline.call(_ignore, "ZADD", held_key(kind, owner), *pairs)
            self._pipeline.call(_ignore, "EXPIRE", held_key(kind, owner), 300)

    def release(self, kind: str, owner: str, member: str) -> None:
        self._pipeline.call(_ignore, "ZREM", held_key(kind, owner), member)

    async def count_start(self, owner: str, limit: int) -> bool:
        """Count a start of this minute; False, and not counted, if the key had its limit."""
        return bool(await self._ask("EVAL", _COUNT, 1, starts_key(owner, minute()), limit))

    async def spent(self, owners: Iterable[str]) -> dict[str, float]:
        """Seconds of audio decoded for these keys in this minute."""
        names = list(owners)
        if not names:
            return {}
        found = await self._ask("MGET", *(quota_key(owner, minute()) for owner in names))
        return {owner: float(value or 0) for owner, value in zip(names, found, strict=True)}

    async def _ask(self, *command: Any) -> Any:
        try:
            async with asyncio.timeout(QUOTA_TIMEOUT):
                return await self._pipeline.submit(*command)
        except TimeoutError:
            raise Unavailable("broker_unavailable", "the broker cannot be reached", 5.0) from None


def _ignore(_reply: Any) -> None:
    """For commands that are sent again anyway, or whose effect runs out."""
