"""PostgreSQL: every SQL statement of the system.

Runs in the gateway, on uvloop, through aiopg.sa 1.4.0 (SQLAlchemy 1.4 Core), which gets no more fixes: what
it does wrong is mended here, and each place names the defect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
import psycopg2
import psycopg2.errors
import sqlalchemy as sa
from aiopg.sa import Engine, SAConnection, create_engine
from psycopg2 import sql
from psycopg2.extensions import QueryCanceledError, parse_dsn
from sqlalchemy.dialects.postgresql import insert

from asrserver.storage.tables import (
    CHUNKS,
    SEGMENTS,
    SESSION,
    UPSERTS,
    Record,
    chunks,
    clean,
    metadata,
    pieces,
    rows,
    segments,
    sessions,
    tombstones,
)

__all__ = ["Record", "Storage", "StorageError", "StorageRejected", "StorageUnavailable", "metadata"]

log = logging.getLogger(__name__)

#: Seconds to wait for a free connection, and for the answer to one statement.
TIMEOUT = 5.0
#: Seconds the whole of a ping may take.
PING_TIMEOUT = 2.0
#: Set for each connection. The server gives up before the client does (TIMEOUT): nothing runs on unseen.
SERVER_OPTIONS = "-c statement_timeout=4000 -c idle_in_transaction_session_timeout=10000 -c TimeZone=UTC"
#: Keys of advisory locks: the schema is applied under one; writers share the other, a delete has it alone.
SCHEMA_LOCK, WRITE_LOCK = 0x617372_01, 0x617372_02


class StorageError(Exception):
    """Raised when PostgreSQL does not do what was asked; by itself, when only an operator can help."""


class StorageUnavailable(StorageError):
    """Raised when PostgreSQL is away, starting, stopping, full or too slow: try again later."""


class StorageRejected(StorageError):
    """Raised when PostgreSQL refuses a statement for what it contains: the same call will fail again."""


class Storage:
    """The sessions in PostgreSQL.

    ``dsn``: a libpq keyword string or postgresql:// URL, of one host or several.
    Every method raises StorageUnavailable while PostgreSQL is away and works again when it is back.
    """

    def __init__(self, dsn: str, *, pool_size: int = 4) -> None:
        self._parameters = _parameters(dsn)
        self._pool_size = pool_size
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
            async with asyncio.timeout(PING_TIMEOUT), self._connection() as conn:
                await conn.scalar(sa.select(1))
        except TimeoutError:
            raise StorageUnavailable(f"PostgreSQL did not answer within {PING_TIMEOUT:g} s") from None
        return time.monotonic() - began

    async def save(self, records: Sequence[Record]) -> list[tuple[str, str]]:
        """Store the records in one transaction; again is harmless, and deleted sessions are skipped.

        A status never leaves a final state, nor do text, error and completion time then change; chunk_count
        and total_duration never shrink. Returns (session_id, reason) of what PostgreSQL will never take,
        also logged, without their words; the others are stored. After StorageUnavailable, save all again.
        """
        buried = await self._bisect(records)
        for session_id, reason in buried:
            log.error("session %s cannot be stored, buried: %s", session_id, reason)
        return buried

    async def known(self, session_id: str) -> bool:
        """Whether the session is stored, or was and has been deleted."""
        name = clean(session_id)
        stored = sa.exists().where(sessions.c.id == name)
        deleted = sa.exists().where(tombstones.c.session_id == name)
        async with self._connection() as conn:
            return bool(await conn.scalar(sa.select(sa.or_(stored, deleted))))

    async def history(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many sessions there are, and the newest of them, newest first.

        Each is {session_id, user_id, status, text, duration (seconds), chunk_count, language, created_at,
        completed_at}; times are ISO 8601 in UTC. The number is a count(*), which reads a whole index.
        """
        newest = SESSION.order_by(sessions.c.created_at.desc(), sessions.c.id.desc()).limit(limit)
        async with self._connection() as conn:
            total = await conn.scalar(sa.select(sa.func.count()).select_from(sessions))
            return total, await _fetch(conn, newest)

    async def session(self, session_id: str) -> dict[str, Any] | None:
        """One session as in history(), with its ``chunks`` and ``segments`` in order, or None."""
        name = clean(session_id)
        async with self._connection() as conn:
            found = await _fetch(conn, SESSION.where(sessions.c.id == name))
            if not found:
                return None
            return {
                **found[0],
                "chunks": await _fetch(conn, CHUNKS.where(chunks.c.session_id == name)),
                "segments": await _fetch(conn, SEGMENTS.where(segments.c.session_id == name)),
            }

    async def delete(self, session_id: str, *, pending: bool = False) -> bool:
        """Delete a session for good: what is saved of it later is ignored. Returns whether it was stored.

        ``pending`` says that it exists, stored or not; without it, nothing is noted of an unknown session.
        """
        name = clean(session_id)
        async with self._connection() as conn, conn.begin():
            await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITE_LOCK)))
            deleted = await conn.execute(sessions.delete().where(sessions.c.id == name))
            if deleted.rowcount or pending:
                await conn.execute(insert(tombstones).values(session_id=name).on_conflict_do_nothing())
        return bool(deleted.rowcount)

    async def _bisect(self, records: Sequence[Record]) -> list[tuple[str, str]]:
        try:
            await self._write(records)
        except StorageRejected as exc:
            if len(records) == 1:
                return [(str(records[0].session.get("id")), str(exc))]
            half = len(records) // 2
            return await self._bisect(records[:half]) + await self._bisect(records[half:])
        return []

    async def _write(self, records: Sequence[Record]) -> None:
        if not records:
            return
        async with self._connection() as conn, conn.begin():
            # else a session deleted between our look at the tombstones and our commit would come back to life
            await conn.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(WRITE_LOCK)))
            for table, upsert in UPSERTS:
                for piece in pieces(table, rows(table, records)):
                    values = {**upsert.params, "rows": orjson.dumps(piece).decode()}
                    await conn.execute(str(upsert), values)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[SAConnection]:
        """A connection of the pool; whatever goes wrong with it or in the block leaves as a StorageError."""
        try:
            engine = await self._ready()
            async with engine.acquire() as conn:
                yield conn
        except asyncio.CancelledError as exc:
            # aiopg 1.4.0 disguises the server's statement_timeout as a cancellation (Connection._poll), which
            # would end the background writer in silence
            if isinstance(exc.__context__, QueryCanceledError):
                raise StorageUnavailable("statement timeout") from None
            raise
        except Exception as exc:
            self._stale = self._stale or getattr(exc, "pgcode", None) in _REOPEN
            raise _translated(exc) from None

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
            raise _translated(exc) from None
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
        """See that the database and its tables are there. Returns the parameters of the server that answered.

        Blocks: for a thread. The parameters name one numeric address, no fallback: with several (localhost,
        two hosts, SSL tried first) libpq changes its socket on the way, unnoticed by aiopg (#275), and a name
        would be looked up in the event loop.
        """
        with contextlib.closing(self._connect()) as conn:
            encoding = conn.get_parameter_status("server_encoding")
            if encoding != "UTF8":
                raise StorageError(f"database {conn.info.dbname!r} has encoding {encoding}, it must be UTF8")
            _apply_schema(conn)
            answered: dict[str, Any] = {"host": conn.info.host, "port": conn.info.port}
            if not conn.info.ssl_in_use:
                answered["sslmode"] = "disable"
            with socket.socket(fileno=os.dup(conn.fileno())) as sock:
                if sock.family != socket.AF_UNIX:
                    answered["hostaddr"] = sock.getpeername()[0]
            log.info("PostgreSQL: database %s, %s:%s", conn.info.dbname, conn.info.host, conn.info.port)
            return self._parameters | answered

    def _connect(self) -> Any:
        try:
            return psycopg2.connect(**self._parameters)
        except psycopg2.OperationalError:
            # a missing database? psycopg2 2.9 gives no SQLSTATE here, and the text may be in any language
            if not self._create_database():
                raise
        return psycopg2.connect(**self._parameters)

    def _create_database(self) -> bool:
        """Create the database if the server answers and has none of it. Returns whether it has now."""
        name = self._parameters.get("dbname")
        if not name:
            return False
        try:
            conn = psycopg2.connect(**{**self._parameters, "dbname": "postgres"})
        except psycopg2.OperationalError:
            return False
        # template0: the only one that takes an encoding other than its own
        create = sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(sql.Identifier(name))
        with contextlib.closing(conn), conn.cursor() as cursor:
            conn.autocommit = True
            cursor.execute("SET statement_timeout = 0")
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            try:
                if not cursor.fetchone():
                    cursor.execute(create)
                    log.info("PostgreSQL: created the database %s", name)
            except (psycopg2.errors.DuplicateDatabase, psycopg2.errors.UniqueViolation):
                pass  # another gateway was faster
            except psycopg2.errors.InsufficientPrivilege:
                raise StorageError(
                    f"database {name!r} does not exist and user {conn.info.user!r} may not create it: let an "
                    f"administrator run CREATE DATABASE, with OWNER {conn.info.user} and ENCODING 'UTF8'"
                ) from None
        return True


def schema_sql() -> str:
    """The text of schema.sql: from the package where installed, else from the root of the source tree."""
    installed = resources.files("asrserver").joinpath("schema.sql")
    if installed.is_file():
        return installed.read_text("utf-8")
    return (Path(__file__).parents[2] / "schema.sql").read_text("utf-8")


def _parameters(dsn: str) -> dict[str, Any]:
    """libpq's parameters by name. No message quotes the DSN: libpq's own would print its password."""
    try:
        given = parse_dsn(dsn)
    except psycopg2.Error:
        raise StorageError("the database's address is no postgresql:// URL and no key=value pairs") from None
    if "://" in dsn and any("@" in given.get(key, "") for key in ("host", "dbname")):
        raise StorageError("the database's URL is ambiguous: write @ and / in its password as %40 and %2F")
    defaults = {
        "connect_timeout": 2, "client_encoding": "UTF8", "fallback_application_name": "asrserver",
        "gssencmode": "disable", "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    }  # fmt: skip
    return {**defaults, **given, "options": f"{given.get('options', '')} {SERVER_OPTIONS}"}


def _apply_schema(conn: Any) -> None:
    """Run schema.sql if something of it is missing; else its locks would stall the writers for nothing."""
    tables = metadata.tables.values()
    expected = {f"{table.name}.{part.name}" for table in tables for part in (*table.columns, *table.indexes)}
    present = """
        SELECT table_name || '.' || column_name FROM information_schema.columns
        WHERE table_schema = current_schema()
        UNION ALL SELECT tablename || '.' || indexname FROM pg_indexes WHERE schemaname = current_schema()"""
    with conn, conn.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 5000")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        cursor.execute(present)
        if expected <= {name for (name,) in cursor}:
            return
        cursor.execute(schema_sql())
        cursor.execute(present)
        missing = expected - {name for (name,) in cursor}
        if missing:
            raise StorageError(f"the tables are of another version, without {', '.join(sorted(missing))}")


async def _retire(engine: Engine) -> None:
    """Close what is free now and what is in use on its return; aiopg's wait_closed() would wait for that."""
    engine.close()
    await engine._pool.clear()


#: SQLSTATE classes that blame the data: cardinality, data exception, integrity constraint, program limit. All
#: others (a missing table, a full disk, a standby, a deadlock, …) are nothing to bury a session for.
_CONTENT = ("21", "22", "23", "54")
#: Undefined table or column, read-only transaction: this is no longer the database or server that was opened.
_REOPEN = ("42P01", "42703", "25006")


def _translated(exc: Exception) -> StorageError:
    """The exception as a StorageError of one line, without DETAIL or values: they may be somebody's words."""
    if isinstance(exc, StorageError):
        return exc
    name, code = type(exc).__name__, getattr(exc, "pgcode", None)
    if code and code[:2] in _CONTENT:
        diag = exc.diag  # type: ignore[attr-defined]
        place = (diag.table_name, diag.column_name, diag.constraint_name)
        return StorageRejected(" ".join(filter(None, (f"{name} ({code})", *place))))
    if code:
        return StorageUnavailable(f"{exc.diag.message_primary} ({code})")  # type: ignore[attr-defined]
    line = " ".join(str(exc).split())
    if isinstance(exc, TimeoutError):  # aiopg's have no text
        return StorageUnavailable(f"no connection or no answer within {TIMEOUT:g} s")
    rejected = (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.NotSupportedError)
    if isinstance(exc, (psycopg2.Error, OSError, RuntimeError)) and not isinstance(exc, rejected):
        return StorageUnavailable(line or name)
    return StorageRejected(f"{name}: {line}")


async def _fetch(conn: SAConnection, query: Any) -> list[dict[str, Any]]:
    """The rows as dictionaries, with times as ISO 8601 strings (the connection's time zone is UTC).

    The keys are made plain: SQLAlchemy's are a subclass of str, which orjson refuses.
    """
    found = await (await conn.execute(query)).fetchall()
    return [{str(key): v.isoformat() if isinstance(v, datetime) else v for key, v in row.items()} for row in found]
