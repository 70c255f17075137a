"""Heartbeats, queue statistics and end notifications in a real Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from asrserver.broker import keys
from asrserver.broker.connection import HEARTBEAT_TTL
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.worker_side import WorkerBroker
from tests.broker.support import opened
from tests.waiting import until


@pytest.mark.gen_test
async def test_heartbeats_come_by_name_and_go_with_their_writer(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis
) -> None:
    for broker in (w, v):
        broker.heartbeat({"backlog": 1.5})
    g.heartbeat({})
    await asyncio.gather(w.pipeline.drain(), v.pipeline.drain(), g.pipeline.drain())
    found = await g.status.heartbeats("worker")
    assert [(state["name"], state["backlog"]) for state in found] == [("v", 1.5), ("w", 1.5)]
    assert [state["name"] for state in await w.status.heartbeats("gateway")] == ["g"]
    assert 0 < db.pttl("worker:w:heartbeat") <= HEARTBEAT_TTL * 1000
    await w.deregister()
    assert [state["name"] for state in await g.status.heartbeats("worker")] == ["v"]
    assert await g.status.fullness() > 0


@pytest.mark.gen_test
async def test_the_queue_in_numbers(g: GatewayBroker, w: WorkerBroker) -> None:
    assert await g.status.queue() == {"waiting": 0, "processing": 0, "dead": 0}
    await opened(g, "one")
    await opened(g, "two")
    await w.claim(None, 1, 0)
    await w.dead_letter("one", "1-0", "because")
    assert await g.status.queue() == {"waiting": 1, "processing": 1, "dead": 1}


@pytest.mark.gen_test
async def test_workers_hear_of_a_session_that_ends_or_is_flushed_and_once(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    heard: list[str] = []
    listening = asyncio.ensure_future(
        w.listen_for_ends(heard.append, lambda sid: heard.append(f"flush {sid}"), lambda: heard.append("released"))
    )
    await until(lambda: db.pubsub_numsub(keys.ENDED) == [(keys.ENDED, 1)])
    await opened(g)
    for _ in range(2):  # its reply was lost
        assert await g.flush_session("s", 1, None) == 1
    assert await g.flush_session("s", 2, None) == 1
    for _ in range(2):
        assert await g.end_session("s", "done", time.time() + 60)
    assert await g.flush_session("s", 3, None) == 0
    await w.claim(None, 1, 0)
    assert await w.release() == 1
    assert await w.release([]) == 1
    db.publish(keys.ENDED, '{"session_id": "the last"}')
    await until(lambda: heard[-1:] == ["the last"])
    assert heard == ["flush s", "flush s", "s", "released", "released", "the last"]
    entries = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert [(entry.id, entry.flush) for entry in entries] == [("0-2", 1), ("0-3", 2), ("0-4", 0)]
    listening.cancel()
