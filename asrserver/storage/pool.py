"""The pool of connections, in the gateway, on uvloop.

aiopg 1.4.0 gets no more fixes: what it does wrong is mended here, and each place names the defect.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from aiopg import Cursor
from aiopg.sa import Engine, SAConnection, create_engine
from psycopg2.extensions import QueryCanceledError

from asrserver.storage import schema
from asrserver.storage.errors import REOPEN, StorageUnavailable, translated

#: Seconds to wait for a free connection, and for the answer to one statement.
TIMEOUT = 5.0

#: Seconds the whole of a ping may take.
PING_TIMEOUT = 2.0


class Connection(SAConnection):  # type: ignore[misc]  # aiopg has no types
    """A connection whose cursors are gone once nobody has them, and what PostgreSQL answered with them.

    aiopg 1.4.0 gives each cursor a transaction of its own, which refers back to it. Only the search for cycles freed
    them, which finds enough in a gateway once in 1,400 sessions (memory.py), and goes on to spare what outlived one
    search: a gateway grew by 350 bytes a session.
    """

    __slots__ = ()

    async def _open_cursor(self) -> Cursor:
        cursor = await super()._open_cursor()
        cursor._transaction = None  # never begun: transactions are SAConnection's
        return cursor


class Pool:
    """Connections to the database that `dsn` names: a libpq keyword string or URL, of one host or several."""

    def __init__(self, dsn: str, size: int) -> None:
        self._parameters = schema.parameters(dsn)
        self._pool_size = size
        self._engine: Engine | None = None
        self._opening: asyncio.Task[Engine] | None = None
        self._stale = False
        self._closed = False

    async def open(self) -> None:
        """Create the database and the tables where they are missing, and connect; again, it repairs.

        Raises StorageUnavailable when PostgreSQL is away, and a plain StorageError when the database may not
        be created, is not in UTF8, or has tables of these names with other columns.
        """
        self._closed = False
        await self._reopen()

    async def close(self) -> None:
        """Give running statements a last TIMEOUT to end, then close every connection."""
        self._closed = True
        if self._opening is not None:
            await asyncio.wait([self._opening])
        engine, self._engine = self._engine, None
        if engine is None:
            return
        engine.close()
        try:
            # aiopg 1.4.0 waits for ever when the last connection in use comes back broken
            await asyncio.wait_for(engine.wait_closed(), TIMEOUT)
        except TimeoutError:
            engine.terminate()

    async def ping(self) -> float:
        """Seconds that a SELECT 1 took, with getting a connection; StorageUnavailable after PING_TIMEOUT."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PING_TIMEOUT), self.connection() as conn:
                await conn.scalar(sa.select(1))
        except TimeoutError:
            raise StorageUnavailable(f"PostgreSQL did not answer within {PING_TIMEOUT:g} s") from None
        return time.monotonic() - began

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[SAConnection]:
        """A connection of the pool; whatever goes wrong with it or in the block leaves as a StorageError."""
        try:
            engine = await self._ready()
            conn = Connection(await engine._pool.acquire(), engine)  # as engine.acquire() does
            try:
                yield conn
            finally:
                await conn.close()
        except asyncio.CancelledError as exc:
            # aiopg 1.4.0 disguises the server's statement_timeout as a cancellation (Connection._poll), which
            # would end the background writer in silence
            if isinstance(exc.__context__, QueryCanceledError):
                raise StorageUnavailable("statement timeout") from None
            raise
        except Exception as exc:
            self._stale = self._stale or getattr(exc, "pgcode", None) in REOPEN
            raise translated(exc, TIMEOUT) from None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[SAConnection]:
        """The same, in a transaction: committed at the end of the block, rolled back where something goes wrong."""
        async with self.connection() as conn, conn.begin() as transaction:
            yield conn
        transaction._parent = None  # itself, for aiopg 1.4.0: see Connection

    async def _ready(self) -> Engine:
        """The pool, made anew when one of its connections was lost.

        aiopg would replace it by itself, but under uvloop a connect() refused over TCP leaves a dead poll
        handle, and the next fails with "UVPoll is closed" even to a healthy server (aiopg #909). So no pool
        connects before _prepare() has found somebody who answers.
        """
        engine = self._engine
        if engine is None or self._stale or engine.size < self._pool_size:
            return await self._reopen()
        return await self._reopen() if any(conn.closed for conn in engine._pool._free) else engine

    async def _reopen(self) -> Engine:
        """Make the pool anew; calls that come while this goes on wait for the same result."""
        if self._closed:
            raise StorageUnavailable("the storage is closed")
        if self._opening is None:
            self._opening = asyncio.create_task(self._replace_pool())
            self._opening.add_done_callback(lambda task: setattr(self, "_opening", None))
        return await asyncio.shield(self._opening)

    async def _replace_pool(self) -> Engine:
        # the old pool first: aiopg may still watch a descriptor that libpq has closed, and unwatches its
        # number on closing the connection: of a new connection with that number, nothing would be heard
        old, self._engine, self._stale = self._engine, None, False
        try:
            if old is not None:
                await _retire(old)
            parameters = await asyncio.get_running_loop().run_in_executor(None, self._prepare)
            self._engine = await self._fill(parameters)
        except Exception as exc:
            raise translated(exc, TIMEOUT) from None
        return self._engine

    async def _fill(self, parameters: dict[str, Any]) -> Engine:
        """A pool with all its connections made; to make one later, aiopg holds the lock that all need."""
        # minsize=1: aiopg drops a pool that fails half filled without closing what it has
        size = {"minsize": 1, "maxsize": self._pool_size}
        for attempt in range(self._pool_size, -1, -1):
            try:
                engine = await create_engine(**size, timeout=TIMEOUT, enable_hstore=False, **parameters)
                break
            except RuntimeError:  # UVPoll, see _ready(): each failure removes one dead handle
                if not attempt:
                    raise
        try:
            async with contextlib.AsyncExitStack() as held:
                for _ in range(self._pool_size):
                    await held.enter_async_context(engine.acquire())
        except BaseException:
            await _retire(engine)
            raise
        return engine

    def _prepare(self) -> dict[str, Any]:
        return schema.prepare(self._parameters)


async def _retire(engine: Engine) -> None:
    """Close what is free now and what is in use on its return; aiopg's wait_closed() would wait for that."""
    engine.close()
    await engine._pool.clear()
