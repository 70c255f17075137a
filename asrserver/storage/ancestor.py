"""Reads the history of kikipounamu's Go server, whose tables have the same names as ours and other columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.errors

from asrserver.storage.errors import StorageError, translated
from asrserver.storage.schema import parameters
from asrserver.storage.tables import Record

#: Rows that are read at a time.
BATCH = 500

#: Seconds that one read may take: the tables have no index that it could use.
READ_TIMEOUT = 60.0

#: What its sessions are called here: it knows no other ends than `done`.
STATUSES = {"done": "done", "recording": "interrupted"}

#: Its times have no zone: they are those of its connections, which had the database's default.
_SESSIONS = """
    SELECT id, user_id, status, final_text, coalesce(chunk_count, 0), coalesce(total_duration, 0),
           created_at::timestamptz, completed_at::timestamptz
    FROM asr_sessions ORDER BY created_at, id
"""


def read_history(dsn: str, owner: str | None) -> Iterator[list[Record]]:
    """Read all sessions, oldest first, in batches. Blocks.

    Args:
        dsn: Its database: a postgresql:// URL or libpq keywords.
        owner: The id of the API key that they are to belong to; None: they belong to none.

    Raises:
        StorageError: It cannot be read, or is not such a database.
    """
    given = {**parameters(dsn), "options": f"-c statement_timeout={1000 * READ_TIMEOUT:.0f}"}
    try:
        with contextlib.closing(psycopg2.connect(**given)) as conn:
            with conn.cursor() as cursor:
                cursor.execute("SELECT to_regclass('asr_sessions') IS NULL, to_regclass('asr_migrations') IS NULL")
                missing, foreign = cursor.fetchone()
                if missing or not foreign:
                    what = "has no table asr_sessions" if missing else "is one of asrserver itself"
                    raise StorageError(f"database {conn.info.dbname!r} is not kikipounamu's: it {what}")
            with conn.cursor("history") as cursor:  # on the server: the history may be larger than our memory
                cursor.itersize = BATCH
                cursor.execute(_SESSIONS)
                while rows := cursor.fetchmany(BATCH):
                    yield [_record(row, owner) for row in rows]
    except psycopg2.Error as exc:
        raise translated(exc, READ_TIMEOUT) from None


def _record(row: tuple[Any, ...], owner: str | None) -> Record:
    sid, user_id, status, text, chunks, seconds, created, completed = row
    return Record(
        {
            "id": sid,
            "user_id": user_id or None,
            "owner": owner,
            "status": STATUSES.get(status, "error"),
            "final_text": text or "",
            "chunk_count": chunks,
            "total_duration": seconds,
            "created_at": created,
            "completed_at": completed or created,
        }
    )
