"""Several Redis servers behind two gateways and a worker: where sessions are, and what an outage costs."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
import redis
import tornado.ioloop

from asrserver.broker import keys
from asrserver.broker.addresses import addresses, label
from asrserver.broker.drains import drains
from asrserver.broker.gateway_shards import ShardedGatewayBroker, gateway_broker
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import WorkerJanitor
from asrserver.broker.shards import MAX_REMEMBERED, RoutingTable, ranked
from asrserver.broker.worker_side import WorkerBroker
from asrserver.cli.doctor import check_redis
from asrserver.config import Settings
from asrserver.errors import BadRequest, Unavailable
from tests.broker.support import append, event, opened
from tests.shards import ShardServers
from tests.waiting import until

pytestmark = pytest.mark.gen_test


def broker(io_loop: tornado.ioloop.IOLoop, url: str, name: str) -> Iterator[ShardedGatewayBroker]:
    made = gateway_broker(url, name)
    assert isinstance(made, ShardedGatewayBroker)
    io_loop.run_sync(made.open)
    yield made
    io_loop.run_sync(made.close)


@pytest.fixture
def g(io_loop: tornado.ioloop.IOLoop, shards: ShardServers) -> Iterator[ShardedGatewayBroker]:
    yield from broker(io_loop, shards.url, "g")


@pytest.fixture
def h(io_loop: tornado.ioloop.IOLoop, shards: ShardServers) -> Iterator[ShardedGatewayBroker]:
    """Another gateway's, which was told the addresses in another order."""
    yield from broker(io_loop, ",".join(reversed(addresses(shards.url))), "h")


@pytest.fixture
def workers(io_loop: tornado.ioloop.IOLoop, shards: ShardServers) -> Iterator[list[WorkerBroker]]:
    """The brokers of one worker, one for each shard."""
    made = [
        WorkerBroker(server.url, "w", ["base"] if number == 2 else ()) for number, server in enumerate(shards.servers)
    ]
    yield made
    for each in made:
        io_loop.run_sync(each.close)


async def begun(gateway: GatewayBroker, count: int = 12) -> list[str]:
    """Sessions with ids of the server's own."""
    sids = [str(uuid.uuid4()) for _ in range(count)]
    assert all(await asyncio.gather(*(opened(gateway, sid) for sid in sids)))
    return sids


async def lost(gateway: ShardedGatewayBroker, shards: ShardServers, number: int) -> None:
    """Kill a shard, and wait until the gateway has noticed."""
    shards.kill(number)
    gateway.heartbeat({})
    await until(lambda: member(gateway, shards, number).pipeline.away)


async def back(gateway: ShardedGatewayBroker, shards: ShardServers, number: int) -> None:
    shards.servers[number].start()
    await until(lambda: not member(gateway, shards, number).pipeline.away)


def member(gateway: ShardedGatewayBroker, shards: ShardServers, number: int) -> GatewayBroker:
    return next(each for each in gateway.members if each.url == shards.servers[number].url)


def one(sids: list[str], shards: ShardServers, number: int) -> str:
    """A session that a shard has."""
    return next(sid for sid in sids if shards.of(sid) == [number])


def test_addresses() -> None:
    assert addresses("redis://:a,b@h:6379/0") == ["redis://:a,b@h:6379/0"]
    several = "redis://:a,b@h:6379/0, rediss://u:p@i:6380/2,unix:///run/r.sock"
    assert addresses(several) == ["redis://:a,b@h:6379/0", "rediss://u:p@i:6380/2", "unix:///run/r.sock"]
    assert [label(url) for url in addresses(several)] == ["h:6379", "i:6380/2", "/run/r.sock"]


def test_a_key_keeps_its_shard_while_that_is_there() -> None:
    names = ["a", "b", "c"]
    homes = {str(key): ranked(names, str(key))[0] for key in range(300)}
    assert min(Counter(homes.values()).values()) > 70
    for key, home in homes.items():
        assert ranked(reversed(names), key)[0] == home
        assert ranked(["a", "b"], key)[0] == home or home == "c"


async def test_one_address_is_one_redis(redis_url: str) -> None:
    single = gateway_broker(redis_url, "g")
    assert type(single) is GatewayBroker
    assert single.shards() == []
    assert single.of("s") is single


async def test_a_session_is_whole_in_one_shard(g: ShardedGatewayBroker, shards: ShardServers) -> None:
    sids = await begun(g)
    assert Counter(len(shards.of(sid)) for sid in sids) == {1: len(sids)}
    assert {shards.of(sid)[0] for sid in sids} == {0, 1, 2}
    for sid in sids:
        assert await append(g, 0, sid=sid) is None
        with redis.Redis.from_url(shards.servers[shards.of(sid)[0]].url) as db:
            assert db.xlen(keys.audio_key(sid)) == 2
            assert db.zscore(keys.OPEN, sid)


async def test_another_gateway_finds_a_session_wherever_it_is(
    g: ShardedGatewayBroker, h: ShardedGatewayBroker, shards: ShardServers
) -> None:
    for sid in await begun(g, 6):
        await append(g, 0, sid=sid)
        assert await h.status.stage(sid, None) == "queued"
        fields = await h.resume_session(sid, h.clock.now() + 60, "")
        assert fields is not None
        assert fields["gateway"] == "h"
        assert isinstance(await append(g, 1, sid=sid), Unavailable)  # session_moved
        assert await append(h, 1, sid=sid) is None
        assert await g.refresh({sid: time.time() + 60}) == {sid: "moved"}
        assert await h.end_session(sid, "done", h.clock.now() + 60, last=1)
        assert await g.delete_session(sid, None)
    assert await h.resume_session("nowhere", h.clock.now() + 60, "") is None
    assert not await h.delete_session("nowhere", None)


async def test_an_id_that_a_client_chose_is_in_use_once(g: ShardedGatewayBroker, h: ShardedGatewayBroker) -> None:
    """Whichever gateways are asked, at the same time too."""
    fields = {"gateway": "g", "options": "{}"}
    for number in range(6):
        tries = (each.open_session(f"s{number}", each.name, fields, time.time() + 60, chosen=True) for each in (g, h))
        assert sorted(await asyncio.gather(*tries)) == [False, True]


async def test_new_sessions_go_where_there_is_room_and_somebody_to_recognise_them(
    g: ShardedGatewayBroker, shards: ShardServers
) -> None:
    full, idle, crowded = g._shards.members
    full.broker.fullness, full.workers = 0.85, 4
    crowded.workers, crowded.processing = 1, 20
    idle.workers = 1
    names = shards.names()
    for sid in await begun(g, 12):  # to the better one of the first two
        two = {names.index(name) for name in ranked(names, sid)[:2]}
        assert shards.of(sid) == [1 if 1 in two else 2]
    idle.workers, crowded.waiting, full.broker.fullness = 0, 100, 0.0
    assert sorted(g._shards.members, key=lambda shard: shard.load) == [full, crowded, idle]


async def test_a_model_that_is_offered_in_one_shard_only(
    g: ShardedGatewayBroker, shards: ShardServers, workers: list[WorkerBroker]
) -> None:
    await workers[2].open()
    for number in range(6):
        assert await opened(g, f"s{number}", model="base")
        assert shards.of(f"s{number}") == [2]
    with pytest.raises(BadRequest):
        await opened(g, "t", model="large")
    assert await g.status.offered(60) == {"base"}
    assert await g.status.waiting("base") == 6
    workers[2].heartbeat({})
    await workers[2].pipeline.drain()
    assert [state["name"] for state in await g.status.heartbeats("worker")] == ["w"]
    assert [shard["workers"] for shard in g.shards()] == [0, 0, 1]


async def test_an_outage_costs_the_sessions_of_the_shard(g: ShardedGatewayBroker, shards: ShardServers) -> None:
    """The others are opened, written, refreshed, read, found; those of the shard that is away are not given up."""
    sids = await begun(g)
    for sid in sids:
        assert await append(g, 0, sid=sid) is None
    here, away = one(sids, shards, 0), one(sids, shards, 1)
    await lost(g, shards, 1)
    assert set(await begun(g, 6))
    assert await append(g, 1, sid=here) is None
    waiting = asyncio.ensure_future(append(g, 1, sid=away))
    assert await g.refresh(dict.fromkeys(sids, time.time() + 60)) == {}
    found = await g.read_sessions(dict.fromkeys([here, away], "0-1"))
    assert found.keys() == {here}
    assert await g.known([here]) == {here}
    for question in (g.known([here, away]), g.open_sessions([away]), g.read_events(away)):
        with pytest.raises(Unavailable):
            await question
    with pytest.raises(Unavailable):
        await g.resume_session(away, time.time() + 60, "")
    with pytest.raises(Unavailable):
        await g.delete_session("nobody-knows", None)
    assert (await g.status.queue())["waiting"] > 0
    assert await g.ping() > 0
    assert [shard["ready"] for shard in g.shards()] == [True, False, True]
    assert not waiting.done()
    await back(g, shards, 1)
    assert await waiting is None
    g.heartbeat({})
    assert await g.known([here, away]) == {here, away}
    assert (await g.read_sessions({away: "0-1"}))[away][0]["last"] == "1"
    await g.ping()
    assert all(shard["ready"] for shard in g.shards())


async def test_all_shards_are_away(g: ShardedGatewayBroker, shards: ShardServers) -> None:
    for number in range(3):
        shards.kill(number)
    g.heartbeat({})
    await until(lambda: all(member.pipeline.away for member in g.members))
    with pytest.raises(Unavailable):
        await g.ping()
    with pytest.raises(Unavailable):
        await opened(g)
    with pytest.raises(Unavailable):
        await g.status.queue()
    shards.clear()


async def test_a_gateway_starts_while_a_shard_is_away(shards: ShardServers) -> None:
    shards.kill(2)
    g = gateway_broker(shards.url, "g")
    assert isinstance(g, ShardedGatewayBroker)
    try:
        await g.open()
        assert len(await begun(g, 4)) == 4
        await back(g, shards, 2)
    finally:
        await g.close()


async def test_limits_of_a_key_hold_over_all_shards(
    g: ShardedGatewayBroker, h: ShardedGatewayBroker, shards: ShardServers
) -> None:
    assert [await each.quota.hold("sessions", "key", name, 2) for each, name in ((g, "a"), (h, "b"), (g, "c"))] == [
        True,
        True,
        False,
    ]
    h.quota.release("sessions", "key", "a")  # another gateway may be told of its end
    assert await h.quota.hold("sessions", "key", "c", 2)
    home = ranked([shard.name for shard in g._shards.members], "key")[0]
    number = shards.names().index(home)
    await lost(g, shards, number)
    g.quota.renew("sessions", "key", ["b", "c"])
    assert not await g.quota.hold("sessions", "key", "d", 2)
    await back(g, shards, number)


async def test_audio_is_charged_in_the_shard_of_its_session_and_counted_in_all(
    g: ShardedGatewayBroker, workers: list[WorkerBroker]
) -> None:
    sids = [str(uuid.uuid4()) for _ in range(12)]
    for sid in sids:
        await opened(g, sid, owner="key")
    for number, worker in enumerate(workers):
        await worker.open()
        [(task, sid), *_] = await worker.claim(None, 10, 0)
        claim = await worker.acquire(task, sid)
        assert claim is not None
        assert await worker.append_event(claim, event(claim, 1, 1, total=1.5 + number), "1-0")
    assert await g.quota.spent(["key", "other"]) == {"key": 7.5, "other": 0.0}


async def test_client_secrets_outlive_any_shard(
    g: ShardedGatewayBroker, h: ShardedGatewayBroker, shards: ShardServers
) -> None:
    assert await g.client_secrets.keep("digest", "key", {"a": 1}, 60)
    await lost(h, shards, 0)
    assert await h.client_secrets.find("digest") == ("key", {"a": 1})
    assert await h.client_secrets.find("unknown") is None
    await back(h, shards, 0)


async def test_a_dead_gateways_sessions_are_found_in_every_shard(
    g: ShardedGatewayBroker, h: ShardedGatewayBroker, shards: ShardServers
) -> None:
    sids = await begun(g)
    now = h.clock.now()
    await g.refresh(dict.fromkeys(sids, g.clock.now() - 1))
    assert set(await h.overdue(now, 100)) == set(sids)
    found = await h.read_sessions(dict.fromkeys(sids, "0-1"))
    assert {fields["gateway"] for fields, _ in found.values()} == {"g"}
    for sid in sids:
        assert await h.end_session(sid, "interrupted", now + 60, seen="g", overdue=now)
        await h.close_session(sid, 60)
    assert await h.open_sessions(sids) == set()


async def test_what_was_stored_before_its_client_had_it_is_still_found(
    g: ShardedGatewayBroker, shards: ShardServers, workers: list[WorkerBroker]
) -> None:
    """The news of a final event are lost, as while a Redis is started again: it is stored, and read after that."""
    sids = await begun(g)
    for worker in workers:
        await worker.open()
        for task, sid in await worker.claim(None, 20, 0):
            claim = await worker.acquire(task, sid)
            assert claim is not None
            assert await worker.append_event(claim, event(claim, 1, 1, "final"), "0-1")
    for sid in sids:
        await g.close_session(sid, 60)
        assert [found.seq for found in await g.read_events(sid)] == [1]


async def test_deadlines_are_by_the_clock_of_each_shard(g: ShardedGatewayBroker, shards: ShardServers) -> None:
    [sid] = await begun(g, 1)
    home = g.members[shards.of(sid)[0]]
    home.clock._offset += 1000  # as if the clock of its machine were ahead
    await g.refresh({sid: g.clock.now() + 60})
    with redis.Redis.from_url(shards.servers[shards.of(sid)[0]].url) as db:
        assert db.zscore(keys.OPEN, sid) == pytest.approx(time.time() + 1060, abs=30)
    assert await g.overdue(g.clock.now(), 10) == []


async def test_a_dead_worker_is_released_in_every_shard(
    g: ShardedGatewayBroker, shards: ShardServers, workers: list[WorkerBroker]
) -> None:
    sids = await begun(g)
    for worker in workers:
        await worker.open()
        assert await worker.claim(None, 20, 0)
    janitor = WorkerJanitor(shards.url)
    assert janitor.strike(sids[0], "1-0") == 1
    shards.kill(0)
    with pytest.raises(Unavailable):
        janitor.release("w")  # in the others it is done
    shards.servers[0].start()
    with redis.Redis.from_url(shards.servers[1].url) as db:
        idle = [entry["time_since_delivered"] for entry in db.xpending_range(keys.TASKS, keys.GROUP, "-", "+", 10)]
    assert idle
    assert min(idle) > 3_000_000
    assert janitor.release("w") == len(sids)
    janitor.close()


async def test_a_primary_that_lacks_its_replica_takes_nothing(g: ShardedGatewayBroker, shards: ShardServers) -> None:
    """With min-replicas-to-write; new sessions are refused there as where a Redis is full."""
    sid = one(await begun(g), shards, 1)
    with redis.Redis.from_url(shards.servers[1].url) as db:
        db.config_set("min-replicas-to-write", 1)
        try:
            refused = await append(g, 0, sid=sid)
        finally:
            db.config_set("min-replicas-to-write", 0)
    assert isinstance(refused, Unavailable)
    assert refused.code == "broker_full"
    assert await append(g, 0, sid=sid) is None


async def test_what_is_remembered_has_a_bound(g: ShardedGatewayBroker) -> None:
    routes = RoutingTable(g._shards)
    held = ["held-1", "held-2"]
    for sid in (*held, *map(str, range(MAX_REMEMBERED + 5))):
        routes.keep(sid, g._shards.members[1])
    routes.touch(held)
    assert all(routes.get(sid) for sid in held)
    assert routes.get("4") is None
    assert routes.get(str(MAX_REMEMBERED + 4)) is not None
    assert routes.any("4") is g._shards.members[0]


async def test_a_worker_of_one_shard(
    g: ShardedGatewayBroker, shards: ShardServers, workers: list[WorkerBroker]
) -> None:
    """A WorkerBroker knows nothing of shards; its session's events reach the gateway."""
    sid = one(await begun(g), shards, 2)
    heard: list[str] = []
    listening = asyncio.ensure_future(
        g.subscribe(lambda event: heard.append(event.session_id), lambda: heard.append("subscribed"))
    )
    await until(lambda: heard.count("subscribed") == 3)
    worker = workers[2]
    await worker.open()
    for task, found in await worker.claim(None, 20, 0):
        claim = await worker.acquire(task, found)
        assert claim is not None
        if found == sid:
            assert await worker.append_event(claim, event(claim, 1, 1), "1-0")
    await until(lambda: len(heard) == 4)
    assert [result.seq for result in await g.read_events(sid)] == [1]
    listening.cancel()


async def test_a_worker_is_drained_in_every_shard(shards: ShardServers, workers: list[WorkerBroker]) -> None:
    for worker in workers:
        await worker.open()
        worker.heartbeat({"sessions": 2})
        await worker.pipeline.drain()
    async with drains(shards.url) as asked:
        assert [worker["name"] for worker in await asked.workers()] == ["w"]
        await asked.ask(["w"])
        assert [await worker.is_drained() for worker in workers] == [True, True, True]
        await asked.undo(["w"])
        assert [await worker.is_drained() for worker in workers] == [False, False, False]


def test_the_doctor_looks_at_every_shard(shards: ShardServers) -> None:
    shards.kill(1)
    found = {finding.subject: finding.level for finding in check_redis(Settings(redis_url=shards.url))}
    names = [f"Redis {name}" for name in shards.names()]
    assert found[names[1]] == "fail"
    assert "fail" not in (found[names[0]], found[names[2]])
