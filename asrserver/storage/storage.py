"""PostgreSQL: every SQL statement of the system.

Runs in the gateway, on uvloop, through aiopg.sa 1.4.0 (SQLAlchemy 1.4 Core). pool.py has the connections, server.py the
database and its schema, tables.py what is written, queries.py what is read, search.py what is searched for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from asrserver.storage import queries
from asrserver.storage.errors import StorageError, StorageRejected, StorageUnavailable
from asrserver.storage.pool import Pool
from asrserver.storage.queries import CURSOR, Filter, Page
from asrserver.storage.tables import UPSERTS, Record, as_json, clean, metadata, pieces, rows, sessions, tombstones

__all__ = [
    "CURSOR",
    "Filter",
    "Page",
    "Record",
    "Storage",
    "StorageError",
    "StorageRejected",
    "StorageUnavailable",
    "metadata",
]

log = logging.getLogger(__name__)

#: Key of the advisory lock that writers share and a delete has alone.
WRITE_LOCK = 0x617372_02

#: Key of the advisory lock of who adds up the tally.
TALLY_LOCK = 0x617372_03

_EVERYTHING = Filter()


class Storage(Pool):
    """The sessions in PostgreSQL.

    ``dsn``: a libpq keyword string or postgresql:// URL, of one host or several.
    Every method raises StorageUnavailable while PostgreSQL is away and works again when it is back.
    ``owner`` means: as if the sessions of others did not exist; None sees all.
    """

    def __init__(self, dsn: str, *, pool_size: int = 4) -> None:
        super().__init__(dsn, pool_size)

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
        async with self.connection() as conn:
            return bool(await conn.scalar(queries.KNOWN.text, {"id": clean(session_id)}))

    async def history(self, limit: int, which: Filter = _EVERYTHING, cursor: str | None = None) -> Page:
        """The newest sessions of those that match, newest first; from `cursor` on, where a page before ended.

        Each is {session_id, user_id, status, text, duration (seconds), chunk_count, language, mode, model, error_code,
        error_message, audio_path, created_at, completed_at}; times are ISO 8601 in UTC. The cursor names a place
        between two sessions: none is seen twice or left out, whatever comes or goes meanwhile. Raises ValueError for a
        text that is no cursor.
        """
        values = which.values()
        place = queries.read_cursor(cursor) if cursor is not None else {}
        names = frozenset(values)
        async with self.connection() as conn:
            count = queries.total(names)
            total = await conn.scalar(count.text, {**count.parameters, **values})
            page = queries.history(names.union(place))
            records = await queries.fetch(conn, page, **values, **place, limit=limit + 1)
        following = queries.make_cursor(records[limit - 1]) if len(records) > limit else None
        return Page(total, records[:limit], following)

    async def session(self, session_id: str, *, owner: str | None = None) -> dict[str, Any] | None:
        """One session as in history(), with its ``chunks`` and ``segments`` in order, or None."""
        name = clean(session_id)
        async with self.connection() as conn:
            found = await queries.fetch(conn, queries.one(owner is not None), id=name, owner=owner)
            if not found:
                return None
            return {
                **found[0],
                "chunks": await queries.fetch(conn, queries.CHUNKS, id=name),
                "segments": await queries.fetch(conn, queries.SEGMENTS, id=name),
            }

    async def delete(self, session_id: str, *, pending: bool = False, owner: str | None = None) -> bool:
        """Delete a session for good: what is saved of it later is ignored. Returns whether it was stored.

        ``pending`` says that it exists, stored or not; without it, nothing is noted of an unknown session.
        """
        name = clean(session_id)
        mine = sessions.c.id == name if owner is None else sa.and_(sessions.c.id == name, sessions.c.owner == owner)
        async with self.transaction() as conn:
            await conn.scalar("SELECT pg_advisory_xact_lock(%(key)s)", {"key": WRITE_LOCK})
            deleted = await conn.execute(sessions.delete().where(mine))
            if deleted.rowcount or pending:
                await conn.execute(insert(tombstones).values(session_id=name).on_conflict_do_nothing())
        return bool(deleted.rowcount)

    async def stats(self, *, owner: str | None = None) -> dict[str, dict[str, int]]:
        """Sessions, milliseconds of audio and bytes of recordings, by status."""
        async with self.connection() as conn:
            found = await queries.fetch(conn, queries.sums(owner is not None), owner=owner)
        return {row.pop("status"): row for row in found}

    async def size(self) -> int:
        """Bytes that the tables and their indexes take."""
        async with self.connection() as conn:
            return int(await conn.scalar(_SIZE, {"names": list(metadata.tables)}))

    # -- recordings ----------------------------------------------------------------------------------------------

    async def set_audio(self, session_id: str, path: str, size: int) -> bool:
        """Note the session's recording; False if the session is not stored."""
        change = sessions.update().where(sessions.c.id == clean(session_id)).values(audio_path=path, audio_bytes=size)
        async with self.connection() as conn:
            return bool((await conn.execute(change)).rowcount)

    async def has_audio(self, session_id: str, *, owner: str | None = None) -> bool:
        """Whether a recording of the session is noted."""
        mine = [] if owner is None else [sessions.c.owner == owner]
        noted = sa.exists().where(sessions.c.id == clean(session_id), sessions.c.audio_path.isnot(None), *mine)
        async with self.connection() as conn:
            return bool(await conn.scalar(sa.select(noted)))

    async def expired_audio(self, days: float, per_user: int, limit: int) -> list[str]:
        """Sessions whose recordings are older than so many days, or more than so many of one user; 0 is no limit."""
        if not days and not per_user:
            return []
        async with self.connection() as conn:
            found = await conn.execute(_EXPIRED, {"days": days, "kept": per_user, "limit": limit})
            return [row[0] for row in await found.fetchall()]

    async def forget_audio(self, session_ids: Sequence[str]) -> None:
        """Their recordings are no more."""
        gone = sessions.update().where(sessions.c.id.in_(list(session_ids)))
        async with self.connection() as conn:
            await conn.execute(gone.values(audio_path=None, audio_bytes=None))

    # -- housekeeping --------------------------------------------------------------------------------------------

    async def add_up(self) -> None:
        """Make one row of the tally's many; nothing if another gateway is at it."""
        async with self.transaction() as conn:
            if await conn.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(TALLY_LOCK))):
                await conn.execute(_ADD_UP)

    async def old_tombstones(self, age: float, limit: int) -> list[str]:
        """Sessions that were deleted more than `age` seconds ago and are still remembered, oldest first."""
        async with self.connection() as conn:
            before = sa.func.now() - sa.cast(f"{age} s", sa.Interval)
            query = sa.select(tombstones.c.session_id).where(tombstones.c.deleted_at < before)
            found = await conn.execute(query.order_by(tombstones.c.deleted_at).limit(limit))
            return [row[0] for row in await found.fetchall()]

    async def forget_tombstones(self, session_ids: Iterable[str]) -> None:
        async with self.connection() as conn:
            await conn.execute(tombstones.delete().where(tombstones.c.session_id.in_(list(session_ids))))

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
        async with self.transaction() as conn:
            # else a session deleted between our look at the tombstones and our commit would come back to life
            await conn.scalar("SELECT pg_advisory_xact_lock_shared(%(key)s)", {"key": WRITE_LOCK})
            for table, upsert in UPSERTS:
                for piece in pieces(table, rows(table, records)):
                    await conn.execute(upsert.string, {**upsert.params, "rows": as_json(piece)})


_SIZE = "SELECT coalesce(sum(pg_total_relation_size(to_regclass(name))), 0)::bigint FROM unnest(%(names)s) AS name"

_EXPIRED = """
    SELECT id FROM (
        SELECT id, created_at,
               row_number() OVER (PARTITION BY owner, user_id ORDER BY created_at DESC, id DESC) AS place
        FROM asr_sessions WHERE audio_path IS NOT NULL
    ) AS kept
    WHERE (%(days)s > 0 AND created_at < now() - %(days)s * interval '1 day')
       OR (%(kept)s > 0 AND place > %(kept)s)
    LIMIT %(limit)s"""

_ADD_UP = """
    WITH gone AS (DELETE FROM asr_tally RETURNING *)
    INSERT INTO asr_tally (owner, status, sessions, audio_ms, audio_bytes)
    SELECT owner, status, sum(sessions), sum(audio_ms), sum(audio_bytes) FROM gone GROUP BY owner, status
    HAVING sum(sessions) <> 0 OR sum(audio_ms) <> 0 OR sum(audio_bytes) <> 0"""
