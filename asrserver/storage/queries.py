"""The SELECT statements, each compiled once: SQLAlchemy takes longer to compile one than PostgreSQL to execute it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from aiopg.sa import SAConnection
from aiopg.sa.engine import get_dialect

from asrserver.storage.search import tsquery
from asrserver.storage.tables import chunks, clean, segments, sessions, tally, tombstones

#: A cursor of the history: a session's creation time in microseconds since 1970, and its id in hexadecimal digits.
CURSOR = re.compile(r"[0-9]{1,16}-(?:[0-9a-f]{2}){1,512}")

#: Bytes of text on a page of the history at most, but for one session that has more by itself.
PAGE_BYTES = 4 << 20

#: Chunks, and segments, of a session that are read at a time. A session of hours may have 100,000 chunks.
PART_ROWS = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Filter:
    """A filter of sessions; None does not filter. `since` ≤ created_at < `until`; `search` as in search.py."""

    owner: str | None = None
    user_id: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None

    def values(self) -> dict[str, Any]:
        found = {name: clean(value) for name, value in vars(self).items() if value is not None}
        if "search" in found:
            found["search"] = tsquery(found["search"])
        return found


class Page(NamedTuple):
    """A page of the history.

    Attributes:
        total: The number of matching sessions on all pages; None where that is not known without counting them.
        records: The sessions.
        cursor: The cursor of the next page; None if this is the last.
    """

    total: int | None
    records: list[dict[str, Any]]
    cursor: str | None


def make_cursor(record: dict[str, Any]) -> str:
    """The cursor right after a record with session_id and created_at (ISO 8601)."""
    at = datetime.fromisoformat(record["created_at"]) - _EPOCH
    return f"{max(0, at // timedelta(microseconds=1))}-{record['session_id'].encode().hex()}"


def read_cursor(cursor: str) -> dict[str, Any]:
    """A cursor as parameters of the history.

    Raises:
        ValueError: It is not a cursor of `make_cursor`.
    """
    if not CURSOR.fullmatch(cursor):
        raise ValueError("not a cursor of an earlier page")
    micros, _, name = cursor.partition("-")
    at = _EPOCH + timedelta(microseconds=int(micros))
    return {"before": at, "before_id": clean(bytes.fromhex(name).decode(errors="replace"))}


async def fetch(conn: SAConnection, statement: Compiled, **values: Any) -> list[dict[str, Any]]:
    """The rows as dictionaries, with times as ISO 8601 strings (the connection's time zone is UTC).

    Read from psycopg2's cursor: aiopg's row objects cost three times what PostgreSQL takes for a page of a thousand.
    """
    result = await conn.execute(statement.text, {**statement.parameters, **values})
    names = [column.name for column in result.cursor.description]
    rows = await result.cursor.fetchall()
    result.close()
    return [
        {name: v.isoformat() if isinstance(v, datetime) else v for name, v in zip(names, row, strict=True)}
        for row in rows
    ]


class Compiled(NamedTuple):
    """A statement in psycopg2's syntax, with its constant parameters."""

    text: str
    parameters: dict[str, Any]


def compiled(statement: Any) -> Compiled:
    """Compile a statement for PostgreSQL; its unset parameters are left to the caller."""
    made = statement.compile(dialect=get_dialect())
    return Compiled(str(made), {name: value for name, value in made.params.items() if value is not None})


_RECORD = sa.select(
    sessions.c.id.label("session_id"), sessions.c.user_id, sessions.c.status,
    sa.func.coalesce(sessions.c.final_text, "").label("text"), sessions.c.total_duration.label("duration"),
    sessions.c.chunk_count, sessions.c.language, sessions.c.mode, sessions.c.model, sessions.c.error_code,
    sessions.c.error_message, sessions.c.audio_path, sessions.c.created_at, sessions.c.completed_at,
)  # fmt: skip

_ID = sa.bindparam("id", type_=sa.Text)


class _TsQuery(sa.types.UserDefinedType):  # type: ignore[misc]
    """What SQLAlchemy 1.4 lacks."""

    def get_col_spec(self, **_options: Any) -> str:
        return "tsquery"


_AFTER = sa.bindparam("after", type_=sa.BigInteger)

_CONDITIONS = {
    "owner": sessions.c.owner == sa.bindparam("owner", type_=sa.Text),
    "user_id": sessions.c.user_id == sa.bindparam("user_id", type_=sa.Text),
    "status": sessions.c.status == sa.bindparam("status", type_=sa.Text),
    "since": sessions.c.created_at >= sa.bindparam("since"),
    "until": sessions.c.created_at < sa.bindparam("until"),
    "search": sa.func.asr_words(sessions.c.final_text).op("@@")(
        sa.func.to_tsquery("simple", sa.bindparam("search", type_=sa.Text))
    ),
    "words": sa.func.asr_words(sessions.c.final_text).op("@@")(sa.cast(sa.bindparam("words", type_=sa.Text), _TsQuery)),
    "ids": sessions.c.id == sa.func.any(sa.bindparam("ids", type_=sa.ARRAY(sa.Text))),
    "before": sa.tuple_(sessions.c.created_at, sessions.c.id)
    < sa.tuple_(sa.bindparam("before"), sa.bindparam("before_id", type_=sa.Text)),
}  # fmt: skip


@lru_cache
def history(names: frozenset[str]) -> Compiled:
    """The newest sessions that match the conditions with these names, up to `limit` and PAGE_BYTES of text.

    Each row has as `found` how many rows there are up to the limit. The sizes are read without the texts.
    """
    conditions = [_CONDITIONS[name] for name in sorted(names & _CONDITIONS.keys())]
    order = sessions.c.created_at.desc(), sessions.c.id.desc()
    newest = _RECORD.add_columns(sa.func.octet_length(sessions.c.final_text).label("bytes"))
    page = newest.where(*conditions).order_by(*order).limit(sa.bindparam("limit")).subquery("page")
    order = page.c.created_at.desc(), page.c.session_id.desc()
    size = sa.func.coalesce(page.c.bytes, 0)
    running = sa.select(
        page, sa.func.sum(size).over(order_by=order).label("running"), sa.func.count().over().label("found"),
        sa.func.row_number().over(order_by=order).label("place"),
    ).subquery("sized")  # fmt: skip
    columns = [running.c[column.name] for column in _RECORD.selected_columns]
    fits = sa.or_(running.c.running <= PAGE_BYTES, running.c.place == 1)
    return compiled(sa.select(*columns, running.c.found).where(fits).order_by(running.c.place))


@lru_cache
def candidates(names: frozenset[str]) -> Compiled:
    """Ids and times of the newest sessions that match, up to `limit`, by the index of words; no text is read.

    The planner expects that each text has to be parsed, and would rather go through the table, the history or another
    index: so it has no choice.
    """
    columns = sessions.c.id.label("session_id"), sessions.c.created_at
    conditions = [_CONDITIONS[name] for name in sorted(names & _CONDITIONS.keys() - {"words"})]
    order = sessions.c.created_at.desc(), sessions.c.id.desc()
    newest = compiled(sa.select(*columns).where(*conditions).order_by(*order).limit(sa.bindparam("limit")))
    if "words" not in names:
        return newest
    kept = [sessions.c[name] for name in ("id", "created_at", "owner", "user_id", "status")]
    found = compiled(sa.select(*kept).where(_CONDITIONS["words"]))
    # Outside of the parentheses, the name is that of what was found in the table.
    return Compiled(
        "SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off; "
        f"WITH asr_sessions AS MATERIALIZED ({found.text}) {newest.text}",
        newest.parameters,
    )


@lru_cache
def total(names: frozenset[str]) -> Compiled:
    """The number of matching sessions: by owner and status from the tally, else counted. Not for searches."""
    if names <= {"owner", "status"}:
        query = sa.select(sa.cast(sa.func.coalesce(sa.func.sum(tally.c.sessions), 0), sa.BigInteger))
        return compiled(query.where(*(tally.c[name] == sa.bindparam(name, type_=sa.Text) for name in sorted(names))))
    counted = sa.select(sa.func.count()).select_from(sessions)
    return compiled(counted.where(*(_CONDITIONS[name] for name in sorted(names))))


@lru_cache
def one(owned: bool) -> Compiled:
    """The session `id`; if `owned`, only if it belongs to `owner`."""
    condition = [_CONDITIONS["owner"]] if owned else []
    return compiled(_RECORD.where(sessions.c.id == _ID, *condition))


KNOWN = compiled(
    sa.select(sa.or_(sa.exists().where(sessions.c.id == _ID), sa.exists().where(tombstones.c.session_id == _ID)))
)
#: Those of the sessions `ids` whose texts match the regular expression `pattern`, and then `search`: it takes ten times
#: as long, and the planner would ask for it first.
MATCHING = compiled(
    sa.select(sessions.c.id).where(
        _CONDITIONS["ids"],
        sa.case(
            (sessions.c.final_text.op("~*")(sa.bindparam("pattern", type_=sa.Text)), _CONDITIONS["search"]),
            else_=sa.false(),
        ),
    )
)
CHUNKS = compiled(
    sa.select(chunks.c.chunk_index, sa.func.coalesce(chunks.c.text, "").label("text"), *list(chunks.c)[3:])
    .where(chunks.c.session_id == _ID, chunks.c.chunk_index > _AFTER)
    .order_by(chunks.c.chunk_index)
    .limit(PART_ROWS)
)
SEGMENTS = compiled(
    sa.select(
        segments.c.number, segments.c.chunk_index, segments.c.start_time.label("start"),
        segments.c.end_time.label("end"), *list(segments.c)[5:],
    )
    .where(segments.c.session_id == _ID, segments.c.number > _AFTER)
    .order_by(segments.c.number)
    .limit(PART_ROWS)
)  # fmt: skip


@lru_cache
def sums(owned: bool) -> Compiled:
    """Sessions, milliseconds of audio and bytes of recordings by status."""
    columns = (tally.c.sessions, tally.c.audio_ms, tally.c.audio_bytes)
    query = sa.select(
        tally.c.status, *(sa.cast(sa.func.sum(column), sa.BigInteger).label(column.name) for column in columns)
    ).group_by(tally.c.status)
    return compiled(query.where(tally.c.owner == sa.bindparam("owner", type_=sa.Text)) if owned else query)
