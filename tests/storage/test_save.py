"""Saving, in a real PostgreSQL, on uvloop."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from typing import Any

import aiopg
import psycopg2
import pytest
from aiopg.sa import SAConnection
from aiopg.sa.result import ResultProxy
from aiopg.sa.transaction import Transaction

from asrserver.storage import storage as module
from asrserver.storage.storage import Storage
from asrserver.storage.tables import Record
from tests.storage.postgres import Postgres
from tests.storage.records import DONE, record, stored


@pytest.mark.gen_test(timeout=20)
async def test_save_twice_is_save_once(store: Storage) -> None:
    for _ in range(2):
        assert await store.save([record(**DONE)]) == []
    found = await stored(store, "a")
    assert len(found["chunks"]) == len(found["segments"]) == 2
    assert (found["status"], found["text"], found["duration"]) == ("done", "all", 8.5)
    assert await store.save([]) == []


@pytest.mark.gen_test(timeout=20)
async def test_nothing_of_a_statement_waits_for_the_search_for_cycles(store: Storage, acyclic: None) -> None:
    """Gateways collect garbage cycles rarely: memory that only this frees would make them grow."""
    kinds = (aiopg.Cursor, psycopg2.extensions.cursor, SAConnection, Transaction, ResultProxy)
    others = [id(one) for one in gc.get_objects() if isinstance(one, kinds)]
    for _ in range(10):
        await store.delete("b", pending=True)
        await store.save([record(**DONE)])
        assert await store.known("a")
        assert (await stored(store, "a"))["text"] == "all"
        assert (await store.history(1)).total == 1
    assert [one for one in gc.get_objects() if isinstance(one, kinds) and id(one) not in others] == []


@pytest.mark.gen_test(timeout=20)
async def test_missing_values_change_nothing(store: Storage) -> None:
    await store.save([record(user_id="me", language="en", created_at=1.6e9)])
    await store.save([Record({"id": "a", "user_id": None}, [{"chunk_index": 0, "recognised_at": 1.7e9}])])
    found = await stored(store, "a")
    assert (found["user_id"], found["language"]) == ("me", "en")
    assert found["created_at"] == "2020-09-13T12:26:40+00:00"
    assert found["chunks"][0]["text"] == "word0"
    assert found["chunks"][0]["recognised_at"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("final", ["done", "interrupted", "error"])
@pytest.mark.gen_test(timeout=20)
async def test_status_never_leaves_a_final_state_and_counts_never_shrink(store: Storage, final: str) -> None:
    await store.save([record(**{**DONE, "status": final})])
    before = await store.session("a")
    for status in ("recording", "done", "interrupted", "error"):
        later: dict[str, Any] = {"status": status, "final_text": "other", "completed_at": 1.8e9}
        await store.save([record(**later, chunk_count=1, total_duration=1)])
        assert await store.session("a") == before
    await store.save([record(chunk_count=7, total_duration=9)])
    after = await stored(store, "a")
    assert (after["status"], after["chunk_count"], after["duration"]) == (final, 7, 9.0)


@pytest.mark.gen_test(timeout=20)
async def test_same_session_and_chunk_twice_in_one_batch(store: Storage) -> None:
    again = record(status="recording", final_text="x")
    again.chunks += [{"chunk_index": 0, "text": "second"}, {"chunk_index": 0, "text": "last"}]
    assert await store.save([record(**DONE), again]) == []
    found = await stored(store, "a")
    assert (found["status"], found["text"]) == ("done", "all")
    assert [chunk["text"] for chunk in found["chunks"]] == ["last", "word1"]


@pytest.mark.gen_test(timeout=20)
async def test_what_postgresql_cannot_hold_is_replaced(store: Storage) -> None:
    dirty = record("n\x00", final_text="a\x00b\ud800c", total_duration=float("nan"))
    dirty.segments[0] |= {"words": [{"word": "\x00", "start": float("inf")}], "confidence": float("nan")}
    assert await store.save([dirty]) == []
    found = await stored(store, "n\x00")
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
async def test_bad_session_is_buried_alone_and_its_words_are_not_logged(
    store: Storage, caplog: pytest.LogCaptureFixture, bad: Record
) -> None:
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
async def test_big_batch_is_one_transaction(store: Storage, postgres: Postgres, database: str) -> None:
    batch = [record(f"s{n:03}", 10, **DONE) for n in range(500)]
    batch[0].segments[0]["words"] = [{"word": "quote'\"\\ % %s {} :rows", "start": 0.0, "end": 0.5}]
    assert await store.save(batch) == []
    rows = postgres.execute(database, "SELECT count(*), count(DISTINCT xmin::text) FROM asr_chunks")
    assert rows == [(5000, 1)]
    assert (await stored(store, "s000"))["segments"][0]["words"] == batch[0].segments[0]["words"]


@pytest.mark.gen_test(timeout=30)
async def test_two_gateways_write_the_same_sessions(store: Storage, postgres: Postgres, database: str) -> None:
    other = Storage(postgres.dsn(database), pool_size=2)
    batch = [record(f"s{n}", 5) for n in range(40)]
    await asyncio.gather(*(who.save(order) for who in (store, other) for order in (batch, batch[::-1]) * 3))
    assert (await store.history(1))[0] == 40
    await other.close()
