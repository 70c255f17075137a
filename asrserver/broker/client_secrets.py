"""Client secrets: short-lived keys that a page is given in place of its server's API key.

Redis has only the SHA-256 of a secret, and forgets it when it expires.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from asrserver.broker.keys import secret_key, secrets_key
from asrserver.broker.pipeline import Pipeline

#: Secrets of one API key that are valid at a time, at most.
MAX_SECRETS = 10_000

# KEYS secret secrets · ARGV now expires seconds digest value limit → 1, or 0 if the owner has `limit` others
_KEEP = """
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])
if not redis.call('ZSCORE', KEYS[2], ARGV[4]) and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then return 0 end
redis.call('SET', KEYS[1], ARGV[5], 'EX', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[4])
if redis.call('TTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
return 1
"""


class ClientSecretStore:
    """Keeps client secrets. Methods raise Unavailable if Redis does not answer."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def keep(self, digest: str, owner: str, session: dict[str, Any], seconds: int) -> int | None:
        """Keep a secret.

        Args:
            digest: Its SHA-256, in hexadecimal.
            owner: The id of the API key that it stands for; empty where there are no keys.
            session: What its sessions are like.
            seconds: For how long it is valid.

        Returns:
            When it expires, in seconds since the epoch; None: the owner has as many as it may.
        """
        now = int(time.time())
        value = orjson.dumps({"owner": owner, "session": session})
        arguments = (now, now + seconds, seconds, digest, value, MAX_SECRETS)
        kept = await self._pipeline.ask("EVAL", _KEEP, 2, secret_key(digest), secrets_key(owner), *arguments)
        return now + seconds if kept else None

    async def find(self, digest: str) -> tuple[str, dict[str, Any]] | None:
        """The owner and the sessions of a secret; None if there is none, or it has expired."""
        found = await self._pipeline.ask("GET", secret_key(digest))
        if found is None:
            return None
        value = orjson.loads(found)
        return value["owner"], value["session"]
