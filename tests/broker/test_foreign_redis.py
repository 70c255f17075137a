"""A Redis that is not as it was left: emptied while processes run, or used by another program under the same names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from asrserver.broker import keys
from asrserver.broker.connection import DAMAGED_TTL
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import WorkerJanitor
from asrserver.broker.worker_side import WorkerBroker
from tests.broker.support import opened, taken

pytestmark = pytest.mark.gen_test


async def test_an_emptied_redis_gets_its_group_again(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    """Workers that were running claim what is started now; they died of NOGROUP."""
    await opened(g)
    db.flushall()
    await opened(g)
    assert await g.status.queue() == {"waiting": 1, "processing": 0, "dead": 0}
    assert await w.claim(10.0, 10, 0) == []
    assert (await taken(w)).sid == "s"
    assert await g.status.queue() == {"waiting": 0, "processing": 1, "dead": 0}


async def test_a_worker_that_waits_notices_an_emptied_redis(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    waiting = asyncio.ensure_future(w.claim(None, 10, 5))
    while not db.info("clients")["blocked_clients"]:
        await asyncio.sleep(0.001)
    db.flushall()
    assert await waiting == []
    await opened(g)
    assert (await taken(w)).sid == "s"


async def test_heartbeats_make_the_group_again(g: GatewayBroker, db: redis.Redis) -> None:
    db.flushall()
    g.heartbeat({})
    await g.pipeline.drain()
    assert [group["name"] for group in db.xinfo_groups(keys.TASKS)] == [keys.GROUP]


async def test_leases_in_an_emptied_redis_are_gone(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis, redis_url: str
) -> None:
    await opened(g)
    claim = await taken(w)
    db.flushall()
    assert await w.release([claim.task]) == 0
    janitor = WorkerJanitor(redis_url)
    assert janitor.release("w") == 0
    janitor.retire("w")
    janitor.close()


@pytest.mark.parametrize("foreign", [{"job": "1"}, {"sid": b"\xff"}, {"sid": ""}])
async def test_a_foreign_entry_is_removed_and_said(
    g: GatewayBroker,
    w: WorkerBroker,
    db: redis.Redis,
    foreign: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It killed every worker that claimed it, for ever; the sessions behind it are claimed."""
    db.xadd(keys.TASKS, foreign)  # type: ignore[arg-type]
    await opened(g)
    with caplog.at_level(logging.WARNING):
        assert (await taken(w)).sid == "s"
    assert "no session of this program" in caplog.text
    assert await g.status.queue() == {"waiting": 0, "processing": 1, "dead": 0}


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        (keys.session_key("s"), "charged", "much"),
        (keys.transcript_key("s"), "", "no JSON"),
        (keys.transcript_key("s"), "", "[1]"),
        (keys.audio_key("s"), None, "of another type"),
        (keys.transcript_key("s"), None, "of another type"),
    ],
)
async def test_a_session_with_damaged_keys_ends_no_worker(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis, key: str, field: str | None, value: str
) -> None:
    """It is given up: nobody claims it again, its gateway is told, an operator can look at it, and then it goes by
    itself."""
    await opened(g)
    if field is None:
        db.delete(key)
        db.set(key, value)
    elif field:
        db.hset(key, field, value)
    else:
        db.rpush(key, value)
    [(task, sid)] = await w.claim(10.0, 10, 0)
    claim = await w.acquire(task, sid)
    if key == keys.audio_key("s"):
        assert claim is not None
        assert await w.read_audio({"s": "0-0", "other": "0-0"}, 10) == {}
        assert not db.exists(key)
        return
    assert claim is None
    assert await g.status.queue() == {"waiting": 0, "processing": 0, "dead": 1}
    assert 0 < db.ttl(keys.session_key("s")) <= DAMAGED_TTL
    assert await g.refresh({"s": 1e12}) == {"s": "gone"}


@pytest.mark.parametrize("key", [keys.session_key("s"), keys.events_key("s")])
async def test_a_key_of_another_program_costs_one_session(g: GatewayBroker, db: redis.Redis, key: str) -> None:
    """The others of a gateway are stored and keep their deadlines."""
    for sid in ("s", "t"):
        await opened(g, sid)
    db.delete(key)
    db.set(key, "of another type")
    if key == keys.session_key("s"):
        assert await g.refresh({"s": 1e12, "t": 1e12}) == {"s": "gone"}
    found = await g.read_sessions({"s": "0-1", "t": "0-1"})
    assert found["s"] == ({}, [])
    assert found["t"][0]["gateway"] == "g"
    assert await g.refresh({"s": 1e12, "t": 1e12}) == {"s": "gone"}
    assert (db.zscore(keys.OPEN, "s"), db.zscore(keys.OPEN, "t")) == (None, 1e12)
    await g.close_session("s", 60)
    assert not await g.delete_session("s", "") or key == keys.events_key("s")


@pytest.mark.parametrize(
    ("key", "ask", "answer"),
    [
        (keys.events_key("s"), lambda g: g.resume_session("s", 1e12, "", last_seq=1), None),
        (keys.session_key("s"), lambda g: g.resume_session("s", 1e12, ""), None),
        (keys.audio_key("s"), lambda g: g.end_session("s", "done", 1e12), False),
        (keys.session_key("s"), lambda g: g.end_session("s", "done", 1e12), False),
        (keys.events_key("s"), lambda g: g.read_events("s"), []),
    ],
)
async def test_a_session_with_a_key_of_another_program_is_over(
    g: GatewayBroker, db: redis.Redis, key: str, ask: Callable[[GatewayBroker], Awaitable[Any]], answer: Any
) -> None:
    """Its gateway says so to its client; it tried the same for ever."""
    await opened(g)
    db.delete(key)
    db.set(key, "of another type")
    assert await ask(g) == answer
    assert await g.refresh({"s": 1e12}) == {"s": "gone"}
    assert db.xlen(keys.DEAD) == 1


async def test_a_foreign_heartbeat_is_passed_over(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    """It kept gateways from knowing which models are offered, and how full Redis is."""
    w.heartbeat({})
    await w.pipeline.drain()
    for number, value in enumerate((b"\xff", b"7", b"{}", b'{"name": 7}')):
        db.zadd(keys.alive_key("worker"), {f"{number}": g.clock.now()})
        db.set(keys.heartbeat_key("worker", f"{number}"), value)
    assert [state["name"] for state in await g.status.heartbeats("worker")] == ["w"]


async def test_strikes_of_a_session_with_a_key_of_another_program(db: redis.Redis, redis_url: str) -> None:
    """They are not counted, and keep nothing else from being done after a worker's death."""
    db.set(keys.session_key("s"), "of another type")
    db.hset(keys.session_key("t"), "strike:1-0", "many")
    janitor = WorkerJanitor(redis_url)
    assert (janitor.strike("s", "1-0"), janitor.strike("t", "1-0")) == (0, 0)
    janitor.close()


async def test_foreign_entries_among_audio_and_events_are_passed_over(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    await opened(g)
    await taken(w)
    db.xadd(keys.audio_key("s"), {"n": "x", "f": b"\xff", "p": "-", "at": "now", "s": b"\xff"})
    db.xadd(keys.events_key("s"), {"data": b"\xff"})
    db.xadd(keys.events_key("s"), {"data": "{}", "seq": "first"})
    db.hset(keys.session_key("s"), "what", b"\xff\xfe")
    entry = (await w.read_audio({"s": "0-0"}, 10))["s"][-1]
    assert (entry.data, entry.chunks, entry.flush, entry.received) == (None, 1, 0, None)
    fields, events = (await g.read_sessions({"s": "0-0"}))["s"]
    assert fields["what"] == "\ufffd\ufffd"
    assert events == []


async def test_a_foreign_message_is_no_session_s_end(
    w: WorkerBroker, db: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    listening = asyncio.ensure_future(w.listen_for_ends(ended.append, ended.append, lambda: None))
    while not db.pubsub_numsub(keys.ENDED)[0][1]:
        await asyncio.sleep(0.001)
    for message in ("", "[1]", "7", "{}", b"\xff", '{"session_id": "s"}'):
        db.publish(keys.ENDED, message)
    while "s" not in ended:
        await asyncio.sleep(0.001)
    listening.cancel()
    assert set(ended) == {"", "s"}
    assert "Traceback" not in caplog.text


async def test_an_id_of_which_another_program_has_keys_is_in_use(g: GatewayBroker, db: redis.Redis) -> None:
    db.xadd(keys.audio_key("s"), {"x": "y"}, id="99-0")
    assert not await g.open_session("s", "n", {"options": "{}"}, 1e12)
    db.set(keys.session_key("t"), "")
    assert not await g.open_session("t", "n", {"options": "{}"}, 1e12)
