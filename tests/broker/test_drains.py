"""Sessions that a worker hands over, and who asks it to."""

from __future__ import annotations

import asyncio

import pytest
import redis

from asrserver.broker.drains import DRAIN_TTL, drains
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.keys import GROUP, TASKS, drain_key
from asrserver.broker.lease import LeaseRenewer
from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import Unavailable
from tests.broker.support import event, opened, taken
from tests.shards import ShardServers

pytestmark = pytest.mark.gen_test


async def test_a_session_that_is_handed_over_stays_until_another_worker_has_taken_it(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, redis_url: str
) -> None:
    await opened(g, owner="a")
    claim = await taken(w)
    await w.hand_over([claim])
    assert await w.in_line([claim.task]) == {claim.task}
    renewer = LeaseRenewer(redis_url, "w")
    assert renewer.renew([claim.task]) == set()
    renewer.close()
    assert await w.append_event(claim, event(claim, 1, 1), "0-1")
    new = await taken(v)  # and not for its lease
    assert [found.seq for found in new.events] == [1]
    assert await w.in_line([claim.task]) == set()
    assert not await w.append_event(claim, event(claim, 2, 2), "0-1")
    assert await v.append_event(new, event(new, 1, 2, "final"), "0-1")
    await w.hand_over([claim])  # too late: nothing comes back
    assert await v.claim(None, 10, 0) == []


async def test_a_session_that_ends_while_it_stands_in_line_leaves_it(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis
) -> None:
    await opened(g)
    claim = await taken(w)
    await w.hand_over([claim])
    assert await w.append_event(claim, event(claim, 1, 1, "final"), "0-1")
    assert await w.in_line([claim.task]) == set()
    assert await v.claim(None, 10, 0) == []
    assert db.xlen(TASKS) == 0


async def test_a_session_in_line_is_not_as_old_as_it_is(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    """It has waited for a worker since it came there; else every drain of an old session would look like overload."""
    db.xgroup_create(TASKS, GROUP, "0", mkstream=True) if not db.exists(TASKS) else None
    db.xadd(TASKS, {"sid": "s", "key": "a"}, id="1000-0")
    assert await g.status.oldest_waiting() > 1e6
    [(task, _)] = await w.claim(None, 10, 0)
    assert await g.status.oldest_waiting() == 0
    db.xclaim(TASKS, GROUP, "waiting:a", 0, [task.id], idle=5000)
    assert 5 <= await g.status.oldest_waiting() < 1e5


async def test_others_are_told(g: GatewayBroker, w: WorkerBroker, v: WorkerBroker) -> None:
    told = asyncio.Event()
    listening = asyncio.ensure_future(v.listen_for_ends(lambda sid: None, lambda sid: None, told.set))
    await opened(g)
    claim = await taken(w)
    while not told.is_set():  # until the subscription stands
        await w.hand_over([claim])
        claim = await taken(w)
    listening.cancel()


async def test_a_drain_is_asked_for_and_undone(w: WorkerBroker, redis_url: str, db: redis.Redis) -> None:
    """It outlives its worker by DRAIN_TTL, and is renewed by it."""
    async with drains(redis_url) as asked:
        assert not await w.is_drained()
        await asked.ask(["w"])
        db.expire(drain_key("w"), 5)
        assert await w.is_drained()
        assert DRAIN_TTL - 60 < int(str(db.ttl(drain_key("w")))) <= DRAIN_TTL
        await asked.undo(["w"])
        assert not await w.is_drained()
        w.heartbeat({"sessions": 3})
        await w.pipeline.drain()
        assert [(found["name"], found["sessions"]) for found in await asked.workers()] == [("w", 3)]


async def test_a_shard_that_is_away_keeps_nobody_from_draining_the_others(
    shards: ShardServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an error, and nothing could be drained."""
    monkeypatch.setattr("asrserver.broker.drains.ANSWER_TIMEOUT", 0.5)
    shards.kill(1)
    workers = [WorkerBroker(server.url, "w") for number, server in enumerate(shards.servers) if number != 1]
    for worker in workers:
        await worker.open()
        worker.heartbeat({"sessions": 1})
        await worker.pipeline.drain()
    async with drains(shards.url) as asked:
        assert asked.away == [shards.names()[1]]
        assert [found["name"] for found in await asked.workers()] == ["w"]
        await asked.ask(["w"])
    assert [await worker.is_drained() for worker in workers] == [True, True]
    for worker in workers:
        await worker.close()


async def test_a_redis_that_is_away_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrserver.broker.drains.ANSWER_TIMEOUT", 0.2)
    with pytest.raises(Unavailable):
        async with drains("redis://127.0.0.1:1"):
            pass
