"""The operations on PostgreSQL. This package has every SQL statement of the system.

Runs in the gateway, on uvloop, through aiopg.sa 1.4.0 (SQLAlchemy 1.4 Core). pool.py has the connections, schema.py
creates the database, tables.py has the writing statements, queries.py the reading ones, search.py the full-text search.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from asrserver.storage import queries, text_search
from asrserver.storage.errors import StorageError, StorageRejected, StorageUnavailable
from asrserver.storage.pool import Pool
from asrserver.storage.queries import CURSOR, Filter, Page
from asrserver.storage.reading import ReadingPool
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

#: Key of the advisory lock that writers hold shared and a delete holds exclusively.
WRITE_LOCK = 0x617372_02

#: Key of the advisory lock under which the tally is compacted.
TALLY_LOCK = 0x617372_03

_EVERYTHING = Filter()


class Storage(Pool):
    """The sessions in PostgreSQL.

    Every method raises StorageUnavailable while PostgreSQL is unreachable and works again when it is back. A method
    with an argument `owner` sees only the sessions of that owner; None sees all.

    Args:
        dsn: libpq keywords or a postgresql:// URL, with one host or several.
        pool_size: Number of connections for storing; those for reading are opened when they are needed.
    """

    def __init__(self, dsn: str, *, pool_size: int = 2) -> None:
        super().__init__(dsn, pool_size)
        self._dsn = dsn
        self._reading = ReadingPool(dsn)

    async def open(self) -> None:
        """Open as a Pool does."""
        await self._reading.close()
        self._reading = ReadingPool(self._dsn)
        await super().open()

    async def close(self) -> None:
        """Close as a Pool does."""
        await self._reading.close()
        await super().close()

    async def save(self, records: Sequence[Record]) -> list[tuple[str, str]]:
        """Store the records in one transaction. Idempotent; deleted sessions are skipped.

        A final status never changes, nor do its text, error and completion time; chunk_count and total_duration never
        decrease. After StorageUnavailable, save all records again.

        Returns:
            (session_id, reason) of each record that PostgreSQL refuses because of its data; they are logged, without
            their text. All others are stored.
        """
        buried = await self._bisect(records)
        for session_id, reason in buried:
            log.error("session=%s refused by PostgreSQL, not stored: %s", session_id, reason)
        return buried

    async def known(self, session_id: str) -> bool:
        """Whether the session is stored or has been deleted."""
        async with self.connection() as conn:
            return bool(await conn.scalar(queries.KNOWN.text, {"id": clean(session_id)}))

    async def history(self, limit: int, which: Filter = _EVERYTHING, cursor: str | None = None) -> Page:
        """A page of matching sessions, newest first.

        Each record is {session_id, user_id, status, text, duration (seconds), chunk_count, language, mode, model,
        error_code, error_message, audio_path, created_at, completed_at}; times are ISO 8601 in UTC.

        A page may have fewer than `limit` records, or none, though more follow: if these have more than PAGE_BYTES of
        text, or if a search for a phrase has taken text_search.SEARCH_SECONDS.

        Args:
            limit: Maximum number of records.
            which: The filter.
            cursor: The cursor of the page before. It is a position between two sessions, so that no session is seen
                twice or left out when others are added or deleted meanwhile.

        Returns:
            The page; its total is None for a search that has further pages.

        Raises:
            ValueError: `cursor` is not a cursor.
        """
        values = which.values()
        place = queries.read_cursor(cursor) if cursor is not None else {}
        names, stopped, total = frozenset(values).union(place), None, None
        parameters = {**values, **place, "limit": limit + 1}
        async with self._reading.lend(which.owner) as conn:
            if which.search is None:
                count = queries.total(frozenset(values))
                total = await conn.scalar(count.text, {**count.parameters, **values})
            elif found := await text_search.search(conn, which.search, {**values, **place}, limit + 1):
                names, stopped = frozenset({"ids"}), found.stopped
                parameters["ids"] = found.ids
            records = await queries.fetch(conn, queries.history(names), **parameters)
        most = max((record.pop("found") for record in records), default=0)
        records = records[:limit]
        last = records[-1] if most > len(records) else stopped
        if which.search is not None and cursor is None and last is None:
            total = len(records)
        return Page(total, records, queries.make_cursor(last) if last is not None else None)

    async def record(self, session_id: str, *, owner: str | None = None) -> dict[str, Any] | None:
        """One session as in `history`; None if it is not stored."""
        async with self._reading.lend(owner) as conn:
            found = await queries.fetch(conn, queries.one(owner is not None), id=clean(session_id), owner=owner)
        return found[0] if found else None

    async def chunks(self, session_id: str, *, owner: str | None = None) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of a session in order, PART_ROWS at a time. Whose it is was asked before: see `record`."""
        async for part in self._parts(queries.CHUNKS, "chunk_index", session_id, owner):
            yield part

    async def segments(self, session_id: str, *, owner: str | None = None) -> AsyncIterator[list[dict[str, Any]]]:
        """Its segments, likewise."""
        async for part in self._parts(queries.SEGMENTS, "number", session_id, owner):
            yield part

    async def _parts(
        self, statement: queries.Compiled, order: str, session_id: str, owner: str | None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        after, size = -1, queries.PART_ROWS
        while size == queries.PART_ROWS:
            async with self._reading.lend(owner) as conn:  # given back in between: who reads it may be slow
                part = await queries.fetch(conn, statement, id=clean(session_id), after=after)
            if part:
                yield part
                after = part[-1][order]
            size = len(part)

    async def session(self, session_id: str, *, owner: str | None = None) -> dict[str, Any] | None:
        """One session as in `history`, with all its `chunks` and `segments` in order; None if it is not stored."""
        found = await self.record(session_id, owner=owner)
        if found is None:
            return None
        found["chunks"] = [row async for part in self.chunks(session_id, owner=owner) for row in part]
        found["segments"] = [row async for part in self.segments(session_id, owner=owner) for row in part]
        return found

    async def deleted_at(self, session_id: str) -> datetime | None:
        """When a session was deleted; None: it was not, or a month ago."""
        async with self.connection() as conn:
            query = sa.select(tombstones.c.deleted_at).where(tombstones.c.session_id == clean(session_id))
            found: datetime | None = await conn.scalar(query)
        return found

    async def delete(self, session_id: str, *, pending: bool = False, owner: str | None = None) -> bool:
        """Delete a session permanently: later saves of it are ignored.

        Args:
            session_id: Its id.
            pending: It exists, though it may not be stored yet. Otherwise no tombstone is left for an unknown session.
            owner: See the class.

        Returns:
            Whether it was stored.
        """
        name = clean(session_id)
        mine = sessions.c.id == name if owner is None else sa.and_(sessions.c.id == name, sessions.c.owner == owner)
        async with self.transaction() as conn:
            await conn.scalar("SELECT pg_advisory_xact_lock(%(key)s)", {"key": WRITE_LOCK})
            deleted = await conn.execute(sessions.delete().where(mine))
            if deleted.rowcount or pending:
                await conn.execute(insert(tombstones).values(session_id=name).on_conflict_do_nothing())
        return bool(deleted.rowcount)

    async def sessions_of(self, user_id: str, owner: str | None, limit: int) -> list[str]:
        """Ids of the sessions of a user, newest first."""
        mine = [sessions.c.user_id == clean(user_id), *([] if owner is None else [sessions.c.owner == owner])]
        query = sa.select(sessions.c.id).where(*mine).order_by(sessions.c.created_at.desc()).limit(limit)
        async with self.connection() as conn:
            return [row[0] for row in await (await conn.execute(query)).fetchall()]

    async def older_than(self, days: float, owner: str | None, others: Sequence[str], limit: int) -> list[str]:
        """Ids of sessions that are over and began more than `days` ago, oldest first.

        Args:
            days: How long ago.
            owner: If given, only its sessions.
            others: Owners whose sessions are left out.
            limit: The most to return.
        """
        anybody = sa.or_(sessions.c.owner.is_(None), sessions.c.owner.notin_(list(others)))
        whose = anybody if owner is None else sessions.c.owner == owner
        before = sa.func.now() - sa.cast(f"{days} days", sa.Interval)
        query = sa.select(sessions.c.id).where(whose, sessions.c.created_at < before, sessions.c.status != "recording")
        async with self.connection() as conn:
            found = await conn.execute(query.order_by(sessions.c.created_at).limit(limit))
            return [row[0] for row in await found.fetchall()]

    async def stats(self, *, owner: str | None = None) -> dict[str, dict[str, int]]:
        """The numbers of sessions, milliseconds of audio and bytes of recordings, by status."""
        async with self._reading.lend(owner) as conn:
            found = await queries.fetch(conn, queries.sums(owner is not None), owner=owner)
        return {row.pop("status"): row for row in found}

    async def size(self) -> int:
        """The size of the tables and their indexes in bytes."""
        async with self._reading.lend(None) as conn:
            return int(await conn.scalar(_SIZE, {"names": list(metadata.tables)}))

    # -- recordings ----------------------------------------------------------------------------------------------

    async def set_audio(self, session_id: str, path: str, size: int) -> bool:
        """Set the path and size in bytes of a session's recording; False if the session is not stored."""
        change = sessions.update().where(sessions.c.id == clean(session_id)).values(audio_path=path, audio_bytes=size)
        async with self.connection() as conn:
            return bool((await conn.execute(change)).rowcount)

    async def has_audio(self, session_id: str, *, owner: str | None = None) -> bool:
        """Whether the session has a recording."""
        mine = [] if owner is None else [sessions.c.owner == owner]
        noted = sa.exists().where(sessions.c.id == clean(session_id), sessions.c.audio_path.isnot(None), *mine)
        async with self._reading.lend(owner) as conn:
            return bool(await conn.scalar(sa.select(noted)))

    async def expired_audio(self, days: float, per_user: int, limit: int) -> list[str]:
        """Ids of sessions with recordings older than `days`, or beyond the newest `per_user` of a user. 0: no limit."""
        if not days and not per_user:
            return []
        async with self.connection() as conn:
            found = await conn.execute(_EXPIRED, {"days": days, "kept": per_user, "limit": limit})
            return [row[0] for row in await found.fetchall()]

    async def forget_audio(self, session_ids: Sequence[str]) -> None:
        """Clear the recordings of these sessions."""
        gone = sessions.update().where(sessions.c.id.in_(list(session_ids)))
        async with self.connection() as conn:
            await conn.execute(gone.values(audio_path=None, audio_bytes=None))

    # -- housekeeping --------------------------------------------------------------------------------------------

    async def add_up(self) -> None:
        """Compact the rows of the tally; does nothing if another gateway is doing it."""
        async with self.transaction() as conn:
            if await conn.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(TALLY_LOCK))):
                await conn.execute(_ADD_UP)

    async def dormant(self, age: float, limit: int) -> list[str]:
        """Ids of sessions that are not over, and of which nothing was stored for `age` seconds."""
        async with self.connection() as conn:
            before = sa.func.now() - sa.cast(f"{age} s", sa.Interval)
            query = sa.select(sessions.c.id).where(sessions.c.status == "recording", sessions.c.updated_at < before)
            found = await conn.execute(query.limit(limit))
            return [row[0] for row in await found.fetchall()]

    async def give_up(self, session_ids: Iterable[str]) -> None:
        """End sessions of which nothing more can come: what Redis had of them is lost."""
        lost = sessions.update().where(sessions.c.id.in_(list(session_ids)), sessions.c.status == "recording")
        reason = {"error_code": "session_gone", "error_message": "Redis lost the session: its end is not known"}
        async with self.connection() as conn:
            await conn.execute(lost.values(status="error", completed_at=sa.func.now(), **reason))

    async def old_tombstones(self, age: float, limit: int) -> list[str]:
        """Ids of tombstones older than `age` seconds, oldest first."""
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
            # otherwise a session deleted between the check of the tombstones and the commit would be created again
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
