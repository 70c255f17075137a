"""Leases and the fence in a real Redis: who owns a session, and what a replaced owner can do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import redis

from asrserver.broker import keys
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import LeaseRenewer, WorkerJanitor
from asrserver.broker.replies import Task
from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import Unavailable
from asrserver.protocol import codec
from asrserver.protocol.events import Partial, Progress
from tests.broker.support import append, event, ids, opened, taken
from tests.events import segment
from tests.waiting import until


@pytest.mark.gen_test
async def test_what_gave_no_event_is_covered_too(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis
) -> None:
    """The audio is trimmed, the next owner gets the resume point, and no event is added."""
    await opened(g)
    for index in range(4):
        await append(g, index)
    claim = await taken(w)
    assert await w.append_event(claim, event(claim, 1, 1), "1-0", {"state": "one"})
    assert ids(db, keys.audio_key("s")) == ["2-0", "3-0", "4-0"]
    assert await w.checkpoint(claim, "3-0", 0.0, {"state": "two"})
    assert ids(db, keys.audio_key("s")) == ["4-0"]
    assert await w.checkpoint(claim, "3-0", 0.0, {"state": "two"})  # the reply was lost
    new = await taken(v, lease=0)
    assert new.fields["state"] == "two"
    assert [found.seq for found in new.events] == [1]


@pytest.mark.gen_test
async def test_a_guess_is_published_and_stored_nowhere(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    await opened(g)
    claim = await taken(w)
    listener = db.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(keys.results_channel("g"))
    listener.get_message(timeout=5)  # the subscription's own
    before = db.xlen(keys.events_key("s"))
    partial = Partial(session_id="s", start=0.0, end=1.0, text="a", stable="", language="en", follows=0)
    w.publish(claim, partial)
    await w.pipeline.drain()
    published = listener.get_message(timeout=5)
    assert published is not None
    assert codec.decode_published(published["data"]) == partial
    assert db.xlen(keys.events_key("s")) == before
    listener.close()


@pytest.mark.gen_test
async def test_an_owner_that_was_replaced_can_do_nothing(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis
) -> None:
    """Its events are refused, nothing is published or trimmed, and the task stays with the new owner."""
    await opened(g)
    await append(g, 0)
    old = await taken(w)
    assert await w.append_event(old, event(old, 1, 1), "0-1")
    new = await taken(v, lease=0)
    assert new.epoch > old.epoch
    assert [found.seq for found in new.events] == [1]
    listener = db.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(keys.results_channel("g"))
    listener.get_message(timeout=5)  # the subscription's own
    assert not await w.append_event(old, event(old, 2, 2, "final"), "1-0", {"state": "old"})
    assert not await w.checkpoint(old, "1-0", 0.0, {"state": "old"})
    w.publish(old, Progress(session_id="s", taken=1, total=1.0))
    await w.pipeline.drain()
    assert not db.hexists(keys.session_key("s"), "state")
    assert ids(db, keys.audio_key("s")) == ["1-0"]
    assert db.xlen(keys.TASKS) == 1
    assert await v.append_event(new, event(new, 1, 2, "final"), "1-0")
    published = listener.get_message(timeout=5)
    assert published is not None
    assert orjson.loads(published["data"])["id"] == f"{new.epoch}-1"
    listener.close()
    assert ids(db, keys.audio_key("s")) == []
    assert db.xlen(keys.TASKS) == 0


@pytest.mark.gen_test
async def test_an_event_sent_again_after_a_lost_reply_is_accepted_once(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker
) -> None:
    """It is no longer accepted when a new owner has the session."""
    await opened(g)
    claim = await taken(w)
    assert await w.append_event(claim, event(claim, 1, 1), "0-1")
    assert await w.append_event(claim, event(claim, 1, 1), "0-1")
    assert [found.seq for found in await g.read_events("s")] == [1]
    await taken(v, lease=0)
    assert not await w.append_event(claim, event(claim, 1, 1), "0-1")


@pytest.mark.gen_test
async def test_the_next_owner_knows_what_was_said_though_its_events_are_forgotten(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis
) -> None:
    """The texts are kept separately, each once, and are deleted with the session."""
    await opened(g)
    claim = await taken(w)
    for seq in range(1, 6):
        segments = [segment(text=f"{seq}{letter}") for letter in "ab"[: seq % 3]]
        assert await w.append_event(claim, event(claim, seq, seq, segments=segments), "0-1")
    assert await w.append_event(claim, event(claim, 5, 5, segments=segments), "0-1")  # the reply was lost
    events = await g.read_events("s")
    await g.trim_events("s", events[2].id)
    new = await taken(v, lease=0)
    assert [found.seq for found in new.events] == [4, 5]
    assert new.transcript == [(text, "en") for text in ("1a", "2a", "2b", "4a", "5a", "5b")]
    assert new.epoch == claim.epoch + 1
    assert await v.append_event(new, event(new, 1, 6, "final"), "0-1")
    await g.close_session("s", 100)
    assert {key for key in db.scan_iter("asr_*{s}") if db.ttl(key) > 0} == {
        keys.session_key("s"), keys.events_key("s"), keys.transcript_key("s"), keys.audio_key("s")
    }  # fmt: skip


@pytest.mark.gen_test
async def test_events_past_an_id(g: GatewayBroker, w: WorkerBroker) -> None:
    await opened(g)
    claim = await taken(w)
    for seq in (1, 2, 3):
        await w.append_event(claim, event(claim, seq, seq), "0-1")
    events = await g.read_events("s")
    assert [found.seq for found in await g.read_events("s", events[0].id)] == [2, 3]
    fields, later = (await g.read_sessions({"s": events[1].id, "gone": "0-1"}))["s"]
    assert fields["gateway"] == "g"
    assert [found.seq for found in later] == [3]


@pytest.mark.gen_test
async def test_a_worker_that_slept_does_not_steal_its_session_back(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, redis_url: str, db: redis.Redis
) -> None:
    await opened(g)
    task = (await taken(w)).task
    renewer = LeaseRenewer(redis_url, "w")
    assert renewer.renew([task]) == {task}
    await taken(v, lease=0)
    assert renewer.renew([task]) == set()
    assert renewer.renew([]) == set()
    renewer.close()
    [pending] = db.xpending_range(keys.TASKS, keys.GROUP, "-", "+", 10)
    assert pending["consumer"] == "v"


@pytest.mark.gen_test
async def test_a_session_that_is_given_up_can_be_claimed_at_once(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker
) -> None:
    """A worker gives up one task or all; others are not affected."""
    await opened(g, "one")
    await opened(g, "two")
    tasks = {sid: task for task, sid in await w.claim(None, 10, 0)}
    assert await v.claim(30.0, 10, 0) == []
    assert await w.release([tasks["one"]]) == 1
    assert await v.claim(30.0, 10, 0) == [(tasks["one"], "one")]
    assert await w.release() == 1
    assert await v.claim(30.0, 10, 0) == [(tasks["two"], "two")]


@pytest.mark.gen_test
async def test_a_dead_worker_s_sessions_are_found_behind_any_number_of_living_ones(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, redis_url: str
) -> None:
    """XAUTOCLAIM from the start looks at ten times its count and would never reach them."""
    for number in range(60):
        await opened(g, f"living{number}")
    assert len(await v.claim(None, 100, 0)) == 60
    await opened(g, "orphan")
    assert len(await w.claim(None, 10, 0)) == 1
    janitor = WorkerJanitor(redis_url)
    assert janitor.release("w") == 1
    janitor.close()
    assert [sid for _, sid in await v.claim(30.0, 4, 0)] == ["orphan"]


@pytest.mark.gen_test
@pytest.mark.parametrize("how", ["finished", "vanished"])
async def test_there_is_nothing_to_do_for_a_session_that_is_over(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis, how: str
) -> None:
    """Its task is acknowledged and removed, and none of its keys is created again."""
    await opened(g)
    claim = await taken(w)
    if how == "vanished":
        db.delete(*(key("s") for key in (keys.session_key, keys.audio_key, keys.events_key)))
    else:
        final = event(claim, 1, 1, "final")
        entry: dict[Any, Any] = {"seq": "1", "data": codec.encode(final)}
        db.xadd(keys.events_key("s"), entry, id=final.id)  # final, but the worker died before its XACK
    [(task, sid)] = await v.claim(0.0, 10, 0)
    assert await v.acquire(task, sid) is None
    assert db.xlen(keys.TASKS) == 0
    assert db.xpending(keys.TASKS, keys.GROUP)["pending"] == 0
    assert db.exists(keys.session_key("s")) == (how == "finished")


@pytest.mark.gen_test
async def test_a_worker_waits_in_redis_for_a_session(g: GatewayBroker, w: WorkerBroker) -> None:
    """The wait does not delay its other commands."""
    waiting = asyncio.ensure_future(w.claim(1.0, 4, 8))
    await until(lambda: not waiting.done())
    assert await w.ping() < 8
    await opened(g)
    assert [sid for _, sid in await asyncio.wait_for(waiting, 5)] == ["s"]


@pytest.mark.gen_test
async def test_strikes_and_retirement(g: GatewayBroker, w: WorkerBroker, redis_url: str, db: redis.Redis) -> None:
    """A strike belongs to an entry of a session; a consumer is deleted only when it has no pending entry."""
    await opened(g)
    claim = await taken(w)
    janitor = WorkerJanitor(redis_url)
    assert [janitor.strike("s", "1-0") for _ in range(2)] == [1, 2]
    assert janitor.strike("gone", "1-0") == 0
    janitor.retire("w")
    assert db.xpending(keys.TASKS, keys.GROUP)["pending"] == 1
    again = await w.acquire(claim.task, "s")
    assert again is not None
    assert again.fields["strike:1-0"] == "2"
    await w.append_event(again, event(again, 1, 1, "final"), "0-1")
    janitor.retire("w")
    assert db.xinfo_consumers(keys.TASKS, keys.GROUP) == []
    janitor.close()


def test_blocking_clients_say_that_redis_is_away() -> None:
    """They raise the broker's error: the lease thread and the supervisor need not know redis-py."""
    url = "redis://127.0.0.1:1"
    renewer, janitor = LeaseRenewer(url, "w"), WorkerJanitor(url)
    calls: list[Callable[[], object]] = [
        lambda: renewer.renew([Task(keys.TASKS, "1-0")]),
        lambda: janitor.release("w"),
        lambda: janitor.retire("w"),
        lambda: janitor.strike("s", "1-0"),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            call()
    renewer.close()
    janitor.close()
