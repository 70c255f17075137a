"""What every process does with Redis: connect, send heartbeats, and note dead letters.

What must be atomic is a script (*_scripts.py). A script may be sent again after a lost reply, and changes nothing then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson
import redis

from asrserver import __version__
from asrserver.broker import session_scripts, task_scripts
from asrserver.broker.clock import BrokerClock
from asrserver.broker.keys import (
    DEAD,
    FINISHED,
    GROUP,
    OPEN,
    TASKS,
    alive_key,
    audio_key,
    events_key,
    heartbeat_key,
    session_key,
    transcript_key,
)
from asrserver.broker.pipeline import Pipeline, connect
from asrserver.broker.status import BrokerStatus
from asrserver.errors import Unavailable

log = logging.getLogger("asrserver.broker")

#: Seconds between heartbeats, and seconds for which one outlives its writer.
HEARTBEAT_EVERY = 2.0
HEARTBEAT_TTL = 6.0

#: Seconds that a PING may take.
PING_TIMEOUT = 2.0

#: Seconds for which the keys of a session that another program has damaged are kept.
DAMAGED_TTL = 3600

#: Entries of asr_dead that are kept, about.
MAX_DEAD_LETTERS = 1000


class BrokerConnection:
    """The connection of one process to Redis.

    Methods that wait for Redis raise Unavailable after pipeline.RETRY_SECONDS, or where Redis accepts no data.

    Attributes:
        name: The name of this gateway or worker.
        url: The URL of Redis.
        pipeline: Sends the commands.
        clock: The time that deadlines and everything else that processes compare are told by.
        status: What Redis knows of all processes and of itself.
    """

    #: What the process is, in the keys of heartbeats: gateway or worker.
    KIND: ClassVar[str]

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.url = url
        self._started = time.time()
        self._client = connect(url, timeout=None)
        self.pipeline = Pipeline(self._client)
        self.clock = BrokerClock()
        database = self._client.connection_pool.connection_kwargs.get("db") or 0
        self.status = BrokerStatus(self.pipeline, database, self.clock)

    async def open(self) -> None:
        """Wait for Redis, and create the group of workers if it is missing; raises Unavailable."""
        await self.pipeline.submit("EVAL", task_scripts.MAKE_GROUP, 1, TASKS, GROUP)
        self.clock.read(await self.pipeline.submit("TIME"))

    async def close(self) -> None:
        """Wait until all commands have their replies, and disconnect."""
        await self.pipeline.close()
        await self._client.aclose()

    async def ping(self) -> float:
        """Return the seconds that a PING takes now; raises Unavailable after PING_TIMEOUT."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._client.ping()
        except (TimeoutError, redis.RedisError, OSError) as exc:
            raise Unavailable("broker_unavailable", str(exc) or type(exc).__name__) from exc
        return time.perf_counter() - started

    def heartbeat(self, state: Mapping[str, Any]) -> None:
        """Write that this process lives, with its state for operators and for the other processes.

        The group of workers is made again with it: Redis may have come back empty. And its clock is read.
        """
        about = {"name": self.name, "time": time.time(), "version": __version__, "started": self._started}
        payload = orjson.dumps({**about, **state})
        key, ttl = heartbeat_key(self.KIND, self.name), int(HEARTBEAT_TTL * 1000)
        self.pipeline.call(ignore_reply, "SET", key, payload, "PX", ttl)
        self.pipeline.call(ignore_reply, "ZADD", alive_key(self.KIND), self.clock.now(), self.name)
        self.pipeline.call(ignore_reply, "EVAL", task_scripts.MAKE_GROUP, 1, TASKS, GROUP)
        self.pipeline.call(self._read_clock, "TIME")

    def _read_clock(self, reply: Any) -> None:
        if not isinstance(reply, Exception):
            self.clock.read(reply)

    async def deregister(self) -> None:
        """Remove the heartbeat of this process, which stops as it was asked to."""
        await asyncio.gather(
            self.pipeline.submit("DEL", heartbeat_key(self.KIND, self.name)),
            self.pipeline.submit("ZREM", alive_key(self.KIND), self.name),
        )

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None:
        """Note audio that killed or failed its workers, or a result that could not be stored.

        Args:
            sid: The id of the session.
            entry: The id of the audio entry; empty where the session as a whole is meant.
            reason: Why, for operators.
        """
        await self.pipeline.submit(
            "XADD", DEAD, "MAXLEN", "~", MAX_DEAD_LETTERS, "*", "sid", sid, "entry", entry, "reason", reason
        )

    async def give_up_session(self, sid: str, why: str) -> None:
        """Give up a session whose keys another program has damaged. Its gateway, and so its client, learns of it soon.

        Args:
            sid: The id of the session.
            why: What is damaged, for operators, who can look at its keys for DAMAGED_TTL.
        """
        keys = (session_key(sid), audio_key(sid), events_key(sid), transcript_key(sid), OPEN, FINISHED)
        if await self.pipeline.submit("EVAL", session_scripts.GIVE_UP, 6, *keys, sid, DAMAGED_TTL * 1000):
            log.error("session=%s its keys in Redis are damaged, it is given up: %s", sid, why)
            await self.dead_letter(sid, "", f"damaged keys: {why}")


def next_id(entry: str) -> str:
    """Return the smallest stream id after an id."""
    ms, n = entry.split("-")
    return f"{ms}-{int(n) + 1}"


def flattened(fields: Mapping[str, str]) -> list[str]:
    """Return the fields of a hash as arguments: name, value, name, value …"""
    return [part for pair in fields.items() for part in pair]


def ignore_reply(_reply: Any) -> None:
    """The callback of commands that are repeated anyway, or whose effect expires."""
