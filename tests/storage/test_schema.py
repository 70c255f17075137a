"""The schema is created, checked and repaired, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql

from asrserver.storage import schema as server_module
from asrserver.storage import storage as module
from asrserver.storage.errors import StorageError, StorageRejected, StorageUnavailable
from asrserver.storage.storage import Storage
from asrserver.storage.tables import metadata
from tests.storage.postgres import Postgres
from tests.storage.records import record


@pytest.mark.gen_test(timeout=20)
async def test_columns_keys_and_indexes_are_those_of_schema_sql(
    store: Storage, server: Postgres, database: str
) -> None:
    real = server.execute(
        database,
        "SELECT relname, attname, format_type(atttypid, atttypmod)"
        " FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND attnum > 0"
        " ORDER BY relname, attnum",
    )
    dialect = postgresql.dialect()
    ours = [
        (table.name, column.name, column.type.compile(dialect).lower())
        for table in sorted(metadata.tables.values(), key=lambda table: table.name)
        for column in table.columns
    ]
    assert real == ours
    keys = server.execute(
        database,
        "SELECT relname, array_agg(attname::text ORDER BY array_position(conkey, attnum)) FROM pg_constraint"
        " JOIN pg_class c ON c.oid = conrelid"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND attnum = ANY (conkey)"
        " WHERE contype = 'p' AND c.relnamespace = 'public'::regnamespace GROUP BY relname",
    )
    assert dict(keys) == {table.name: table.primary_key.columns.keys() for table in metadata.tables.values()}
    indexes = {name for (name,) in server.execute(database, "SELECT indexname FROM pg_indexes")}
    assert indexes >= {index.name for table in metadata.tables.values() for index in table.indexes}


@pytest.mark.gen_test(timeout=20)
async def test_several_gateways_create_database_and_schema_together(postgres: Postgres, database: str) -> None:
    stores = [Storage(postgres.dsn(database), pool_size=1) for _ in range(6)]
    await asyncio.gather(*(each.open() for each in stores))
    await stores[0].open()
    await stores[0].save([record()])
    assert await stores[1].known("a")
    await asyncio.gather(*(each.close() for each in stores))


@pytest.mark.gen_test(timeout=20)
async def test_database_that_may_not_be_created_is_named(postgres: Postgres, database: str) -> None:
    postgres.execute("postgres", f"CREATE ROLE {database} LOGIN PASSWORD 'hidden'")
    with pytest.raises(StorageError, match=f"{database}.*may not create it") as caught:
        await Storage(f"host=127.0.0.1 port={postgres.port} user={database} password=hidden dbname={database}").open()
    assert not isinstance(caught.value, (StorageUnavailable, StorageRejected))
    assert "hidden" not in str(caught.value)


@pytest.mark.gen_test(timeout=20)
async def test_database_of_another_encoding_or_version_is_refused(postgres: Postgres, database: str) -> None:
    postgres.execute("postgres", f"CREATE DATABASE {database} ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StorageError, match="LATIN1, it must be UTF8"):
        await Storage(postgres.dsn(database)).open()
    postgres.execute("postgres", f"CREATE DATABASE {database}_old")
    postgres.execute(f"{database}_old", "CREATE TABLE asr_chunks (session_id text, chunk_index int)")
    with pytest.raises(StorageError, match=r"asr_chunks\.chunk_index bigint is integer"):
        await Storage(postgres.dsn(f"{database}_old")).open()


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("CREATE TABLE asr_sessions (id text PRIMARY KEY, note text)", "created_at|user_id|status"),
        (
            "ALTER TABLE asr_sessions ALTER COLUMN total_duration TYPE text",
            r"asr_sessions\.total_duration double precision is text",
        ),
    ],
)
@pytest.mark.gen_test(timeout=20)
async def test_tables_of_another_program_are_named_at_the_start(
    postgres: Postgres, database: str, table: str, named: str
) -> None:
    """Not minutes later, one failed answer after another; and nobody waits for the database to change."""
    postgres.execute("postgres", f"CREATE DATABASE {database}")
    if table.startswith("ALTER"):
        store = Storage(postgres.dsn(database))
        await store.open()
        await store.close()
    postgres.execute(database, table)
    with pytest.raises(StorageError, match=f"another version.*({named})") as caught:
        await Storage(postgres.dsn(database)).open()
    assert not isinstance(caught.value, StorageUnavailable)


@pytest.mark.gen_test(timeout=20)
async def test_running_database_recreated_is_repaired(store: Storage, postgres: Postgres, database: str) -> None:
    postgres.execute("postgres", f"DROP DATABASE {database} WITH (FORCE)")
    await store.open()
    assert await store.save([record()]) == []
    postgres.execute(database, "DROP TABLE asr_segments, asr_chunks, asr_sessions")
    with pytest.raises(StorageUnavailable, match="asr_sessions"):  # nobody is buried for a missing table
        await store.save([record()])
    assert await store.save([record()]) == []
    assert await store.known("a")


@pytest.mark.parametrize("dsn", ["not a dsn s3cret", "postgresql://u:s3cret/x@h/db", "postgresql://u:p@s3cret@h/db"])
def test_bad_address_is_refused_without_its_password(dsn: str) -> None:
    with pytest.raises(StorageError) as caught:
        Storage(dsn)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_schema_is_taken_from_the_package_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(module.__file__).parents[2] / "schema.sql"
    monkeypatch.setattr("asrserver.storage.schema.resources.files", lambda package: tmp_path)
    assert server_module.schema_sql() == root.read_text("utf-8")
    (tmp_path / "schema.sql").write_text("SELECT 1")
    assert server_module.schema_sql() == "SELECT 1"
