"""Drains, as an operator asks for them: which workers are to hand their sessions over to others and to claim none.

The worker does it: inference/draining.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from asrserver.broker.addresses import addresses, label
from asrserver.broker.connection import BrokerConnection
from asrserver.broker.keys import drain_key
from asrserver.errors import Unavailable

#: Seconds after which a drain is forgotten if its worker does not ask for it: it asks with each heartbeat.
DRAIN_TTL = 3600

#: Seconds that Redis may take for an answer.
ANSWER_TIMEOUT = 5.0


class Drains:
    """Asks workers to drain. All methods raise Unavailable where a Redis that answered at first does not any more.

    Attributes:
        away: The names of Redis servers that did not answer: their sessions move when they are back.
    """

    def __init__(self, connections: Sequence[BrokerConnection], away: Sequence[str] = ()) -> None:
        self._connections = connections
        self.away = away

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
    """Connect to each Redis that a REDIS_URL lists, and that answers; raises Unavailable where none does."""
    connections = [BrokerConnection(each, "drain") for each in addresses(url)]
    try:
        errors = await asyncio.gather(*map(_open, connections))
        opened = [each for each, error in zip(connections, errors, strict=True) if error is None]
        if not opened:
            raise next(filter(None, errors))
        yield Drains(opened, [label(each.url) for each in connections if each not in opened])
    finally:
        with suppress(TimeoutError):  # it waits for replies, and a Redis that is away sends none
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(connection.close() for connection in connections))


async def _open(connection: BrokerConnection) -> Unavailable | None:
    """Connect; return why it cannot be done."""
    try:
        async with _soon():
            await connection.open()
    except Unavailable as exc:
        return exc
    return None


@asynccontextmanager
async def _soon() -> AsyncIterator[None]:
    """Raise Unavailable soon: the pipeline by itself would retry for much longer."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            yield
    except TimeoutError:
        raise Unavailable("broker_unavailable", "Redis does not answer") from None
