"""The broker while Redis comes and goes: order, lost replies, lost connections, subscriptions."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from functools import partial
from typing import Any

import pytest
import redis

from asrserver.broker import keys
from asrserver.broker import pipeline as pipeline_module
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import LeaseRenewer
from asrserver.broker.subscription import SILENCE_SECONDS
from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import Unavailable
from asrserver.protocol.events import ChunkResult, Published
from tests.api_keys import TLS
from tests.broker.support import append, drop_connections, event, ids, nobody_listens, opened, taken
from tests.servers import Servers
from tests.waiting import until


@pytest.mark.gen_test(timeout=30)
async def test_order_holds_while_connections_are_killed(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    """Connections are killed again and again: every chunk is acknowledged, in order, and stored once."""
    await opened(g)
    answers: list[Any] = []

    def answer(index: int, error: Exception | None) -> None:
        answers.append((index, error))

    for index in range(2000):
        g.append("s", index, index - 1 if index else None, [b"x" * 2000], False, partial(answer, index))
        if index % 200 == 50:
            await asyncio.sleep(0)
            drop_connections(db)
    await until(lambda: len(answers) == 2000)
    assert answers == [(index, None) for index in range(2000)]
    assert ids(db, keys.audio_key("s")) == ["0-1", *(f"{index + 1}-0" for index in range(2000))]


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("connected", [True, False])
async def test_a_redis_that_is_busy_with_a_script_is_away_until_it_answers(
    g: GatewayBroker, db: redis.Redis, redis_url: str, connected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is refused, and no subscription ends: with it the gateway ended."""
    await opened(g)
    if not connected:
        drop_connections(db)
        await until(lambda: g.pipeline._connection is None or g.pipeline._connection.lost)
    db.config_set("lua-time-limit", 1)
    busy = asyncio.ensure_future(asyncio.to_thread(db.eval, "while true do end", 0))
    with redis.Redis.from_url(redis_url) as other:
        try:
            await until(lambda: _is_busy(other))
            appended, subscribed = asyncio.ensure_future(append(g, 0)), asyncio.Event()
            listening = asyncio.ensure_future(g.subscribe(lambda event: None, subscribed.set))
            await until(lambda: g.pipeline.away and "subscribing again" in caplog.text)
        finally:
            other.script_kill()
        with pytest.raises(redis.ResponseError):
            await busy
        assert await appended is None
        await subscribed.wait()
        listening.cancel()
        other.config_set("lua-time-limit", 5000)


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.get("x")
    except redis.ResponseError as exc:
        return str(exc).startswith("BUSY ")
    return False


@pytest.mark.gen_test(timeout=30)
async def test_a_redis_that_became_a_replica_is_away_until_a_primary_answers(
    g: GatewayBroker, w: WorkerBroker, redis_url: str, db: redis.Redis
) -> None:
    """In a failover its address leads to another one soon: nobody is refused, and nothing is lost or doubled."""
    await opened(g)
    assert await append(g, 0) is None
    claim = await taken(w)
    blocked = asyncio.ensure_future(w.claim(None, 4, 5.0))
    await until(lambda: db.info("clients")["blocked_clients"])
    renewer = LeaseRenewer(redis_url, "w")
    try:
        db.replicaof("127.0.0.1", "1")
        with pytest.raises(Unavailable):
            await blocked
        waits = [asyncio.ensure_future(append(g, index)) for index in range(1, 5)]
        waiting = asyncio.ensure_future(w.append_event(claim, event(claim, 1, 1), "0-1"))
        await until(lambda: g.pipeline._away_since is not None and w.pipeline._away_since is not None)
        with pytest.raises(Unavailable):
            renewer.renew([claim.task])
    finally:
        db.replicaof("NO", "ONE")
    assert await asyncio.gather(*waits) == [None] * 4
    assert await waiting
    assert renewer.renew([claim.task]) == {claim.task}
    renewer.close()
    assert ids(db, keys.audio_key("s")) == [f"{index + 1}-0" for index in range(5)]
    await opened(g, "t")
    assert [sid for _, sid in await w.claim(None, 4, 5.0)] == ["t"]


@pytest.mark.gen_test(timeout=60)
async def test_order_holds_over_a_restart_of_redis(g: GatewayBroker, servers: Servers, db: redis.Redis) -> None:
    """Redis is killed without warning: commands from before, during and after the outage are there, in order."""
    await opened(g)
    assert await append(g, 0) is None
    pid = servers.redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    waits = [asyncio.ensure_future(append(g, index)) for index in range(1, 50)]
    await until(lambda: servers.redis.poll() is not None and g.pipeline._away_since is not None)
    servers.redis.start()  # here and not in a thread: the kernel would end it with the thread
    waits += [asyncio.ensure_future(append(g, index)) for index in range(50, 100)]
    assert await asyncio.gather(*waits) == [None] * 99
    assert ids(db, keys.audio_key("s")) == ["0-1", *(f"{index + 1}-0" for index in range(100))]


@pytest.mark.gen_test(timeout=30)
async def test_callers_are_told_when_redis_stays_away(
    g: GatewayBroker,
    servers: Servers,
    db: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All get an error after RETRY_SECONDS, also those that waited behind others; later Redis works again."""
    monkeypatch.setattr(pipeline_module, "RETRY_SECONDS", 0.3)
    monkeypatch.setattr(pipeline_module, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(pipeline_module, "MAX_BATCH", 10)
    await opened(g)
    db.ping()  # connects while it can
    with nobody_listens(servers):
        drop_connections(db)
        started = time.monotonic()
        errors = await asyncio.gather(*(append(g, index, b"x" * 1000) for index in range(100)))
        with pytest.raises(Unavailable):
            await g.ping()
    assert {getattr(error, "code", error) for error in errors} == {"broker_unavailable"}
    assert time.monotonic() - started < 3.0  # ten batches: not each its own 0.3 s and more
    assert g.pipeline.bytes == 0
    assert await append(g, 0) is None
    said = [record.getMessage() for record in caplog.records if record.name == "asrserver.broker"]
    assert [text for text in said if text.startswith("Redis does not answer")] == said[:1]
    assert said[-1] == "Redis answers again"


@pytest.mark.gen_test
async def test_a_reply_s_callback_that_fails_harms_nobody_else(g: GatewayBroker) -> None:
    await opened(g)
    g.append("s", 0, None, [b"x"], False, lambda error: 1 / 0)  # type: ignore[arg-type]
    assert await append(g, 1) is None


@pytest.mark.gen_test
async def test_a_worker_starts_while_redis_is_full(g: GatewayBroker, db: redis.Redis, redis_url: str) -> None:
    """It needs nothing new there; its models are offered when there is room."""
    worker = WorkerBroker(redis_url, "late", ["base"])
    limit = str(db.config_get("maxmemory")["maxmemory"])
    db.config_set("maxmemory", "1")
    try:
        await worker.open()
        assert await worker.claim(None, 1, 0) == []
    finally:
        db.config_set("maxmemory", limit)
    worker.heartbeat({})
    await worker.pipeline.drain()
    assert await worker.claim(None, 1, 0) == []
    assert await g.status.offered(60.0) == {"base"}
    await worker.close()


@pytest.mark.gen_test
async def test_a_full_redis_is_unavailable_and_no_lost_event(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    """The worker drops the session, and its next owner emits the event."""
    await opened(g)
    claim = await taken(w)
    limit = str(db.config_get("maxmemory")["maxmemory"])
    db.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await w.append_event(claim, event(claim, 1, 1), "0-1")
        assert isinstance(await append(g, 0), Exception)
        with pytest.raises(Unavailable):
            await g.end_session("s", "done", time.time())
    finally:
        db.config_set("maxmemory", limit)
    assert await w.append_event(claim, event(claim, 1, 1), "0-1")


@pytest.mark.gen_test(timeout=30)
async def test_the_subscription_comes_back_and_says_so(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    """Messages of others that are no events are ignored."""
    events: list[Published] = []
    subscribed: list[bool] = []
    task = asyncio.ensure_future(g.subscribe(events.append, lambda: subscribed.append(True)))
    await until(lambda: subscribed)
    await opened(g)
    claim = await taken(w)
    db.publish(keys.results_channel("g"), "no JSON")
    await w.append_event(claim, event(claim, 1, 1), "0-1")
    await until(lambda: len(events) == 1)
    drop_connections(db, "pubsub")
    await until(lambda: len(subscribed) == 2)
    await w.append_event(claim, event(claim, 2, 2), "0-1")
    await until(lambda: len(events) == 2)
    assert [found.seq for found in events if isinstance(found, ChunkResult)] == [1, 2]
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.gen_test(timeout=30)
async def test_a_silent_subscription_is_asked(
    g: GatewayBroker, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Redis answers the ping, there is no second subscription."""
    assert SILENCE_SECONDS > 1
    monkeypatch.setattr("asrserver.broker.subscription.SILENCE_SECONDS", 0.05)
    subscribed: list[bool] = []
    task = asyncio.ensure_future(g.subscribe(lambda event: None, lambda: subscribed.append(True)))
    await until(lambda: subscribed)
    db.config_resetstat()
    await until(lambda: db.info("commandstats").get("cmdstat_ping", {}).get("calls", 0) >= 3)
    assert len(subscribed) == 1
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.gen_test
async def test_who_waits_for_room_hears_of_replies(g: GatewayBroker) -> None:
    """Waiters are woken when fewer bytes are on their way, and not before."""
    heard: list[int] = []
    g.pipeline.on_replies = lambda: heard.append(g.bytes_on_their_way)
    await opened(g)
    heard.clear()
    waits = asyncio.ensure_future(append(g, 0, b"x" * 1000))
    await asyncio.sleep(0)
    assert g.bytes_on_their_way >= 1000
    assert heard == []
    assert await waits is None
    await g.pipeline.drain()
    assert heard == [0]


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize(
    ("given", "reason"), [("", "Authentication required"), ("?password=hidden", "invalid username-password")]
)
async def test_a_wrong_password_is_said_at_once(
    redis_url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture, given: str, reason: str
) -> None:
    """Once, and without the password; when Redis has been given that password, the broker is let in."""
    db.config_set("requirepass", "right")
    broker = GatewayBroker(redis_url + given, "g")
    try:
        opening = asyncio.ensure_future(broker.open())
        await until(lambda: reason in caplog.text, 2, "it is said")
        assert "REDIS_URL" in caplog.text
        assert "hidden" not in caplog.text
        db.config_set("requirepass", given.partition("=")[2])
        await opening
        assert len(caplog.records) == 1
    finally:
        db.config_set("requirepass", "")
        await broker.close()


@pytest.mark.gen_test(timeout=30)
async def test_an_untrusted_certificate_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipeline_module, "RETRY_SECONDS", 0.2)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    broker = GatewayBroker(f"rediss://127.0.0.1:{port}/0", "g")
    try:
        with pytest.raises(Unavailable):
            await broker.open()
    finally:
        await broker.close()
        server.close()
    assert "certificate verify failed" in caplog.records[0].getMessage()
    assert "unreachable" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 2
