"""Chunks that wait for each other and share an entry."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest
import redis

from asrserver.broker import batching, keys
from asrserver.broker.batching import FREE_RATE, SESSION_RATE, ChunkBatcher
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.worker_side import WorkerBroker
from asrserver.process.coalescing import LingerPolicy
from tests.broker.support import drop_connections, ids, opened
from tests.waiting import until


@pytest.fixture
def busy(g: GatewayBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as if so many chunks came that those of one session wait for each other."""
    monkeypatch.setattr(g._batcher, "_linger", LingerPolicy(-1e9, batching.DELAY_PER_RATE, batching.MAX_DELAY_SECONDS))


async def append(g: GatewayBroker, sid: str, chunks: dict[int, bytes], joins: bool = True) -> dict[int, Any]:
    """Append chunks, each after the one before it; the returned answers are filled in later."""
    answers: dict[int, Any] = {}
    before = None
    for index, data in chunks.items():
        g.append(sid, index, before, [data], joins, lambda error, index=index: answers.setdefault(index, error))  # type: ignore[misc]
        before = index
    return answers


@pytest.mark.gen_test
async def test_where_many_chunks_come_those_of_a_session_share_an_entry(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis, busy: None
) -> None:
    """The first waits for no other. Each chunk is acknowledged, and only when Redis has it."""
    await opened(g)
    answers = await append(g, "s", {4: b"a", 5: b"bc", 7: b"d", 8: b"e"})
    await until(lambda: len(answers) == 4)
    assert answers == dict.fromkeys((4, 5, 7, 8))
    found = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert [(entry.id, entry.data, entry.chunks) for entry in found] == [("5-0", b"a", 1), ("9-0", b"bcde", 3)]
    assert (db.hget(keys.session_key("s"), "first"), db.hget(keys.session_key("s"), "last")) == ("4", "8")
    assert g.bytes_on_their_way == 0


@pytest.mark.gen_test
async def test_chunks_with_borders_share_no_entry(g: GatewayBroker, db: redis.Redis, busy: None) -> None:
    await opened(g)
    answers = await append(g, "s", {0: b"a", 1: b"b", 2: b"c"}, joins=False)
    await until(lambda: len(answers) == 3)
    assert ids(db, keys.audio_key("s")) == ["0-1", "1-0", "2-0", "3-0"]


@pytest.mark.gen_test
@pytest.mark.parametrize("then", ["end", "resume", "close", "fill"])
async def test_what_waits_goes_before_what_follows_it(g: GatewayBroker, w: WorkerBroker, busy: None, then: str) -> None:
    """Waiting chunks are sent before the end, a resume elsewhere or the gateway's stop, and at a full second of
    audio."""
    await opened(g)
    answers = await append(g, "s", {0: b"a", 1: b"b", 2: b"c" * (batching.MAX_ENTRY_BYTES if then == "fill" else 1)})
    if then == "end":
        assert await g.end_session("s", "done", time.time() + 60)
    elif then == "resume":
        assert await g.resume_session("s", time.time() + 60, "") is not None
    elif then == "close":
        await g.close()
    else:
        assert g.bytes_on_their_way == g.pipeline.bytes > batching.MAX_ENTRY_BYTES
        await until(lambda: len(answers) == 3)
    assert answers == dict.fromkeys((0, 1, 2))
    found = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert [entry.chunks for entry in found if entry.data is not None] == [1, 2]


@pytest.mark.gen_test
async def test_what_waits_to_be_joined_is_bounded(
    g: GatewayBroker, busy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk that waited longest is sent; chunks that wait by choice stop no connection from being read."""
    monkeypatch.setattr(batching, "MAX_WAITING_BYTES", 10)
    for sid in ("a", "b"):
        await opened(g, sid)
        await append(g, sid, {0: b"first"})
    answers: dict[str, Exception | None] = {}
    for sid, before, data in (("a", 0, b"12345"), ("b", 0, b"123456"), ("b", 1, b"78901")):
        g.append(sid, before + 1, before, [data], True, partial(answers.__setitem__, sid))
        assert g._batcher.bytes <= 10
    assert g.bytes_on_their_way > 0
    await until(lambda: len(answers) == 2)
    assert answers == {"a": None, "b": None}
    assert g.bytes_on_their_way == g._batcher.bytes == 0


@pytest.mark.gen_test
async def test_a_shared_entry_that_is_refused_is_refused_for_each(
    g: GatewayBroker, db: redis.Redis, busy: None
) -> None:
    await opened(g)
    db.hset(keys.session_key("s"), "gateway", "another")
    answers = await append(g, "s", {0: b"a", 1: b"b", 2: b"c"})
    await until(lambda: len(answers) == 3)
    assert [error.code for error in answers.values()] == ["session_moved"] * 3


@pytest.mark.gen_test
async def test_a_shared_entry_sent_again_is_there_once(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis, busy: None
) -> None:
    """Its reply was lost with the connection."""
    await opened(g)
    answers: dict[int, Any] = {}
    for index in range(1000):
        before = index - 1 if index else None
        g.append("s", index, before, [b"x" * 900], True, lambda error, index=index: answers.setdefault(index, error))  # type: ignore[misc]
        if index % 200 == 50:
            await asyncio.sleep(0)
            drop_connections(db)
    await until(lambda: len(answers) == 1000)
    assert set(answers.values()) == {None}
    entries = (await w.read_audio({"s": "0-1"}, 1000))["s"]
    assert sum(entry.chunks for entry in entries) == 1000
    assert sum(len(entry.data or b"") for entry in entries) == 900_000
    assert len(entries) < 100


@pytest.mark.gen_test
@pytest.mark.parametrize("sessions", [5, 2 * FREE_RATE // SESSION_RATE])
async def test_chunks_wait_for_others_because_of_many_sessions_not_of_a_few_that_flood(
    monkeypatch: pytest.MonkeyPatch, sessions: int
) -> None:
    """Five that send as many as sixty do: another's chunk goes at once."""
    now, sent = [1000.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    batcher = ChunkBatcher(lambda sid, _batch: sent.append(sid))

    def add(sid: str, index: int, joins: bool) -> None:
        batcher.add(sid, index, index - 1 if index else None, [b"x"], joins, lambda _error: None)

    add("other", 0, joins=True)
    each = 2 * FREE_RATE // sessions
    for index in range(2 * each):  # two seconds
        now[0] += 1 / each
        for number in range(sessions):
            add(f"s{number}", index, joins=False)
    sent.clear()
    add("other", 1, joins=True)
    assert sent == (["other"] if sessions == 5 else [])
    batcher.flush_all()
