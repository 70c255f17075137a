"""PostgreSQL is absent, killed, slow or full."""

from __future__ import annotations

import asyncio
import contextlib

import aiopg
import psycopg2
import pytest
import tornado.ioloop

from asrserver.storage import pool as pool_module
from asrserver.storage import schema as server_module
from asrserver.storage.errors import StorageUnavailable
from asrserver.storage.queries import Filter
from asrserver.storage.reading import MAX_WAITING, READER_CONNECTIONS
from asrserver.storage.storage import Storage
from tests.storage.postgres import Postgres, backends, locked
from tests.storage.records import record
from tests.waiting import until


@pytest.mark.parametrize("host", ["tcp", "unix"])
@pytest.mark.gen_test(timeout=60)
async def test_killed_and_started_again(postgres: Postgres, database: str, host: str) -> None:
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
async def test_refused_at_start_then_opened(postgres: Postgres, database: str) -> None:
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
async def test_dead_poll_handles_of_uvloop_are_outlived(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiopg #909: PostgreSQL disappears between our check and aiopg's connect()."""
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
async def test_killed_backends_are_replaced(store: Storage, postgres: Postgres, database: str) -> None:
    for _ in range(3):
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        kill = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"
        postgres.execute(database, kill)
        with contextlib.suppress(StorageUnavailable):  # the one call that may meet the dead connection
            await store.ping()
        assert await store.save([record()]) == []
    assert postgres.execute(database, f"SELECT count(*) FROM pg_stat_activity WHERE {others}") == [(2,)]


@pytest.mark.gen_test(timeout=30)
async def test_statement_timeout_is_an_error_and_no_cancellation(
    io_loop: tornado.ioloop.IOLoop, postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SERVER_OPTIONS", server_module.SERVER_OPTIONS.replace("=4000", "=200"))
    store = Storage(postgres.dsn(database), pool_size=1)
    await store.open()
    with locked(postgres, database):
        for call in (store.save([record()]), store.known("a"), store.history(1), store.delete("a")):
            with pytest.raises(StorageUnavailable, match="statement timeout"):
                await call
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert await store.save([record()]) == []
    await store.close()


@pytest.mark.gen_test(timeout=30)
async def test_cancellation_is_a_cancellation_and_leaks_no_connection(
    store: Storage, postgres: Postgres, database: str
) -> None:
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
async def test_full_pool_and_slow_answer_are_unavailable(
    store: Storage, postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "STATEMENT_TIMEOUT", 0.3)
    monkeypatch.setattr(pool_module, "PING_TIMEOUT", 0.1)
    await store.open()
    with locked(postgres, database):
        calls = [store.known("a") for _ in range(6)]
        results = await asyncio.gather(*calls, store.ping(), return_exceptions=True)
    assert {type(each) for each in results} == {StorageUnavailable}
    assert all(str(each) for each in results)
    assert await store.history(1) == (0, [], None)


@pytest.mark.gen_test(timeout=30)
async def test_slow_readers_hinder_neither_others_nor_storing(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key has what it may; the next request of it waits, and has an end; of those that wait there is a number."""
    monkeypatch.setattr(pool_module, "STATEMENT_TIMEOUT", 0.3)
    slow = asyncio.Event()

    async def read_slowly() -> None:
        async with store._reading.lend("a"):
            await slow.wait()

    reading = [asyncio.create_task(read_slowly()) for _ in range(READER_CONNECTIONS)]
    await until(lambda: store._reading._engine is not None and store._reading._engine.freesize == 1)
    waiting = [asyncio.create_task(store.history(1, Filter(owner="a"))) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(StorageUnavailable, match="too many requests"):
        await store.history(1, Filter(owner="a"))
    assert await store.history(1, Filter(owner="b")) == (0, [], None)
    assert await store.save([record()]) == []
    assert await store.ping() < 1
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {StorageUnavailable}
    slow.set()
    await asyncio.gather(*reading)
    assert (await store.history(1, Filter(owner="a"))).total == 0
    assert not store._reading._turns


@pytest.mark.gen_test(timeout=30)
async def test_closed_storage_is_unavailable_until_opened(store: Storage, postgres: Postgres, database: str) -> None:
    await store.close()
    await until(lambda: backends(postgres, database) == [])  # they go when they have read our goodbye
    with pytest.raises(StorageUnavailable, match="closed"):
        await store.ping()
    await store.open()
    assert await store.ping() < 2
