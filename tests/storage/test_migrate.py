"""Databases of earlier and of newer versions, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from asrserver.storage import migrate, schema
from asrserver.storage.errors import StorageError, StorageUnavailable
from asrserver.storage.migrate import Migration, migrations
from asrserver.storage.storage import Storage
from tests.recordings import DATA
from tests.storage.postgres import Postgres
from tests.storage.records import record

pytestmark = pytest.mark.gen_test(timeout=30)

#: What each database of an earlier release was made with, and its version.
EARLIER = {"schema-0.0.sql": 1, "schema-0.1.0.sql": 2}

LATEST = migrations()[-1].version

ROW = "INSERT INTO asr_sessions (id, status, final_text, total_duration) VALUES ('old', 'done', 'good morning', 2.5)"


def shape(postgres: Postgres, database: str) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that schema.sql makes, as PostgreSQL describes it."""
    queries = {
        "columns": "SELECT table_name, column_name, ordinal_position, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 3",
        "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
        "functions": "SELECT proname, pg_get_functiondef(oid) FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
        "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
        "migrations": "SELECT version, title, oldest FROM asr_migrations ORDER BY 1",
    }
    return {name: postgres.execute(database, query) for name, query in queries.items()}


async def opened(postgres: Postgres, database: str) -> None:
    store = Storage(postgres.dsn(database), pool_size=1)
    await store.open()
    await store.close()


def earlier(postgres: Postgres, database: str, file: str) -> None:
    postgres.execute("postgres", f"CREATE DATABASE {database}")
    postgres.execute(database, (DATA / file).read_text("utf-8"))
    postgres.execute(database, ROW)


@pytest.mark.parametrize("file", EARLIER)
async def test_a_database_of_an_earlier_version_becomes_as_a_new_one(
    postgres: Postgres, database: str, file: str
) -> None:
    """With its rows: found by its words, and counted."""
    await opened(postgres, database)
    new, old = shape(postgres, database), f"{database}_old"
    earlier(postgres, old, file)
    parameters = schema.parameters(postgres.dsn(old))
    assert schema.read_version(parameters).number == EARLIER[file]
    stores = [Storage(postgres.dsn(old), pool_size=1) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))  # one of them does it, the others wait
    assert shape(postgres, old) == new
    assert schema.read_version(parameters) == migrate.Version(LATEST)
    assert (await stores[0].session("old") or {})["text"] == "good morning"
    assert postgres.execute(old, "SELECT id FROM asr_sessions WHERE asr_words(final_text) @@ 'morning'") == [("old",)]
    assert postgres.execute(old, "SELECT sum(sessions), sum(audio_ms) FROM asr_tally") == [(1, 2500)]
    assert await stores[1].save([record()]) == []
    await asyncio.gather(*(store.close() for store in stores))


async def test_what_is_up_to_date_is_left_alone(postgres: Postgres, database: str) -> None:
    """Also while somebody writes: nothing waits for a lock."""
    await opened(postgres, database)
    before = postgres.execute(database, "SELECT applied_at FROM asr_migrations")
    with contextlib.closing(psycopg2.connect(postgres.dsn(database))) as conn, conn.cursor() as cursor:
        cursor.execute(ROW)
        await opened(postgres, database)
    assert postgres.execute(database, "SELECT applied_at FROM asr_migrations") == before


def added(monkeypatch: pytest.MonkeyPatch, sql: str, oldest: int = 1) -> Migration:
    """This program knows one migration more."""
    more = Migration(LATEST + 1, "more", sql, oldest)
    known = [*migrations(), more]
    monkeypatch.setattr(migrate, "migrations", lambda: known)
    return more


async def test_a_newer_database_is_used_if_its_changes_allow_it(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling upgrade, and the way back; a change that ends older programs ends them with one line."""
    added(monkeypatch, "ALTER TABLE asr_sessions ADD COLUMN IF NOT EXISTS mood text")
    await opened(postgres, database)
    monkeypatch.undo()
    await opened(postgres, database)
    assert schema.read_version(schema.parameters(postgres.dsn(database))) == migrate.Version(LATEST + 1)
    postgres.execute(database, "UPDATE asr_migrations SET oldest = %s WHERE version = %s", LATEST + 1, LATEST + 1)
    with pytest.raises(
        StorageError, match=f"needs a program that knows version {LATEST + 1}; this one .* {LATEST}:"
    ) as caught:
        await opened(postgres, database)
    assert not isinstance(caught.value, StorageUnavailable)


@pytest.mark.parametrize("sql", ["ALTER TABLE nowhere ADD x int", "ALTER TABLE asr_sessions ADD CHECK (id <> 'old')"])
async def test_a_migration_that_fails_is_named_and_changes_nothing(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    earlier(postgres, database, "schema-0.0.sql")
    more = added(monkeypatch, sql)
    with pytest.raises(StorageError, match=rf"migration {more.version} \(more\)") as caught:
        await opened(postgres, database)
    assert not isinstance(caught.value, StorageUnavailable)
    assert postgres.execute(database, "SELECT count(*) FROM pg_class WHERE relname = 'asr_tally'") == [(0,)]
    monkeypatch.undo()
    await opened(postgres, database)


async def test_who_may_not_change_the_tables_is_told_who_may(postgres: Postgres, database: str) -> None:
    earlier(postgres, database, "schema-0.1.0.sql")
    postgres.execute("postgres", f"CREATE ROLE {database} LOGIN PASSWORD 'hidden'")
    postgres.execute(database, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {database}")
    dsn = f"host=127.0.0.1 port={postgres.port} user={database} password=hidden dbname={database}"
    with pytest.raises(StorageError, match=f"user '{database}' .* asrserver db upgrade"):
        await Storage(dsn).open()


async def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, LATEST + 1))
    files = sorted(Path(migrate.__file__).with_name("sql").glob("*.sql"))
    assert [file.name for file in files] == [f"{one.version:04}_{one.name}.sql" for one in migrations()]
