"""Finds the server, creates the database if it is missing, applies the schema. Blocking: to be called in a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
from psycopg2 import sql
from psycopg2.extensions import parse_dsn
from sqlalchemy.dialects import postgresql

from asrserver.storage import migrate
from asrserver.storage.errors import StorageError
from asrserver.storage.tables import metadata

log = logging.getLogger("asrserver.storage")

#: Options of each connection. The server times out before the client (pool.STATEMENT_TIMEOUT), so that no statement
#: runs on after its client gave up.
SERVER_OPTIONS = "-c statement_timeout=4000 -c idle_in_transaction_session_timeout=10000 -c TimeZone=UTC"


def parameters(dsn: str) -> dict[str, Any]:
    """Parse a DSN into libpq's parameters.

    Raises:
        StorageError: It cannot be parsed. The message never quotes the DSN: libpq's own would print its password.
    """
    try:
        given = parse_dsn(dsn)
    except psycopg2.Error:
        raise StorageError("DATABASE_URL is neither a postgresql:// URL nor key=value pairs") from None
    if "://" in dsn and any("@" in given.get(key, "") for key in ("host", "dbname")):
        raise StorageError("DATABASE_URL is ambiguous: write @ and / in the password as %40 and %2F")
    defaults = {
        "connect_timeout": 2, "client_encoding": "UTF8", "fallback_application_name": "asrserver",
        "gssencmode": "disable", "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    }  # fmt: skip
    return {**defaults, **given, "options": f"{given.get('options', '')} {SERVER_OPTIONS}"}


def prepare(parameters: dict[str, Any]) -> dict[str, Any]:
    """Create the database and its tables if they are missing. Blocks.

    Returns:
        The parameters of the server that answered: one numeric address without a fallback. With several (localhost,
        two hosts, SSL tried first) libpq changes its socket while connecting, which aiopg does not notice (#275), and
        a name would be resolved in the event loop.

    Raises:
        StorageError: The database cannot be created, is not in UTF8, or has tables of another version.
    """
    with contextlib.closing(_connect(parameters)) as conn:
        encoding = conn.get_parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StorageError(f"database {conn.info.dbname!r} has encoding {encoding}, it must be UTF8")
        apply_schema(conn)
        answered: dict[str, Any] = {"host": conn.info.host, "port": conn.info.port}
        if not conn.info.ssl_in_use:
            answered["sslmode"] = "disable"
        with socket.socket(fileno=os.dup(conn.fileno())) as sock:
            if sock.family != socket.AF_UNIX:
                answered["hostaddr"] = sock.getpeername()[0]
        log.info("PostgreSQL: database %s, %s:%s", conn.info.dbname, conn.info.host, conn.info.port)
        return parameters | answered


def schema_sql() -> str:
    """The text of schema.sql: from the package where installed, else from the root of the source tree."""
    installed = resources.files("asrserver").joinpath("schema.sql")
    if installed.is_file():
        return installed.read_text("utf-8")
    return (Path(__file__).parents[2] / "schema.sql").read_text("utf-8")


def _connect(parameters: dict[str, Any]) -> Any:
    try:
        return psycopg2.connect(**parameters)
    except psycopg2.OperationalError:
        # A missing database? psycopg2 2.9 gives no SQLSTATE here, and the message may be in any language.
        if not _create_database(parameters):
            raise
    return psycopg2.connect(**parameters)


def _create_database(parameters: dict[str, Any]) -> bool:
    """Create the database if the server answers and does not have it; whether it has it now."""
    name = parameters.get("dbname")
    if not name:
        return False
    try:
        conn = psycopg2.connect(**{**parameters, "dbname": "postgres"})
    except psycopg2.OperationalError:
        return False
    # template0 is the only template that allows another encoding
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
            pass  # another gateway created it first
        except psycopg2.errors.InsufficientPrivilege:
            raise StorageError(
                f"database {name!r} does not exist and user {conn.info.user!r} may not create it: an "
                f"administrator must run CREATE DATABASE, with OWNER {conn.info.user} and ENCODING 'UTF8'"
            ) from None
    return True


def apply_schema(conn: Any) -> None:
    """Create the tables, or apply the migrations that they lack; put back what is missing of the present version.

    Nothing is changed if nothing is missing: the locks would stall writers needlessly.

    Raises:
        StorageError: The tables are of another version that cannot be brought to this one; names what is wrong.
    """
    expected = _expected()
    with conn, conn.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 5000")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (migrate.SCHEMA_LOCK,))
        version, present = migrate.version(cursor), _present(cursor)
        version.check()
        if expected <= present and not version.pending:
            return
        _check_types(expected, present)
        if version.number:
            migrate.upgrade(cursor, version)
        if not version.number or expected - _present(cursor):
            migrate.execute(cursor, schema_sql(), migrate.ANOTHER_VERSION)
            migrate.record(cursor, version.pending)
        missing = expected - _present(cursor)
        if missing:
            raise StorageError(f"{migrate.ANOTHER_VERSION}: missing {', '.join(sorted(missing))}")


def _check_types(expected: set[str], present: set[str]) -> None:
    """Raise StorageError if a column has another type than it should: no migration expects that."""
    types = dict(name.split(" ", 1) for name in present if " " in name)
    wrong = [f"{name} is {types[name.split(' ')[0]]}" for name in expected - present if name.split(" ")[0] in types]
    if wrong:
        raise StorageError(f"{migrate.ANOTHER_VERSION}: {'; '.join(sorted(wrong))}")


def read_version(parameters: dict[str, Any]) -> migrate.Version:
    """Read the version of a database without changing it. Blocks.

    Raises:
        StorageError: It cannot be reached, or is not there.
    """
    with contextlib.closing(psycopg2.connect(**parameters)) as conn, conn.cursor() as cursor:
        return migrate.version(cursor)


def _expected() -> set[str]:
    """The columns with their types, and the indexes, as `_present` names them."""
    tables, dialect = metadata.tables.values(), postgresql.dialect()
    columns = {f"{t.name}.{c.name} {c.type.compile(dialect).lower()}" for t in tables for c in t.columns}
    return columns | {f"{table.name}.{index.name}" for table in tables for index in table.indexes}


def _present(cursor: Any) -> set[str]:
    """The columns, as `table.column type`, and the indexes, as `table.index`, of the current schema."""
    cursor.execute("""
        SELECT relname || '.' || attname || ' ' || format_type(atttypid, atttypmod)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
          AND attnum > 0 AND NOT attisdropped
        UNION ALL SELECT tablename || '.' || indexname FROM pg_indexes WHERE schemaname = current_schema()""")
    return {name for (name,) in cursor}
