"""The connection pool of a gateway, on uvloop.

aiopg 1.4.0 is no longer maintained: its defects are worked around here, and each place names the defect.
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

#: Seconds to wait for a free connection, and for the result of one statement.
STATEMENT_TIMEOUT = 5.0

#: Why a statement was ended.
TOO_SLOW = "statement timeout: PostgreSQL is too slow for it, or it asks for too much"

#: Seconds that a ping may take in all.
PING_TIMEOUT = 2.0


class PooledConnection(SAConnection):  # type: ignore[misc]  # aiopg has no types
    """A connection whose cursors, and the results they hold, are freed as soon as nobody refers to them.

    aiopg 1.4.0 gives each cursor a transaction of its own, which refers back to it: a reference cycle, which only the
    cyclic garbage collector frees. In a gateway that runs once in 1,400 sessions (process/memory.py) and passes over
    what survived earlier runs: a gateway grew by 350 bytes per session.
    """

    __slots__ = ()

    async def _open_cursor(self) -> Cursor:
        cursor = await super()._open_cursor()
        cursor._transaction = None  # it is never begun: SAConnection has its own transactions
        return cursor


class Pool:
    """Connections to the database that `dsn` names: libpq keywords or a URL, with one host or several."""

    def __init__(self, dsn: str, size: int) -> None:
        self._parameters = schema.parameters(dsn)
        self._pool_size = size
        self._engine: Engine | None = None
        self._opening: asyncio.Task[Engine] | None = None
        self._stale = False
        self._closed = False

    async def open(self) -> None:
        """Create the database and the tables if they are missing, and connect. Calling it again reconnects.

        Raises:
            StorageUnavailable: PostgreSQL cannot be reached.
            StorageError: The database cannot be created, is not in UTF8, or has tables of another version.
        """
        self._closed = False
        await self._reopen()

    async def close(self) -> None:
        """Wait for running statements, at most STATEMENT_TIMEOUT, then close every connection."""
        self._closed = True
        if self._opening is not None:
            await asyncio.wait([self._opening])
        engine, self._engine = self._engine, None
        if engine is None:
            return
        engine.close()
        try:
            # aiopg 1.4.0 waits for ever if the last connection in use is returned broken
            await asyncio.wait_for(engine.wait_closed(), STATEMENT_TIMEOUT)
        except TimeoutError:
            engine.terminate()

    async def ping(self) -> float:
        """Measure a SELECT 1.

        Returns:
            Seconds that it took, including the wait for a connection.

        Raises:
            StorageUnavailable: There was no answer within PING_TIMEOUT.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(PING_TIMEOUT), self.connection() as conn:
                await conn.scalar(sa.select(1))
        except TimeoutError:
            raise StorageUnavailable(f"PostgreSQL did not answer within {PING_TIMEOUT:g} s") from None
        return time.monotonic() - began

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[SAConnection]:
        """A connection of the pool; every error of the connection or of the block is raised as a StorageError."""
        try:
            engine = await self._ready()
            conn = PooledConnection(await engine._pool.acquire(), engine)  # as engine.acquire() does
            try:
                yield conn
            finally:
                await conn.close()
        except asyncio.CancelledError as exc:
            # aiopg 1.4.0 raises the server's statement_timeout as a cancellation (Connection._poll), which would end
            # the background writer silently
            if isinstance(exc.__context__, QueryCanceledError):
                raise StorageUnavailable(TOO_SLOW) from None
            raise
        except Exception as exc:
            self._stale = self._stale or getattr(exc, "pgcode", None) in REOPEN
            raise translated(exc, STATEMENT_TIMEOUT) from None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[SAConnection]:
        """A connection in a transaction, which is committed at the end of the block and rolled back on an error."""
        async with self.connection() as conn, conn.begin() as transaction:
            yield conn
        transaction._parent = None  # it refers to itself in aiopg 1.4.0: see PooledConnection

    async def _ready(self) -> Engine:
        """The pool; a new one if a connection of the old one was lost.

        aiopg would replace the connection itself, but under uvloop a connect() that is refused over TCP leaves a dead
        poll handle, and the next one fails with "UVPoll is closed" even if the server is healthy (aiopg #909). So no
        pool connects before `schema.prepare` has found a server that answers.
        """
        engine = self._engine
        if engine is None or self._stale or engine.size < self._pool_size:
            return await self._reopen()
        return await self._reopen() if any(conn.closed for conn in engine._pool._free) else engine

    async def _reopen(self) -> Engine:
        """Replace the pool; concurrent calls wait for the same replacement."""
        if self._closed:
            raise StorageUnavailable("the storage is closed")
        if self._opening is None:
            self._opening = asyncio.create_task(self._replace_pool(), name="storage pool")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[Engine]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # retrieved here: everybody who waited for it may have been cancelled

    async def _replace_pool(self) -> Engine:
        # Close the old pool first: aiopg may still watch a file descriptor that libpq has closed, and stops watching
        # its number when the connection is closed, which would silence a new connection with the same number.
        old, self._engine, self._stale = self._engine, None, False
        try:
            if old is not None:
                await _retire(old)
            parameters = await asyncio.get_running_loop().run_in_executor(None, self._prepare)
            self._engine = await self._fill(parameters)
        except Exception as exc:
            raise translated(exc, STATEMENT_TIMEOUT) from None
        return self._engine

    async def _fill(self, parameters: dict[str, Any]) -> Engine:
        """A pool with all connections open: aiopg opens a later one under the lock that every acquire needs."""
        # minsize=1: if aiopg fails to fill a pool, it drops the connections it has without closing them
        size = {"minsize": 1, "maxsize": self._pool_size}
        for attempt in range(self._pool_size, -1, -1):
            try:
                engine = await create_engine(**size, timeout=STATEMENT_TIMEOUT, enable_hstore=False, **parameters)
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
    """Close free connections now and used ones on their return; aiopg's wait_closed() would wait for these."""
    engine.close()
    await engine._pool.clear()
