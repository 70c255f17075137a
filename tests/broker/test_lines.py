"""Whose sessions a worker claims when it has no room for those of some API keys."""

from __future__ import annotations

import asyncio

import pytest
import redis

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.keys import GROUP, TASKS
from asrserver.broker.lease import WorkerJanitor
from asrserver.broker.worker_side import WorkerBroker
from tests.broker.support import opened

pytestmark = pytest.mark.gen_test


async def claimed(worker: WorkerBroker, count: int, *passed: str, lease: float | None = None) -> list[str]:
    return [sid for _, sid in await worker.claim(lease, count, 0, passed)]


async def test_a_key_s_sessions_are_found_behind_any_number_of_another_s(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis
) -> None:
    """What is passed over waits in order for whoever has room, and is counted as waiting."""
    await asyncio.gather(*(opened(g, f"a{number}", owner="a") for number in range(1200)))
    await opened(g, "b0", owner="b")
    await opened(g, "none")
    found: list[str] = []
    for _ in range(4):
        found += await claimed(w, 4, "a")
    assert sorted(found) == ["b0", "none"]
    queue = await g.status.queue()
    assert (queue["waiting"], queue["processing"]) == (1200, 2)
    assert await g.status.oldest_waiting() > 0
    await opened(g, "b1", owner="b")
    assert await claimed(v, 4, "b", lease=60.0) == [f"a{number}" for number in range(4)]
    assert sorted(await claimed(v, 3, lease=60.0)) == ["a4", "a5", "b1"]
    names = {consumer["name"] for consumer in db.xinfo_consumers(TASKS, GROUP)}
    assert "waiting:a" in names
    assert "waiting:b" not in names  # a line that is empty is gone


async def test_those_that_wait_in_line_go_before_new_ones_and_in_turn(g: GatewayBroker, w: WorkerBroker) -> None:
    for number in range(3):
        await opened(g, f"a{number}", owner="a")
    await opened(g, "b0", owner="b")
    assert await claimed(w, 4, "a", "b", "c") == []
    await opened(g, "new", owner="a")
    assert sorted(await claimed(w, 2)) == ["a0", "b0"]
    assert await claimed(w, 9) == ["a1", "a2", "new"]
    assert await claimed(w, 9) == []


async def test_sessions_of_a_dead_worker_are_found_too(
    g: GatewayBroker, w: WorkerBroker, v: WorkerBroker, redis_url: str
) -> None:
    """Behind those of a key that has no room, and again when the worker that found them dies in turn."""
    for number in range(8):
        await opened(g, f"a{number}", owner="a")
    await opened(g, "b0", owner="b")
    assert len(await claimed(w, 20)) == 9
    janitor = WorkerJanitor(redis_url)
    janitor.release("w")
    assert await claimed(v, 4, "a", lease=30.0) == ["b0"]
    assert await claimed(v, 4, lease=30.0) == [f"a{number}" for number in range(4)]
    janitor.release("v")
    janitor.close()
    assert await claimed(w, 4, "a", lease=30.0) == ["b0"]
    assert sorted(await claimed(w, 20, lease=30.0)) == [f"a{number}" for number in range(8)]
