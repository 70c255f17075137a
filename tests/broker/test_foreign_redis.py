"""A Redis that is not as it was left: emptied while processes run, or used by another program under the same names."""

from __future__ import annotations

import asyncio
import logging

import pytest
import redis

from asrserver.broker import keys
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import WorkerJanitor
from asrserver.broker.worker_side import DAMAGED_TTL, WorkerBroker
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
    """It is given up: nobody claims it again, an operator can look at it, and then it goes by itself."""
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
