"""Reading and deleting, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg2
import pytest

from asrserver.storage import queries
from asrserver.storage.queries import Filter
from asrserver.storage.storage import Storage
from tests.storage.postgres import Postgres, backends
from tests.storage.records import DONE, record, stored
from tests.waiting import until


@pytest.mark.gen_test(timeout=20)
async def test_history_is_newest_first(store: Storage) -> None:
    await store.save([record(f"s{n}", created_at=1.7e9 + n // 2) for n in range(5)])
    total, records, _ = await store.history(3)
    assert total == 5
    assert [each["session_id"] for each in records] == ["s4", "s3", "s2"]
    assert records[0] == {
        "session_id": "s4", "user_id": None, "status": "recording", "text": "", "duration": 0.0,
        "chunk_count": 0, "language": None, "mode": None, "model": None, "error_code": None, "error_message": None,
        "audio_path": None, "created_at": "2023-11-14T22:13:22+00:00", "completed_at": None,
    }  # fmt: skip


@pytest.mark.gen_test(timeout=60)
async def test_a_page_has_a_bounded_size(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts come on more pages; of a search with several, the number of matches is not counted."""
    monkeypatch.setattr(queries, "PAGE_BYTES", 1000)
    queries.history.cache_clear()
    for number, size in enumerate((400, 2000, 400, 400, 400)):
        text = f"word {'x' * size}"
        await store.save([record(f"s{number}", created_at=1.7e9 + number, status="done", final_text=text)])
    for which in (Filter(), Filter(search="word")):
        pages: list[list[str]] = []
        cursor = None
        while not pages or cursor is not None:
            total, records, cursor = await store.history(10, which, cursor)
            assert total == (None if which.search else 5)
            pages.append([each["session_id"] for each in records])
        assert pages == [["s4", "s3"], ["s2"], ["s1"], ["s0"]]
    assert (await store.history(1, Filter(search="nothing"))).total == 0
    queries.history.cache_clear()


@pytest.mark.gen_test(timeout=20)
async def test_session_has_chunks_and_segments_in_order(store: Storage) -> None:
    one = record(**DONE, language="zh", created_at="2026-01-02T03:04:05+02:00")
    one.chunks.reverse()
    one.segments.reverse()
    await store.save([one])
    found = await stored(store, "a")
    assert found["created_at"] == "2026-01-02T01:04:05+00:00"
    assert found["chunks"][1] == {
        "chunk_index": 1, "text": "word1", "duration": 0.5, "language": None, "error_code": None,
        "error_message": None, "received_at": "2023-11-14T22:13:21+00:00", "recognised_at": None,
    }  # fmt: skip
    assert found["segments"][1] == {
        "number": 1, "chunk_index": None, "start": 1.0, "end": 2.0, "text": "word1", "language": None,
        "confidence": None, "words": None, "worker": "w", "channel": None,
    }  # fmt: skip
    assert await store.session("nobody") is None


@pytest.mark.gen_test(timeout=20)
async def test_deleted_session_stays_deleted(store: Storage, postgres: Postgres, database: str) -> None:
    await store.save([record("a"), record("b")])
    assert await store.delete("a")
    assert not await store.delete("a")
    assert await store.save([record("a", **DONE), record("b", **DONE)]) == []
    assert await store.session("a") is None
    assert (await stored(store, "b"))["status"] == "done"
    assert await store.known("a")
    assert postgres.execute(database, "SELECT DISTINCT session_id FROM asr_chunks") == [("b",)]


@pytest.mark.gen_test(timeout=20)
async def test_unknown_session_is_deleted_beforehand_only_when_told(store: Storage) -> None:
    assert not await store.delete("x")
    assert not await store.known("x")
    assert not await store.delete("x", pending=True)
    assert await store.known("x")
    await store.save([record("x")])
    assert await store.session("x") is None


@pytest.mark.gen_test(timeout=30)
async def test_delete_during_save_does_not_come_back(store: Storage, postgres: Postgres, database: str) -> None:
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
