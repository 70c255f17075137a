"""A Redis that is not as it was left: emptied while processes run, or used by another program under the same names."""

from __future__ import annotations

import asyncio
import logging

import pytest
import redis

from asrserver.broker import keys
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
