"""What storage raises, and how exceptions of the libraries become one of these."""

from __future__ import annotations

import psycopg2

#: Undefined table or column, read-only transaction: this is no longer the database or server that was opened.
REOPEN = ("42P01", "42703", "25006")

#: SQLSTATE classes that blame the data: cardinality, data exception, integrity constraint, program limit. All
#: others (a missing table, a full disk, a standby, a deadlock, …) are nothing to bury a session for.
_CONTENT = ("21", "22", "23", "54")


class StorageError(Exception):
    """Raised when PostgreSQL does not do what was asked; by itself, when only an operator can help."""


class StorageUnavailable(StorageError):
    """Raised when PostgreSQL is away, starting, stopping, full or too slow: try again later."""


class StorageRejected(StorageError):
    """Raised when PostgreSQL refuses a statement for what it contains: the same call will fail again."""


def translated(exc: Exception, timeout: float) -> StorageError:
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
        return StorageUnavailable(f"no connection or no answer within {timeout:g} s")
    rejected = (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.NotSupportedError)
    if isinstance(exc, (psycopg2.Error, OSError, RuntimeError)) and not isinstance(exc, rejected):
        return StorageUnavailable(line or name)
    return StorageRejected(f"{name}: {line}")
