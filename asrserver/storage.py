"""PostgreSQL: every SQL statement of the system.

Runs in the gateway, on uvloop, through aiopg.sa 1.4.0 (SQLAlchemy 1.4 Core), which gets no more fixes: what
it does wrong is mended here, and each place names the defect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
import psycopg2
import psycopg2.errors
import sqlalchemy as sa
from aiopg.sa import Engine, SAConnection, create_engine
from aiopg.sa.engine import get_dialect
from psycopg2 import sql
from psycopg2.extensions import QueryCanceledError, parse_dsn
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, JSONB, TIMESTAMP, insert

log = logging.getLogger(__name__)

#: Seconds to wait for a free connection, and for the answer to one statement.
TIMEOUT = 5.0
#: Seconds the whole of a ping may take.
PING_TIMEOUT = 2.0
#: Rows in one statement: preparing them holds the event loop for about 10 ms.
PIECE = 500
#: Set for each connection. The server gives up before the client does (TIMEOUT): nothing runs on unseen.
SERVER_OPTIONS = "-c statement_timeout=4000 -c idle_in_transaction_session_timeout=10000 -c TimeZone=UTC"
#: Keys of advisory locks: the schema is applied under one; writers share the other, a delete has it alone.
SCHEMA_LOCK, WRITE_LOCK = 0x617372_01, 0x617372_02

metadata = sa.MetaData()
_seconds, _when = DOUBLE_PRECISION(), TIMESTAMP(timezone=True)


def _table(name: str, keys: int, **columns: Any) -> sa.Table:
    """A table of schema.sql; its first columns, ``keys`` of them, are the primary key."""
    typed = enumerate(columns.items())
    return sa.Table(name, metadata, *(sa.Column(c, kind, primary_key=i < keys) for i, (c, kind) in typed))


sessions = _table(
    "asr_sessions", 1, id=sa.Text, user_id=sa.Text, status=sa.Text, mode=sa.Text, language=sa.Text,
    model=sa.Text, final_text=sa.Text, chunk_count=sa.Integer, total_duration=_seconds, error_code=sa.Text,
    error_message=sa.Text, created_at=_when, completed_at=_when, updated_at=_when,
)  # fmt: skip
sa.Index("asr_sessions_history", sessions.c.created_at.desc(), sessions.c.id.desc())
sa.Index("asr_sessions_user", sessions.c.user_id, sessions.c.created_at.desc())
chunks = _table(
    "asr_chunks", 2, session_id=sa.Text, chunk_index=sa.BigInteger, text=sa.Text, duration=_seconds,
    language=sa.Text, error_code=sa.Text, error_message=sa.Text, received_at=_when, recognised_at=_when,
)  # fmt: skip
segments = _table(
    "asr_segments", 2, session_id=sa.Text, number=sa.Integer, chunk_index=sa.BigInteger, start_time=_seconds,
    end_time=_seconds, text=sa.Text, language=sa.Text, confidence=_seconds, words=JSONB, worker=sa.Text,
)  # fmt: skip
tombstones = _table("asr_tombstones", 1, session_id=sa.Text, deleted_at=_when)


class StorageError(Exception):
    """Raised when PostgreSQL does not do what was asked; by itself, when only an operator can help."""


class StorageUnavailable(StorageError):
    """Raised when PostgreSQL is away, starting, stopping, full or too slow: try again later."""


class StorageRejected(StorageError):
    """Raised when PostgreSQL refuses a statement for what it contains: the same call will fail again."""


@dataclass(slots=True)
class Record:
    """What is known of one session and not yet stored.

    Keys are the columns of schema.sql; what is missing or None changes nothing. Times (``…_at``) are seconds
    since the epoch, aware datetimes or ISO 8601 strings. Chunks and segments get their ``session_id`` from
    ``session["id"]``.
    """

    session: dict[str, Any]
    chunks: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)


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
        name = _clean(session_id)
        stored = sa.exists().where(sessions.c.id == name)
        deleted = sa.exists().where(tombstones.c.session_id == name)
        async with self._connection() as conn:
            return bool(await conn.scalar(sa.select(sa.or_(stored, deleted))))

    async def history(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many sessions there are, and the newest of them, newest first.

        Each is {session_id, user_id, status, text, duration (seconds), chunk_count, language, created_at,
        completed_at}; times are ISO 8601 in UTC. The number is a count(*), which reads a whole index.
        """
        newest = _SESSION.order_by(sessions.c.created_at.desc(), sessions.c.id.desc()).limit(limit)
        async with self._connection() as conn:
            total = await conn.scalar(sa.select(sa.func.count()).select_from(sessions))
            return total, await _fetch(conn, newest)

    async def session(self, session_id: str) -> dict[str, Any] | None:
        """One session as in history(), with its ``chunks`` and ``segments`` in order, or None."""
        name = _clean(session_id)
        async with self._connection() as conn:
            found = await _fetch(conn, _SESSION.where(sessions.c.id == name))
            if not found:
                return None
            return {
                **found[0],
                "chunks": await _fetch(conn, _CHUNKS.where(chunks.c.session_id == name)),
                "segments": await _fetch(conn, _SEGMENTS.where(segments.c.session_id == name)),
            }

    async def delete(self, session_id: str, *, pending: bool = False) -> bool:
        """Delete a session for good: what is saved of it later is ignored. Returns whether it was stored.

        ``pending`` says that it exists, stored or not; without it, nothing is noted of an unknown session.
        """
        name = _clean(session_id)
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
            for table, upsert in _UPSERTS:
                for rows in _pieces(table, _rows(table, records)):
                    values = {**upsert.params, "rows": orjson.dumps(rows).decode()}
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
    installed = resources.files(__package__).joinpath("schema.sql")
    if installed.is_file():
        return installed.read_text("utf-8")
    return (Path(__file__).parent.parent / "schema.sql").read_text("utf-8")


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


#: What PostgreSQL cannot hold: NUL, and halves of surrogate pairs, which JSON from a client may bring.
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def _clean(value: Any) -> Any:
    """The value with U+FFFD for what PostgreSQL cannot hold."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def _row(table: sa.Table, values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON for the table; floats that are no numbers become null (orjson)."""
    unknown = values.keys() - table.columns.keys()
    if unknown:
        raise ValueError(f"{table.name} has no column {', '.join(sorted(unknown))}")
    row: dict[str, Any] = _clean(values)
    for key in row:
        if key.endswith("_at") and isinstance(row[key], (int, float)):
            row[key] = datetime.fromtimestamp(row[key], UTC)
    return row


def _rows(table: sa.Table, records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The records' rows of this table, those of a session together."""
    for record in sorted(records, key=lambda record: record.session["id"]):
        if table is sessions:
            yield _row(table, record.session)
        else:
            for values in record.chunks if table is chunks else record.segments:
                yield _row(table, {**values, "session_id": record.session["id"]})


def _pieces(table: sa.Table, rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows, in order, in lists of at most PIECE in which no key comes twice (PostgreSQL refuses that)."""
    keys = table.primary_key.columns.keys()
    piece: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        if key in piece or len(piece) == PIECE:
            yield list(piece.values())
            piece = {}
        piece[key] = row
    if piece:
        yield list(piece.values())


def _upsert(table: sa.Table) -> Any:
    """INSERT … SELECT … FROM json_to_recordset(:rows) ON CONFLICT (key) DO UPDATE …, compiled.

    One text and one parameter for any number of rows. Multi-row VALUES would be compiled anew each
    time: 0.3 s of the event loop for 1000 chunks (SQLAlchemy 1.4.54).
    """
    names = [column.name for column in table.columns if column.name != "updated_at"]
    session_id, *_ = keys = table.primary_key.columns.keys()
    recordset = sa.func.json_to_recordset(sa.bindparam("rows", type_=sa.Text))
    typed = (sa.column(name, table.c[name].type) for name in names)
    rows = recordset.table_valued(*typed, name="incoming").render_derived(with_types=True).c
    query = (
        sa.select(*(sa.func.coalesce(rows[name], _DEFAULTS.get(name)) for name in names))
        .where(~sa.exists().where(tombstones.c.session_id == rows[session_id]))
        # two gateways that write the same rows must lock them in the same order
        .order_by(*(rows[name] for name in keys))
    )
    statement = insert(table).from_select(names, query)
    new, old = statement.excluded, table.c
    changes = {name: sa.func.coalesce(new[name], old[name]) for name in names if name not in keys}
    changes |= _session_rules(new, old) if table is sessions else {}
    return statement.on_conflict_do_update(index_elements=keys, set_=changes).compile(dialect=get_dialect())


def _session_rules(new: Any, old: Any) -> dict[str, Any]:
    def unless_final(name: str) -> Any:
        return sa.case((old.status != "recording", old[name]), else_=sa.func.coalesce(new[name], old[name]))

    lasting = ("status", "final_text", "completed_at", "error_code", "error_message")
    return {name: unless_final(name) for name in lasting} | {
        "chunk_count": sa.func.greatest(new.chunk_count, old.chunk_count),
        "total_duration": sa.func.greatest(new.total_duration, old.total_duration),
        "created_at": sa.func.least(new.created_at, old.created_at),
        "updated_at": sa.func.now(),
    }


_DEFAULTS = {"status": "recording", "chunk_count": 0, "total_duration": 0.0, "created_at": sa.func.now()}
_UPSERTS = [(table, _upsert(table)) for table in (sessions, chunks, segments)]

_SESSION = sa.select(
    sessions.c.id.label("session_id"), sessions.c.user_id, sessions.c.status,
    sa.func.coalesce(sessions.c.final_text, "").label("text"), sessions.c.total_duration.label("duration"),
    sessions.c.chunk_count, sessions.c.language, sessions.c.created_at, sessions.c.completed_at,
)  # fmt: skip
_CHUNKS = sa.select(
    chunks.c.chunk_index, sa.func.coalesce(chunks.c.text, "").label("text"), *list(chunks.c)[3:]
).order_by(chunks.c.chunk_index)  # fmt: skip
_SEGMENTS = sa.select(
    segments.c.number, segments.c.chunk_index, segments.c.start_time.label("start"),
    segments.c.end_time.label("end"), *list(segments.c)[5:]
).order_by(segments.c.number)  # fmt: skip


async def _fetch(conn: SAConnection, query: Any) -> list[dict[str, Any]]:
    """The rows as dictionaries, with times as ISO 8601 strings (the connection's time zone is UTC)."""
    rows = await (await conn.execute(query)).fetchall()
    return [{key: v.isoformat() if isinstance(v, datetime) else v for key, v in row.items()} for row in rows]
