"""Large chunks in a real Redis: in parts, whole or not at all, once, and in nobody's way."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from typing import Any

import pytest
import redis

from asrserver.broker import audio_scripts, keys
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.large_chunks import PART_BYTES
from asrserver.broker.replies import Entry
from asrserver.broker.worker_side import WorkerBroker
from asrserver.inference.inbox import Inbox
from tests.broker.support import Make, append, drop_connections, ids, opened
from tests.waiting import until

DATA = os.urandom(2 * PART_BYTES).hex().encode()[: 3 * PART_BYTES + 5]


async def read(w: WorkerBroker, sid: str = "s") -> list[Entry]:
    """What a worker makes of the session's audio, read one entry at a time."""
    inbox = Inbox("0-1", lambda: None)
    while (found := (await w.read_audio({sid: inbox.cursor}, 1)).get(sid)) is not None:
        inbox.put(found)
    return [inbox.first, *inbox.following(100)]


@pytest.mark.gen_test
async def test_a_large_chunk_is_freed_when_redis_has_it(g: GatewayBroker) -> None:
    """And not when garbage is collected next: that took minutes, and gateways grew by hundreds of megabytes."""
    await opened(g)
    data = os.urandom(2 * PART_BYTES + 1)
    before = sys.getrefcount(data)
    gc.disable()
    try:
        done = asyncio.get_running_loop().create_future()
        g.append("s", 0, None, [data], False, done.set_result)
        assert await done is None
        await asyncio.sleep(0)
        assert sys.getrefcount(data) == before
    finally:
        gc.enable()


@pytest.mark.gen_test
async def test_what_follows_a_large_chunk_in_its_session_waits_and_others_do_not(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    await opened(g)
    await opened(g, "other", "o")
    answers: list[Any] = []

    def send(sid: str, index: int, data: bytes) -> None:
        before = index - 1 if index else None
        g.append(sid, index, before, [data], False, lambda error: answers.append((sid, index, error)))

    for index, data in enumerate((b"a", DATA, b"b", DATA[:-1], b"c")):
        send("s", index, data)
    flushed = g.flush_session("s", 1, 4)
    ended = asyncio.ensure_future(g.end_session("s", "done", time.time() + 60, last=4))
    assert g.bytes_on_their_way > 3 * PART_BYTES
    send("other", 0, b"x")
    assert await ended
    assert await flushed == 1
    assert g.bytes_on_their_way == 0
    assert answers.index(("other", 0, None)) < answers.index(("s", 1, None))
    assert [answer for answer in answers if answer[0] == "s"] == [("s", index, None) for index in range(5)]
    found = await read(w)
    assert [(entry.id, entry.data) for entry in found[:5]] == [
        ("1-0", b"a"),
        ("2-0", DATA),
        ("3-0", b"b"),
        ("4-0", DATA[:-1]),
        ("5-0", b"c"),
    ]
    assert [(entry.flush, entry.status) for entry in found[5:]] == [(1, None), (0, "done")]
    assert ids(db, keys.audio_key("s"))[:6] == ["0-1", "1-0", "1-1", "1-2", "1-3", "2-0"]
    assert not db.hexists(keys.session_key("s"), "part")


@pytest.mark.gen_test
async def test_other_options_are_for_what_follows_a_large_chunk(g: GatewayBroker, db: redis.Redis) -> None:
    await opened(g)
    appended = asyncio.ensure_future(append(g, 0, DATA))
    await asyncio.sleep(0)
    await g.change_options("s", "{}")
    assert await appended is None
    assert ids(db, keys.audio_key("s"))[-2:] == ["1-0", "1-1"]


@pytest.mark.gen_test(timeout=30)
async def test_no_part_is_there_twice_whatever_replies_are_lost(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    await opened(g)
    stop = False

    async def cut() -> None:
        while not stop:
            drop_connections(db)
            await asyncio.sleep(0.015)

    cutting = asyncio.create_task(cut())
    for index in range(4):
        assert await append(g, index, DATA) is None
    stop = True
    await cutting
    assert [entry.data for entry in await read(w)] == [DATA] * 4
    assert db.xlen(keys.audio_key("s")) == 17


@pytest.mark.gen_test
@pytest.mark.parametrize("parts", [1, 3])
async def test_a_chunk_that_was_cut_off_is_sent_again_by_another_gateway(
    g: GatewayBroker, w: WorkerBroker, make_late: Make, monkeypatch: pytest.MonkeyPatch, db: redis.Redis, parts: int
) -> None:
    """The client resumes there; what the first one still sends is refused. No reader sees the parts of its attempt."""
    other = make_late("other")
    await opened(g)
    assert await append(g, 0) is None
    answered: list[Exception | None] = []
    call, held = g.pipeline.call, []

    def held_back(callback: Any, *command: Any, size: int = 0) -> None:
        if len(command) > 5 and db.xlen(keys.audio_key("s")) == 2 + parts:
            held.append((callback, command))
        else:
            call(callback, *command, size=size)

    monkeypatch.setattr(g.pipeline, "call", held_back)
    g.append("s", 1, 0, [DATA], False, answered.append)
    await until(lambda: held)
    monkeypatch.undo()
    assert await other.resume_session("s", time.time() + 60, "") is not None
    again = DATA[::-1]
    assert await append(other, 1, again) is None
    call(held[0][0], *held[0][1])
    await until(lambda: answered)
    assert str(answered[0]) == "the session was resumed elsewhere"
    assert await append(other, 2) is None
    assert [entry.data for entry in await read(w)] == [b"x", again, b"x"]


@pytest.mark.gen_test
async def test_a_chunk_of_which_a_part_was_refused_is_not_there(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(g)
    monkeypatch.setattr(audio_scripts, "APPEND_LAST_PART", "return redis.error_reply('refused')")
    error = await append(g, 0, DATA)
    assert "refused" in str(error)
    assert g.bytes_on_their_way == 0
    monkeypatch.undo()
    assert await append(g, 0, b"small") is None
    assert [entry.data for entry in await read(w)] == [b"small"]
