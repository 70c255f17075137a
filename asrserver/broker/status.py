"""What Redis knows of gateways and workers, of the queue, and of itself: for operators and for load balancing."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any

import orjson
import redis

from asrserver.broker import task_scripts
from asrserver.broker.clock import BrokerClock
from asrserver.broker.keys import (
    DEAD,
    GROUP,
    OFFERED,
    TASKS,
    alive_key,
    events_key,
    heartbeat_key,
    session_key,
    tasks_key,
)
from asrserver.broker.pipeline import Pipeline
from asrserver.broker.requirements import examine

#: Seconds without a heartbeat after which a name leaves the index.
HEARTBEAT_INDEX_TTL = 3600.0


class BrokerStatus:
    """Reads states and figures; `database` is the number of the Redis database in use."""

    def __init__(self, pipeline: Pipeline, database: int, clock: BrokerClock) -> None:
        self._pipeline = pipeline
        self._database = database
        self._clock = clock

    async def heartbeats(self, kind: str) -> list[dict[str, Any]]:
        """Return the heartbeats of all living processes of a kind (gateway or worker), by name."""
        # The index saves a SCAN over the keys of all sessions. Only its heartbeat says whether a process is alive.
        long_ago = self._clock.now() - HEARTBEAT_INDEX_TTL
        _, names = await asyncio.gather(
            self._pipeline.submit("ZREMRANGEBYSCORE", alive_key(kind), "-inf", long_ago),
            self._pipeline.submit("ZRANGEBYSCORE", alive_key(kind), long_ago, "+inf"),
        )
        keys = [heartbeat_key(kind, name.decode()) for name in names]
        values = await self._pipeline.submit("MGET", *keys) if keys else []
        return sorted(filter(None, map(_state, values)), key=lambda state: state["name"])

    async def queue(self) -> dict[str, int]:
        """Count sessions and dead letters.

        Returns:
            `waiting`: sessions without a worker; `processing`: sessions with one; `dead`: entries of asr_dead.
        """
        dead, *streams = await asyncio.gather(
            self._pipeline.submit("XLEN", DEAD), *(self._counted(stream) for stream in await self._streams())
        )
        waiting, processing = (sum(numbers) for numbers in zip(*streams, strict=True))
        return {"waiting": waiting, "processing": processing, "dead": dead}

    async def waiting(self, model: str | None) -> int:
        """Count the sessions without a worker that name this model, or that name none."""
        return (await self._counted(tasks_key(model)))[0]

    async def stage(self, sid: str, owner: str | None) -> str | None:
        """Return how far a session has come that is not finished, or not stored.

        Args:
            sid: Its id.
            owner: If given, the id of the API key that it must belong to.

        Returns:
            `queued` until a worker has taken it, then `processing`; None if Redis has no such session.

        Raises:
            Unavailable: Redis does not answer.
        """
        fields, last = await asyncio.gather(
            self._pipeline.ask("HMGET", session_key(sid), "created", "owner", "deleted"),
            self._pipeline.ask("XREVRANGE", events_key(sid), "+", "-", "COUNT", 1),
        )
        created, of, deleted = (None if field is None else field.decode() for field in fields)
        if created is None or deleted is not None or (owner is not None and of != owner):
            return None
        return "processing" if any(entry != b"0-1" for entry, _ in last) else "queued"

    async def _counted(self, stream: str) -> tuple[int, int]:
        """(sessions without a worker, sessions with one) of a stream of tasks."""
        total, held = await self._pipeline.submit("EVAL", task_scripts.COUNT, 1, stream, GROUP)
        return max(0, total - held), held

    async def oldest_waiting(self) -> float:
        """Return the seconds for which the oldest session without a worker has waited; 0 if there is none."""
        streams = await self._streams()
        waits = (self._pipeline.submit("EVAL", task_scripts.OLDEST, 1, stream, GROUP) for stream in streams)
        return float(max(await asyncio.gather(*waits))) / 1000

    async def offered(self, within: float) -> set[str]:
        """Return the models that some worker has offered in the last `within` seconds."""
        found = await self._pipeline.submit("ZRANGEBYSCORE", OFFERED, self._clock.now() - within, "+inf")
        return {model.decode() for model in found}

    async def _streams(self) -> list[str]:
        return [TASKS, *(tasks_key(model) for model in await self.offered(math.inf))]

    async def fullness(self) -> float:
        """Return the used memory of Redis over its maxmemory; 0 if it has no limit, or its user may not know."""
        try:
            info = await self._pipeline.submit("INFO", "memory")
        except redis.ResponseError:
            return 0.0
        return info["used_memory"] / info["maxmemory"] if info.get("maxmemory") else 0.0

    async def describe(self) -> dict[str, Any]:
        """Describe this Redis; raises Unavailable.

        Returns:
            `keys`: keys of the database; `lasting_keys`: those that do not expire; `memory_bytes`: used memory: all
            three missing where INFO is forbidden. `warnings`: what it lacks, a line each; see requirements.py.
        """
        info, lacking = await examine(self._pipeline.ask)
        if not info:
            return {"warnings": lacking}
        here = info.get(f"db{self._database}", {"keys": 0, "expires": 0})
        return {
            "keys": here["keys"],
            "lasting_keys": here["keys"] - here["expires"],
            "memory_bytes": info["used_memory"],
            "warnings": lacking,
        }


def _state(value: bytes | None) -> dict[str, Any] | None:
    """Read a heartbeat; None where there is none, or another program wrote it."""
    with suppress(orjson.JSONDecodeError):
        state = orjson.loads(value or b"null")
        if isinstance(state, dict) and isinstance(state.get("name"), str):
            return state
    return None
