"""Drains, as an operator asks for them: which workers are to hand their sessions over to others and to claim none.

The worker does it: inference/draining.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from asrserver.broker.connection import BrokerConnection
from asrserver.broker.keys import drain_key
from asrserver.errors import Unavailable

#: Seconds for which a drain is kept that its worker does not ask for: it asks with each heartbeat.
DRAIN_TTL = 3600

#: Seconds that Redis may take for an answer.
ANSWER_TIMEOUT = 5.0


class Drains:
    """Asks workers to drain. All methods raise Unavailable where Redis does not answer."""

    def __init__(self, connection: BrokerConnection) -> None:
        self._connection = connection

    async def workers(self) -> list[dict[str, Any]]:
        """Return the heartbeats of all living workers."""
        async with _soon():
            return await self._connection.status.heartbeats("worker")

    async def ask(self, workers: Iterable[str]) -> None:
        """Ask workers to drain."""
        async with _soon():
            for name in workers:
                await self._connection.pipeline.submit("SET", drain_key(name), 1, "EX", DRAIN_TTL)

    async def undo(self, workers: Iterable[str]) -> None:
        """Let workers claim sessions again."""
        async with _soon():
            await self._connection.pipeline.submit("DEL", *map(drain_key, workers))


@asynccontextmanager
async def drains(url: str) -> AsyncIterator[Drains]:
    """Connect to the Redis of this URL."""
    connection = BrokerConnection(url, "drain")
    try:
        async with _soon():
            await connection.open()
        yield Drains(connection)
    finally:
        with suppress(TimeoutError):  # it waits for the answers that a Redis which is away owes
            async with asyncio.timeout(1.0):
                await connection.close()


@asynccontextmanager
async def _soon() -> AsyncIterator[None]:
    """Raise Unavailable soon: the pipeline by itself would retry for much longer."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            yield
    except TimeoutError:
        raise Unavailable("broker_unavailable", "Redis does not answer") from None
