"""Starting sessions over a WebSocket, and their end after the loss of client, keys or gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import psycopg2
import pytest
import redis

from asrserver.broker import keys
from asrserver.config import Settings
from asrserver.errors import Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.protocol import codec
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient, chunk, errors, finish, start

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_a_session_that_exists_cannot_be_started(
    url: str, gateway: Gateway, worker: FakeWorker, redis_url: str
) -> None:
    """On this connection or another, open or over, known to Redis or only to PostgreSQL."""
    start_again = start("s")
    async with await WsClient.open(url) as one, await WsClient.open(url) as two:
        await one.start("s")
        assert (await two.call(start_again))["code"] == "session_exists"
        await one.send(finish())
        await worker.take("s")
        await worker.final("s", "", 0)
        await one.find("s", "final_result")
        assert (await two.call(start_again))["code"] == "session_exists"
        await until(gateway.write_behind.is_flushed)
        with redis.Redis.from_url(redis_url) as client:
            client.delete(keys.session_key("s"), keys.audio_key("s"), keys.events_key("s"))
        assert (await two.call(start_again))["code"] == "session_exists"
        await gateway.storage.delete("s")
        assert (await two.call(start_again))["code"] == "session_exists"


async def test_one_of_two_who_start_the_same_at_once(url: str, worker: FakeWorker) -> None:
    """The one that got it receives its results."""
    async with await WsClient.open(url) as one, await WsClient.open(url) as two:
        for number in range(10):
            sid = f"s{number}"
            await asyncio.gather(one.send(start(sid)), two.send(start(sid)))
            await until(lambda sid=sid: one.of(sid) and two.of(sid))
            first, second = one.of(sid)[0], two.of(sid)[0]
            assert {first["type"], second["type"]} == {"ack", "error"}
            owner = one if first["type"] == "ack" else two
            await owner.send(finish(sid))
            await worker.take(sid)
            await worker.final(sid, sid, 0)
            assert (await owner.find(sid, "final_result"))["text"] == sid
        assert {error["code"] for ws in (one, two) for error in await errors(ws, 0)} == {"session_exists"}


# -- by query

LIVE = "?mode=stream&partials=1&format=pcm_s16le&uid=7"


async def test_a_session_by_query(url: str, worker: FakeWorker) -> None:
    """It starts at once; raw audio comes, also before it has started; an empty frame ends it."""
    async with await WsClient.open(url + LIVE) as ws:
        for data in (b"abcd", b"efgh", b""):
            await ws.send(data)
        ack = await ws.next()
        assert ack["status"] == "session_started"
        assert ack["warnings"] == ["the parameter 'uid' is unknown and was ignored"]
        sid = ack["session_id"]
        await worker.take(sid)
        assert b"".join((await worker.audio(sid, 1)).values()) == b"abcdefgh"
        await worker.final(sid, "all", 2)
        assert (await ws.find(sid, "final_result"))["status"] == "done"
        await ws.send(b"more")
        assert (await errors(ws))[0]["code"] == "no_session"


@pytest.mark.parametrize("early", [True, False])
async def test_a_session_by_query_ends_with_its_connection(
    url: str, gateway: Gateway, worker: FakeWorker, early: bool
) -> None:
    """At once, and not after the resume timeout; with all its audio, also if the session had not started yet."""
    async with await WsClient.open(url + LIVE + "&session_id=s") as ws:
        if not early:
            await ws.next()
        await ws.send(b"abcd")
        if early:
            ws.drop()
    await until(lambda: "s" in gateway.sessions and gateway.sessions["s"].state != "recording")
    await worker.take("s")
    assert await worker.audio("s", 1) == {"1-0": b"abcd"}
    assert await worker.ended("s") == "done"


async def test_a_query_that_is_refused(url: str, gateway: Gateway) -> None:
    """It gets its error, and the connection is closed: all that could follow is audio."""
    async with await WsClient.open(url + "?mode=live") as ws:
        error = await ws.next()
        assert (error["code"], error["option"]) == ("bad_option", "mode")
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1008
    async with await WsClient.open(url + LIVE + "&session_id=s") as one, await WsClient.open(url + "?uid=1") as other:
        await one.next()
        async with await WsClient.open(url + LIVE + "&session_id=s") as ws:
            assert (await ws.next())["code"] == "session_exists"
            await until(lambda: ws.closed)
        assert (await other.call(b"abcd"))["code"] == "no_session"  # nothing was started for it


async def test_a_start_while_postgresql_is_away(url: str, gateway: Gateway) -> None:
    """It works: Redis still knows its sessions."""
    await gateway.storage.close()
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.send(start("s"))
        assert [error["code"] for error in await errors(ws)] == ["session_exists"]
    await gateway.storage.open()


async def test_a_client_that_drops_leaves_its_session_ended(url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """All its sessions are interrupted after the resume timeout, with the results that they have; the rows say so."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    ws = await WsClient.open(url)
    await ws.start("one")
    await ws.start("two")
    await ws.chunk("one", 0, AUDIO)
    ws.drop()
    await ws.close()
    await worker.take("one", "two")
    await worker.chunk("one", 0)
    assert await worker.ended("one") == await worker.ended("two") == "interrupted"
    await worker.final("one")
    await worker.final("two", "", 0)
    await until(lambda: not gateway.sessions and gateway.write_behind.is_flushed())
    stored = await gateway.storage.session("one")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("interrupted", "words")
    assert gateway.connections == 0


async def test_a_session_whose_keys_are_lost_is_told_to_its_client(url: str, gateway: Gateway, redis_url: str) -> None:
    """A chunk and a finish are answered with an error."""
    async with await WsClient.open(url) as ws:
        for sid in ("one", "two"):
            await ws.start(sid)
            with redis.Redis.from_url(redis_url) as client:
                client.delete(keys.session_key(sid), keys.audio_key(sid), keys.events_key(sid))
        await ws.send(chunk("one", 0, AUDIO))
        await ws.send(finish("two"))
        for sid in ("one", "two"):
            assert (await ws.find(sid, "error"))["code"] == "session_gone"
        await until(lambda: not gateway.sessions)


async def test_a_session_is_ended_although_redis_was_away_for_long(
    url: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other gateway would end it: its own says that it is alive."""
    tries = iter(range(2))
    end_session = gateway.broker.end_session

    async def unlucky(*args: Any, **kwargs: Any) -> bool:
        if next(tries, None) is not None:
            raise Unavailable("broker_unavailable", "away")
        return await end_session(*args, **kwargs)

    monkeypatch.setattr(gateway.broker, "end_session", unlucky)
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.send(finish())
        await worker.take("s")
        await worker.final("s", "", 0)
        await ws.find("s", "final_result")


async def test_a_dead_gateway_s_session_is_adopted(gateway: Gateway, worker: FakeWorker) -> None:
    """It is ended as interrupted, and stored."""
    other = type(gateway.broker)(gateway.settings.redis, "dead")
    fields = {
        "gateway": "dead",
        "user_id": "",
        "created": "1.0",
        "options": orjson.dumps({"mode": "auto"}).decode(),
    }
    assert await other.open_session("s", "n", fields, 1.0)
    await other.close()
    await worker.take("s")
    assert await worker.ended("s") == "interrupted"
    await until(lambda: "s" in gateway.sessions)
    await worker.final("s", "words", 0)
    await until(lambda: not gateway.sessions and gateway.write_behind.is_flushed())
    stored = await gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("interrupted", "words")


async def test_one_session_that_cannot_be_stored_holds_up_no_other(
    url: str, gateway: Gateway, worker: FakeWorker, gateway_settings: Settings, redis_url: str
) -> None:
    """An unreadable part goes to the dead letters with the reason; the rest is stored."""
    async with await WsClient.open(url) as ws:
        await ws.start("bad")
        await ws.start("good")
        await worker.take("bad", "good")
        event = worker.event("bad", "chunk", text="lost")
        with redis.Redis.from_url(redis_url) as client:
            data = codec.encode(event).replace(b'"lost"', b"[]")
            client.xadd(keys.events_key("bad"), {"seq": event.seq, "data": data}, id=event.id)
        await worker.say("bad", "error", code="c", message="m")
        assert (await ws.find("bad", "error"))["seq"] == 2
        await ws.send(finish("good"))
        await worker.final("good", "words", 0)
        await ws.find("good", "final_result")
        await until(gateway.write_behind.is_flushed)
    with psycopg2.connect(gateway_settings.database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, status, error_code FROM asr_sessions ORDER BY id")
        assert cursor.fetchall() == [("bad", "recording", "c"), ("good", "done", None)]
    connection.close()
    assert (await gateway.broker.status.queue())["dead"] == 1
