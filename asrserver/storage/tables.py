"""The tables for SQLAlchemy, and the statements that write them. schema.sql defines them; a test compares the two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import sqlalchemy as sa
from aiopg.sa.engine import get_dialect
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, JSONB, TIMESTAMP, insert

#: Maximum number of rows in one statement: preparing them blocks the event loop for about 10 ms.
MAX_ROWS = 500

metadata = sa.MetaData()
_seconds, _when = DOUBLE_PRECISION(), TIMESTAMP(timezone=True)


def _table(name: str, keys: int, **columns: Any) -> sa.Table:
    """A table of schema.sql; its first `keys` columns are the primary key."""
    typed = enumerate(columns.items())
    return sa.Table(name, metadata, *(sa.Column(c, kind, primary_key=i < keys) for i, (c, kind) in typed))


sessions = _table(
    "asr_sessions", 1, id=sa.Text, user_id=sa.Text, status=sa.Text, mode=sa.Text, language=sa.Text,
    model=sa.Text, final_text=sa.Text, chunk_count=sa.Integer, total_duration=_seconds, error_code=sa.Text,
    error_message=sa.Text, created_at=_when, completed_at=_when, updated_at=_when, owner=sa.Text, audio_path=sa.Text,
    audio_bytes=sa.BigInteger,
)  # fmt: skip
sa.Index("asr_sessions_history", sessions.c.created_at.desc(), sessions.c.id.desc())
sa.Index("asr_sessions_user", sessions.c.user_id, sessions.c.created_at.desc())
sa.Index("asr_sessions_owner", sessions.c.owner, sessions.c.created_at.desc(), sessions.c.id.desc())
sa.Index("asr_sessions_status", sessions.c.status, sessions.c.created_at.desc(), sessions.c.id.desc())
sa.Index("asr_sessions_audio", sessions.c.owner, sessions.c.user_id, sessions.c.created_at)
sa.Index("asr_sessions_search", sa.func.asr_words(sessions.c.final_text))
chunks = _table(
    "asr_chunks", 2, session_id=sa.Text, chunk_index=sa.BigInteger, text=sa.Text, duration=_seconds,
    language=sa.Text, error_code=sa.Text, error_message=sa.Text, received_at=_when, recognised_at=_when,
)  # fmt: skip
segments = _table(
    "asr_segments", 2, session_id=sa.Text, number=sa.Integer, chunk_index=sa.BigInteger, start_time=_seconds,
    end_time=_seconds, text=sa.Text, language=sa.Text, confidence=_seconds, words=JSONB, worker=sa.Text,
    channel=sa.Integer,
)  # fmt: skip
tombstones = _table("asr_tombstones", 1, session_id=sa.Text, deleted_at=_when)
tally = _table(
    "asr_tally", 1, id=sa.BigInteger, owner=sa.Text, status=sa.Text, sessions=sa.BigInteger, audio_ms=sa.BigInteger,
    audio_bytes=sa.BigInteger,
)  # fmt: skip
migrations = _table("asr_migrations", 1, version=sa.Integer, title=sa.Text, oldest=sa.Integer, applied_at=_when)


@dataclass(slots=True)
class Record:
    """The data of one session to be stored.

    Keys are the columns of schema.sql; a missing or None value changes nothing. Times (`…_at`) are seconds since the
    epoch, aware datetimes or ISO 8601 strings. Chunks and segments take their `session_id` from `session["id"]`.
    """

    session: dict[str, Any]
    chunks: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)


#: Characters that PostgreSQL cannot store: NUL and lone surrogates, which a client's JSON may contain.
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def clean(value: Any) -> Any:
    """The value with U+FFFD in place of characters that PostgreSQL cannot store."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_json(rows: list[dict[str, Any]]) -> str:
    """The rows as JSON without characters that PostgreSQL cannot store; NaN and infinity become null (orjson)."""
    try:
        data = orjson.dumps(rows)
    except orjson.JSONEncodeError:  # a lone surrogate; anything else raises again below
        data = b"\\u0000"
    # Rare. Checking every string in Python took half of the time of storing it.
    if b"\\u0000" in data:
        data = orjson.dumps(clean(rows))
    return data.decode()


#: The columns of each table, and which of them are times.
_COLUMNS = {
    table.name: (
        frozenset(table.columns.keys()),
        tuple(column.name for column in table.columns if column.name.endswith("_at")),
    )
    for table in (sessions, chunks, segments)
}


def _row(table: sa.Table, values: dict[str, Any]) -> dict[str, Any]:
    """The values as columns of the table, converted in place."""
    names, times = _COLUMNS[table.name]
    if not values.keys() <= names:
        raise ValueError(f"{table.name} has no column {', '.join(sorted(values.keys() - names))}")
    for name in times:
        at = values.get(name)
        if isinstance(at, (int, float)):
            values[name] = datetime.fromtimestamp(at, UTC)
    return values


def rows(table: sa.Table, records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The rows of this table in the records, those of a session together."""
    for record in sorted(records, key=lambda record: record.session["id"]):
        session_id = clean(record.session["id"])
        if table is sessions:
            yield _row(table, {**record.session, "id": session_id})
        else:
            for values in record.chunks if table is chunks else record.segments:
                yield _row(table, {**values, "session_id": session_id})


def pieces(table: sa.Table, rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows, in order, in lists of at most MAX_ROWS without duplicate keys, which PostgreSQL refuses."""
    keys = table.primary_key.columns.keys()
    piece: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        if key in piece or len(piece) == MAX_ROWS:
            yield list(piece.values())
            piece = {}
        piece[key] = row
    if piece:
        yield list(piece.values())


def _upsert(table: sa.Table) -> Any:
    """INSERT … SELECT … FROM json_to_recordset(:rows) ON CONFLICT (key) DO UPDATE …, compiled.

    One statement with one parameter for any number of rows. SQLAlchemy 1.4.54 would compile multi-row VALUES each
    time, which blocks the event loop for 0.3 s for 1000 chunks.
    """
    names = [column.name for column in table.columns if column.name != "updated_at"]
    session_id, *_ = keys = table.primary_key.columns.keys()
    recordset = sa.func.json_to_recordset(sa.bindparam("rows", type_=sa.Text))
    typed = (sa.column(name, table.c[name].type) for name in names)
    rows = recordset.table_valued(*typed, name="incoming").render_derived(with_types=True).c
    query = (
        sa.select(*(sa.func.coalesce(rows[name], _DEFAULTS.get(name)) for name in names))
        .where(~sa.exists().where(tombstones.c.session_id == rows[session_id]))
        # two gateways that write the same rows must lock them in the same order, or they deadlock
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
UPSERTS = [(table, _upsert(table)) for table in (sessions, chunks, segments)]
