"""Sessions that name a model, in a real Redis: only workers that offer it claim them, and none waits for ever."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import pytest
import redis
import tornado.ioloop

from asrserver.broker import keys, worker_side
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import LeaseRenewer, WorkerJanitor
from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import BadRequest
from tests.broker import conftest
from tests.broker.support import event, opened, taken

TINY = keys.tasks_key("tiny.en")


@pytest.fixture
def t(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[WorkerBroker]:
    """The broker of a worker that offers two models."""
    yield from conftest.opened(io_loop, WorkerBroker(redis_url, "t", ["base", "tiny.en"]))


@pytest.fixture
def b(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[WorkerBroker]:
    """The broker of a worker that offers one of them."""
    yield from conftest.opened(io_loop, WorkerBroker(redis_url, "b", ["base"]))


async def claimed(worker: WorkerBroker, lease: float | None = None) -> set[str]:
    return {sid for _, sid in await worker.claim(lease, 10, 0)}


@pytest.mark.gen_test
async def test_a_session_is_claimed_only_by_workers_that_offer_its_model(
    g: GatewayBroker, t: WorkerBroker, b: WorkerBroker, w: WorkerBroker
) -> None:
    """`w` is a worker of the last release: it offers nothing by name."""
    await opened(g, "any")
    await opened(g, "tiny", model="tiny.en")
    await opened(g, "base", model="base")
    assert await claimed(w, 0.0) == {"any"}
    assert await claimed(b) == {"base"}
    assert await claimed(b, 30.0) == set()
    assert await claimed(t) == {"tiny"}


@pytest.mark.gen_test
async def test_a_worker_waits_for_sessions_of_each_of_its_models(g: GatewayBroker, t: WorkerBroker) -> None:
    for model in (None, "base", "tiny.en"):
        waiting = asyncio.ensure_future(t.claim(1.0, 4, 8))
        await opened(g, str(model), model=model)
        assert [sid for _, sid in await asyncio.wait_for(waiting, 5)] == [str(model)]


@pytest.mark.gen_test
async def test_a_session_goes_to_the_next_worker_that_offers_its_model(
    g: GatewayBroker, t: WorkerBroker, b: WorkerBroker, redis_url: str, db: redis.Redis
) -> None:
    """Whether its lease ran out, its worker gave it up, or the supervisor released what a dead worker held."""
    await opened(g, "s", model="base")
    claim = await taken(t)
    renewer, janitor = LeaseRenewer(redis_url, "t"), WorkerJanitor(redis_url)
    assert renewer.renew([claim.task]) == {claim.task}
    assert (await taken(b, lease=0)).task == claim.task
    assert renewer.renew([claim.task]) == set()
    assert await b.release() == 1
    assert (await taken(t, lease=30)).task == claim.task
    assert await t.release([claim.task]) == 1
    assert (await taken(b, lease=30)).task == claim.task
    assert janitor.release("b") == 1
    last = await taken(t, lease=30)
    assert await g.status.queue() == {"waiting": 0, "processing": 1, "dead": 0}
    await t.append_event(last, event(last, 1, 1, "final"), "0-1")
    assert db.xlen(last.task.stream) == 0
    for worker in ("t", "b"):
        janitor.retire(worker)
    for stream in (keys.TASKS, TINY, keys.tasks_key("base")):
        assert db.xinfo_consumers(stream, keys.GROUP) == []
    renewer.close()
    janitor.close()


@pytest.mark.gen_test
async def test_what_waits_is_counted_for_each_model(g: GatewayBroker, t: WorkerBroker) -> None:
    await opened(g, "one")
    for sid in ("two", "three"):
        await opened(g, sid, model="base")
    assert [await g.status.waiting(model) for model in (None, "base", "tiny.en", "unknown")] == [1, 2, 0, 0]
    assert (await g.status.queue())["waiting"] == 3
    assert await g.status.oldest_waiting() > 0
    await claimed(t)
    assert await g.status.queue() == {"waiting": 0, "processing": 3, "dead": 0}


@pytest.mark.gen_test
async def test_a_model_that_nobody_offers_is_refused(g: GatewayBroker, t: WorkerBroker, db: redis.Redis) -> None:
    """And nothing is created for it."""
    before = set(db.keys())
    with pytest.raises(BadRequest, match=r"no worker offers the model 'large'") as error:
        await opened(g, "s", model="large")
    assert error.value.code == "unknown_model"
    assert set(db.keys()) == before
    assert await g.status.offered(60.0) == {"base", "tiny.en"}
    assert await g.status.offered(-60.0) == set()


@pytest.mark.gen_test
async def test_the_clock_of_a_worker_is_wrong(
    g: GatewayBroker, t: WorkerBroker, w: WorkerBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour ahead, it does not take sessions of models that it does not have as those that nobody offers."""
    await opened(g, "s", model="tiny.en")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)
    assert await claimed(w, 0.0) == set()


@pytest.mark.gen_test
async def test_any_worker_takes_a_session_whose_model_is_offered_no_more(
    g: GatewayBroker, t: WorkerBroker, w: WorkerBroker, v: WorkerBroker, db: redis.Redis
) -> None:
    """And the next one, if that one dies; the stream goes when it is empty, and comes back with an offer."""
    await opened(g, "s", model="tiny.en")
    assert await claimed(w, 0.0) == set()
    db.zadd(keys.OFFERED, {"tiny.en": time.time() - worker_side.ABANDONED_AFTER - 1})
    await taken(w, lease=30)
    assert await claimed(v, 30.0) == set()
    claim = await taken(v, lease=0)
    await v.append_event(claim, event(claim, 1, 1, "final"), "0-1")
    assert await claimed(v, 0.0) == set()
    assert not db.exists(TINY)
    assert await g.status.offered(math.inf) == {"base"}
    t.heartbeat({})
    await t.pipeline.drain()
    assert await opened(g, "again", model="tiny.en")
    assert await claimed(t) == {"again"}
