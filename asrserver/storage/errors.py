"""The errors of storage, and the translation of the libraries' exceptions into them."""

from __future__ import annotations

import psycopg2

#: SQLSTATEs for undefined table or column and read-only transaction: the server behind the address has changed.
REOPEN = ("42P01", "42703", "25006")

#: SQLSTATE classes that blame the data: cardinality, data exception, integrity constraint, program limit. All others
#: (a missing table, a full disk, a standby, a deadlock, …) are no reason to give up a session.
_CONTENT = ("21", "22", "23", "54")


class StorageError(Exception):
    """Raised when PostgreSQL fails a request; this class itself when only an operator can help."""


class StorageUnavailable(StorageError):
    """Raised when PostgreSQL is unreachable, starting, stopping, full or too slow: try again later."""


class StorageRejected(StorageError):
    """Raised when PostgreSQL refuses a statement because of its data: the same call will fail again."""


def translated(exc: Exception, timeout: float) -> StorageError:
    """An exception as a StorageError of one line, without DETAIL or values, which may quote transcripts.

    Args:
        exc: What aiopg, psycopg2 or asyncio raised.
        timeout: Seconds, for the message about a timeout.
    """
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
