"""Clients that do not come back, and gateways that stop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from asrserver.broker import keys
from asrserver.broker.pipeline import RETRY_SECONDS
from asrserver.errors import Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.protocol.events import Result
from tests.fakes import FakeWorker
from tests.gateway.resuming import AUDIO, drop, patience, resumed
from tests.gateways import Gateways
from tests.waiting import until
from tests.ws_client import WsClient, chunk

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_a_session_waits_for_its_client_and_then_ends(gateways: Gateways, worker: FakeWorker) -> None:
    """It is interrupted after the timeout; a client that comes later gets the results and the status."""
    patience(gateways, 60.0)
    ws = await WsClient.open(gateways[0].url)
    await ws.start("s")
    await worker.take("s")
    await ws.chunk("s", 0, AUDIO)
    await drop(ws)
    await until(lambda: gateways[0].gateway.sessions["s"].resume_by)
    await asyncio.gather(
        *(server.gateway._sweep() for server in gateways), *(server.gateway.sessions.repair() for server in gateways)
    )
    async with await WsClient.open(gateways[1].url) as ws:
        assert (await resumed(ws))["state"] == "recording"
        patience(gateways, 0.1)
        await drop(ws)
    assert await worker.ended("s") == "interrupted"
    await worker.chunk("s", 0)
    await worker.final("s")
    async with await WsClient.open(gateways[0].url) as ws:
        ack = await resumed(ws)
        assert (ack["state"], ack["next_chunk_index"]) == ("finishing", 1)
        assert (await ws.find("s", "final_result"))["status"] == "interrupted"
    await until(lambda: all(server.gateway.write_behind.is_flushed() for server in gateways))
    stored = await gateways[0].gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("interrupted", "words")


async def test_a_clock_that_goes_back_keeps_no_session_open(
    gateway: Gateway, url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline in Redis was set by a reading of its clock that the next reading corrects. There is one gateway."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    ws = await WsClient.open(url)
    await ws.start("s")
    await worker.take("s")
    end = gateway.broker.end_session
    tries: list[float] = []

    async def end_session(sid: str, status: str, deadline: float, overdue: float, last: int | None) -> bool:
        tries.append(overdue - 60 * (not tries))  # the clock of the first one is late
        return await end(sid, status, deadline, overdue=tries[-1], last=last)

    monkeypatch.setattr(gateway.broker, "end_session", end_session)
    monkeypatch.setattr("asrserver.gateway.sessions.REPAIR_EVERY", 0.1)
    await drop(ws)
    assert await worker.ended("s") == "interrupted"
    assert len(tries) == 2


@pytest.mark.parametrize("when", ["during", "after"])
async def test_an_end_that_is_tried_again_when_the_client_is_back(
    gateway: Gateway, url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its time was over while Redis was away, and then it resumes first: its session goes on."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    monkeypatch.setattr("asrserver.gateway.sessions.REPAIR_EVERY", 0.1)
    end, resume = gateway.broker.end_session, gateway.broker.resume_session
    resuming, ended = asyncio.Event(), asyncio.Event()
    tries: list[bool] = []

    async def end_session(*args: Any, **kwargs: Any) -> bool:
        tries.append(resuming.is_set())
        if not resuming.is_set():
            raise Unavailable("broker_unavailable", "away")
        try:
            return await end(*args, **kwargs)
        finally:
            ended.set()

    async def resume_session(*args: Any, **kwargs: Any) -> Any:
        fields = await resume(*args, **kwargs)
        resuming.set()
        if when == "during":
            await ended.wait()
        return fields

    monkeypatch.setattr(gateway.broker, "end_session", end_session)
    monkeypatch.setattr(gateway.broker, "resume_session", resume_session)
    ws = await WsClient.open(url)
    await ws.start("s")
    await worker.take("s")
    await drop(ws)
    await until(lambda: tries)
    async with await WsClient.open(url) as ws:
        assert (await resumed(ws))["state"] == "recording"
        await until(lambda: not any(job.get_name() == "end s" for job in gateway._tasks._jobs))
        await ws.chunk("s", 0, AUDIO)
        assert tries[-1] == (when == "during")


async def test_a_gateway_that_waits_for_redis_keeps_its_sessions(
    gateways: Gateways, worker: FakeWorker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells its clients after RETRY_SECONDS, who then have as long to resume at a gateway that Redis answers to."""
    waiting, other = (server.gateway for server in gateways)
    clock = other.broker.clock
    now = clock.now

    async def ended_after(seconds: float) -> bool:
        monkeypatch.setattr(clock, "now", lambda: now() + seconds)
        for _ in range(2):
            await other._sweep()
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            return bool(client.hexists(keys.session_key("s"), "end"))

    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("s")
        await worker.take("s")
        assert not await ended_after(RETRY_SECONDS + waiting.settings.resume_timeout - 5)
        assert await ended_after(RETRY_SECONDS + waiting.settings.resume_timeout + 5)


async def test_after_a_restart_of_everything_sessions_wait_for_their_clients(
    gateways: Gateways, worker: FakeWorker, redis_url: str
) -> None:
    """Until connections are accepted and for as long as a client has to resume after that, however long the restart
    took. What was finished is stored meanwhile."""
    patience(gateways, 60.0)
    for server in gateways:
        server.gateway.accepting_since = math.inf  # as one that does not accept connections yet
    dead = type(gateways[0].gateway.broker)(redis_url, "dead")
    fields = {"gateway": "dead", "user_id": "", "created": "1.0", "options": '{"mode": "auto"}'}
    for sid in ("tries", "gone", "finished"):
        assert await dead.open_session(sid, "n", fields, 1.0)
    assert await dead.end_session("finished", "done", 1.0)
    await dead.close()
    await worker.take("tries", "gone", "finished")
    await worker.final("finished", "words", 0)

    async def swept() -> list[str]:
        for _ in range(2):
            await asyncio.gather(*(server.gateway._sweep() for server in gateways))
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            return [sid for sid in ("tries", "gone") if client.hexists(keys.session_key(sid), "end")]

    assert await swept() == []
    await until(lambda: all(server.gateway.write_behind.is_flushed() for server in gateways))
    stored = await gateways[0].gateway.storage.session("finished")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("done", "words")
    for server in gateways:
        server.gateway.accepting_since = time.monotonic()
    assert await swept() == []
    async with await WsClient.open(gateways[1].url) as ws:
        assert (await resumed(ws, "tries"))["state"] == "recording"
        for server in gateways:
            server.gateway.accepting_since = time.monotonic() - 60.0
        assert await swept() == ["gone"]


async def test_resume_and_interruption_at_once(gateways: Gateways, worker: FakeWorker, redis_url: str) -> None:
    """Each session is either resumed and takes audio, or is over and says so."""
    sids = [f"s{number}" for number in range(40)]
    patience(gateways, 60.0)
    lost = await WsClient.open(gateways[0].url)
    for sid in sids:
        await lost.start(sid)
        await lost.chunk(sid, 0, AUDIO)
    await drop(lost)
    await until(lambda: all(session.resume_by for session in gateways[0].gateway.sessions.values()))
    await worker.take(*sids)
    async with await WsClient.open(gateways[1].url) as ws:
        for sid in sids:
            with redis.Redis.from_url(redis_url) as client:
                client.zadd(keys.OPEN, {sid: 1}, xx=True)
            await asyncio.gather(*(server.gateway._sweep() for server in gateways))  # one is not enough
            await asyncio.gather(gateways[0].gateway._sweep(), gateways[1].gateway._sweep(), resumed(ws, sid))
            [ack] = ws.of(sid, "ack")
            if ack["state"] == "recording":
                await ws.chunk(sid, 1, AUDIO)
                await ws.send({"action": "finish", "session_id": sid})
                assert await worker.ended(sid) == "done"
            else:
                assert await worker.ended(sid) == "interrupted"
            await worker.audio(sid, 1 + (ack["state"] == "recording"))
            await worker.final(sid)
            await ws.find(sid, "final_result")
    await until(lambda: not any(server.gateway.sessions for server in gateways))


def swept_by_hand(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    """Let no gateway look for sessions of dead ones by itself; return what lets the second one look once."""

    async def nothing(spare: bool) -> None:
        pass

    sweep = gateways[1].gateway.adoption.sweep
    for server in gateways:
        monkeypatch.setattr(server.gateway.adoption, "sweep", nothing)
    return lambda: sweep(spare=False)


async def test_a_client_that_comes_in_the_last_moment(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it resumes, its time ends: it is not told that it may go on, and then that the session is over."""
    patience(gateways, 60.0)
    gateway = gateways[0].gateway
    lost = await WsClient.open(gateways[0].url)
    await lost.start("s")
    await drop(lost)
    await until(lambda: gateway.sessions["s"].resume_by)
    read = gateway.broker.read_events

    async def slowly(sid: str, *after: str) -> list[Result]:
        session = gateway.sessions["s"]
        session.resume_by = session.resume_by and 1.0
        await gateway.sessions.repair()
        for _ in range(3):
            await gateway.broker.pipeline.submit("PING")  # whatever it sent, Redis has it
        return await read(sid, *after)

    monkeypatch.setattr(gateway.broker, "read_events", slowly)
    async with await WsClient.open(gateways[0].url) as ws:
        assert (await resumed(ws))["state"] == "recording"
        await ws.chunk("s", 0, AUDIO)


async def test_redis_was_away_for_longer_than_deadlines(
    gateways: Gateways, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards the gateways have time to extend their deadlines before others end their sessions."""
    sweep = swept_by_hand(gateways, monkeypatch)
    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("s")
        with redis.Redis.from_url(redis_url) as client:
            client.zadd(keys.OPEN, {"s": 1})
            await sweep()
            await until(lambda: client.zscore(keys.OPEN, "s") > 1)
            await sweep()
        await ws.chunk("s", 0, AUDIO)


async def test_the_clock_of_one_gateway_is_wrong(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour ahead, it neither ends the sessions of the other, nor those of its own that wait for their clients."""
    sweep = swept_by_hand(gateways, monkeypatch)
    patience(gateways, 60.0)
    lost = await WsClient.open(gateways[1].url)
    await lost.start("waits")
    await drop(lost)
    await until(lambda: gateways[1].gateway.sessions["waits"].resume_by)
    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("s")
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + 3600)
        for _ in range(2):
            await sweep()
        await gateways[1].gateway.sessions.repair()
        monkeypatch.setattr(time, "time", clock)
        await ws.chunk("s", 0, AUDIO)
        assert (await resumed(ws, "waits"))["state"] == "recording"


async def test_a_chunk_that_cannot_be_written_is_sent_again_after_a_resume(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error asks for it; later chunks are not taken."""
    broker = gateways[0].gateway.broker
    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        append = broker.append
        full = Unavailable("broker_full", "full", 7.0)
        monkeypatch.setattr(broker, "append", lambda *args: args[-1](full))
        await ws.send(chunk("s", 1, b"lost"))
        error = await ws.find("s", "error", 1)
        assert (error["code"], error["retry_after"], error["resumable"]) == ("broker_full", 7.0, True)
        monkeypatch.setattr(broker, "append", append)
        await ws.send(chunk("s", 2, b"later"))
        await until(lambda: len(ws.of("s", "error")) == 2)
        assert (ws.of("s", "error")[1]["code"], ws.of("s", "error")[1]["chunk_index"]) == ("session_detached", 2)
        assert (await resumed(ws))["next_chunk_index"] == 1
        await ws.chunk("s", 1, b"one")
        await ws.chunk("s", 2, b"two")
        await worker.take("s")
        assert list((await worker.audio("s", 3)).values()) == [AUDIO, b"one", b"two"]


async def test_a_gateway_that_stops_hands_its_sessions_over(gateways: Gateways, worker: FakeWorker) -> None:
    """Clients that resume are notified at once; others may finish; no session is interrupted."""
    one, two = gateways
    clients = {name: await WsClient.open(one.url) for name in ("resumes", "ends", "idle", "gone")}
    await clients["resumes"].start("resumes", resume=True)
    await clients["ends"].start("ends")
    await clients["gone"].start("gone")
    await clients["gone"].chunk("gone", 0, AUDIO)
    await drop(clients["gone"])
    await until(lambda: one.gateway.sessions["gone"].resume_by)
    await worker.take("resumes", "ends", "gone")
    one.gateway.closing = True
    one.application.send_away([handler for handler in one.application.connections if handler.resumable])
    draining = asyncio.ensure_future(one.gateway.drain(30))
    await until(lambda: clients["resumes"].closed and clients["idle"].closed)
    assert clients["resumes"].connection.close_code == 1012
    await clients["ends"].send({"action": "start", "session_id": "late"})
    await until(lambda: any(m.get("code") == "shutting_down" for m in clients["ends"].messages))
    await clients["ends"].chunk("ends", 0, AUDIO)
    await clients["ends"].send({"action": "finish", "session_id": "ends"})
    await worker.chunk("ends", 0)
    await worker.final("ends")
    await clients["ends"].find("ends", "final_result")
    await draining
    await one.application.close_connections()
    await one.gateway.sessions.hand_over(30)
    assert clients["ends"].connection.close_code == 1012
    async with await WsClient.open(two.url) as ws:
        for sid, following in (("resumes", 0), ("gone", 1)):
            ack = await resumed(ws, sid)
            assert (ack["state"], ack["next_chunk_index"]) == ("recording", following)
            await ws.chunk(sid, following, AUDIO)
    for ws in clients.values():
        await ws.close()


async def test_what_a_stopped_gateway_could_not_deliver_is_stored_by_another(
    gateways: Gateways, worker: FakeWorker
) -> None:
    """The session was finished, and its client left before the final result."""
    one, two = gateways
    ws = await WsClient.open(one.url)
    await ws.start("s")
    await worker.take("s")
    await ws.send({"action": "finish", "session_id": "s"})
    assert await worker.ended("s") == "done"
    await drop(ws)
    await until(lambda: one.gateway.sessions["s"].send is None)
    one.gateway.closing = True
    await one.gateway.drain(30)
    await one.gateway.sessions.hand_over(30)
    await until(lambda: "s" in two.gateway.sessions)
    await worker.final("s", "late", 0)
    await until(lambda: not two.gateway.sessions and two.gateway.write_behind.is_flushed())
    stored = await two.gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("done", "late")
