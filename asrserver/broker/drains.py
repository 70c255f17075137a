"""Drains, as an operator asks for them: which workers are to hand their sessions over to others and to claim none.

The worker does it: inference/draining.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from asrserver.broker.addresses import addresses
from asrserver.broker.connection import BrokerConnection
from asrserver.broker.keys import drain_key
from asrserver.errors import Unavailable

#: Seconds for which a drain is kept that its worker does not ask for: it asks with each heartbeat.
DRAIN_TTL = 3600

#: Seconds that Redis may take for an answer.
ANSWER_TIMEOUT = 5.0


class Drains:
    """Asks workers to drain. All methods raise Unavailable where Redis, or one of several, does not answer."""

    def __init__(self, connections: Sequence[BrokerConnection]) -> None:
        self._connections = connections

    async def workers(self) -> list[dict[str, Any]]:
        """Return the heartbeats of all living workers."""
        async with _soon():
            found = await asyncio.gather(*(each.status.heartbeats("worker") for each in self._connections))
        alive = {worker["name"]: worker for some in found for worker in some}
        return [alive[name] for name in sorted(alive)]

    async def ask(self, workers: Iterable[str]) -> None:
        """Ask workers to drain."""
        async with _soon():
            for name in workers:
                for each in self._connections:
                    await each.pipeline.submit("SET", drain_key(name), 1, "EX", DRAIN_TTL)

    async def undo(self, workers: Iterable[str]) -> None:
        """Let workers claim sessions again."""
        async with _soon():
            names = [drain_key(name) for name in workers]
            await asyncio.gather(*(each.pipeline.submit("DEL", *names) for each in self._connections))


@asynccontextmanager
async def drains(url: str) -> AsyncIterator[Drains]:
    """Connect to each Redis that a REDIS_URL lists."""
    connections = [BrokerConnection(each, "drain") for each in addresses(url)]
    try:
        async with _soon():
            await asyncio.gather(*(connection.open() for connection in connections))
        yield Drains(connections)
    finally:
        with suppress(TimeoutError):  # it waits for the answers that a Redis which is away owes
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(connection.close() for connection in connections))


@asynccontextmanager
async def _soon() -> AsyncIterator[None]:
    """Raise Unavailable soon: the pipeline by itself would retry for much longer."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            yield
    except TimeoutError:
        raise Unavailable("broker_unavailable", "Redis does not answer") from None
