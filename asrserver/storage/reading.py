"""Connections for reading the history: apart from those that store, and shared fairly among readers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from aiopg.sa import SAConnection

from asrserver.storage import pool
from asrserver.storage.errors import StorageUnavailable
from asrserver.storage.pool import Pool

T = TypeVar("T")

#: Connections for reading, and how many of them one reader may have at a time.
READING_CONNECTIONS = 3
READER_CONNECTIONS = 2

#: Requests of one reader that wait for these; more are refused.
MAX_WAITING = 32


class _Turn:
    """One reader's place: `users` have or wait for one of its connections."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(READER_CONNECTIONS)
        self.users = 0


class ReadingPool(Pool):
    """Connections for reading. A reader (an API key) with slow requests cannot keep them from others."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, READING_CONNECTIONS)
        self._turns: dict[str | None, _Turn] = {}

    @contextlib.asynccontextmanager
    async def lend(self, reader: str | None) -> AsyncIterator[SAConnection]:
        """Lend a connection to a reader; None: all who may read everything, together.

        Raises:
            StorageUnavailable: Too many of its requests wait, or it was not this one's turn within STATEMENT_TIMEOUT.
        """
        turn = self._turns.setdefault(reader, _Turn())
        if turn.users >= READER_CONNECTIONS + MAX_WAITING:
            raise StorageUnavailable("too many requests for the history at a time: ask again later")
        turn.users += 1
        try:
            await _soon(turn.free.acquire())
            try:
                async with contextlib.AsyncExitStack() as stack:
                    yield await _soon(stack.enter_async_context(self.connection()))
            finally:
                turn.free.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[reader]


async def _soon(wait: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(pool.STATEMENT_TIMEOUT):
            return await wait
    except TimeoutError:
        raise StorageUnavailable("other requests for the history take all connections: ask again later") from None
