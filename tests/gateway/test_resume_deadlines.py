"""Clients that do not come back, and gateways that stop."""

from __future__ import annotations

import asyncio

import pytest
import redis

from asrserver.broker import keys
from asrserver.errors import Unavailable
from tests.fakes import Pretender
from tests.gateway.resuming import AUDIO, drop, patience, resumed
from tests.gateways import Door
from tests.waiting import until
from tests.ws_client import Talk, chunk

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_a_session_waits_for_its_client_and_then_ends(doors: tuple[Door, Door], worker: Pretender) -> None:
    """Not before its time is over; a client that comes later gets what there is, and is told that it was cut."""
    patience(doors, 60.0)
    talk = await Talk.open(doors[0].url)
    await talk.start("s")
    await worker.take("s")
    await talk.chunk("s", 0, AUDIO)
    await drop(talk)
    await until(lambda: doors[0].gateway.sessions["s"].resume_by)
    await asyncio.gather(
        *(door.gateway._sweep() for door in doors), *(door.gateway.sessions.repair() for door in doors)
    )
    async with await Talk.open(doors[1].url) as talk:
        assert (await resumed(talk))["state"] == "recording"
        patience(doors, 0.1)
        await drop(talk)
    assert await worker.ended("s") == "interrupted"
    await worker.chunk("s", 0)
    await worker.final("s")
    async with await Talk.open(doors[0].url) as talk:
        ack = await resumed(talk)
        assert (ack["state"], ack["next_chunk_index"]) == ("finishing", 1)
        assert (await talk.find("s", "final_result"))["status"] == "interrupted"
    await until(lambda: all(door.gateway.write_behind.is_flushed() for door in doors))
    stored = await doors[0].gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("interrupted", "words")


async def test_resume_and_interruption_at_once(doors: tuple[Door, Door], worker: Pretender, redis_url: str) -> None:
    """Each session is either resumed and takes audio, or ended and says so: never acknowledged and not heard."""
    sids = [f"s{number}" for number in range(40)]
    patience(doors, 60.0)
    lost = await Talk.open(doors[0].url)
    for sid in sids:
        await lost.start(sid)
        await lost.chunk(sid, 0, AUDIO)
    await drop(lost)
    await until(lambda: all(session.resume_by for session in doors[0].gateway.sessions.values()))
    await worker.take(*sids)
    async with await Talk.open(doors[1].url) as talk:
        for sid in sids:
            with redis.Redis.from_url(redis_url) as client:
                client.zadd(keys.OPEN, {sid: 1}, xx=True)
            await asyncio.gather(doors[0].gateway._sweep(), doors[1].gateway._sweep(), resumed(talk, sid))
            [ack] = talk.of(sid, "ack")
            if ack["state"] == "recording":
                await talk.chunk(sid, 1, AUDIO)
                await talk.send({"action": "finish", "session_id": sid})
                assert await worker.ended(sid) == "done"
            else:
                assert await worker.ended(sid) == "interrupted"
            await worker.audio(sid, 1 + (ack["state"] == "recording"))
            await worker.final(sid)
            await talk.find(sid, "final_result")
    await until(lambda: not any(door.gateway.sessions for door in doors))


async def test_redis_was_away_for_longer_than_deadlines(
    doors: tuple[Door, Door], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is back, the gateways get time to answer for their sessions before others end them."""
    monkeypatch.setattr("asrserver.gateway.gateway.SWEEP_EVERY", 60.0)
    async with await Talk.open(doors[0].url) as talk:
        await talk.start("s")
        with redis.Redis.from_url(redis_url) as client:
            pipeline = doors[1].gateway.broker.pipeline
            pipeline._away_since = 1.0  # it has not answered the other gateway
            client.zadd(keys.OPEN, {"s": 1})
            await doors[1].gateway.broker.ping()
            await pipeline.submit("PING")
            assert pipeline.back_at > 0
            await doors[1].gateway._sweep()
            await until(lambda: client.zscore(keys.OPEN, "s") > 1)
        await talk.chunk("s", 0, AUDIO)


async def test_a_chunk_that_cannot_be_written_is_sent_again_after_a_resume(
    doors: tuple[Door, Door], worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says so; nothing that came after the chunk is taken."""
    broker = doors[0].gateway.broker
    async with await Talk.open(doors[0].url) as talk:
        await talk.start("s")
        await talk.chunk("s", 0, AUDIO)
        append = broker.append
        full = Unavailable("broker_full", "full", 7.0)
        monkeypatch.setattr(broker, "append", lambda *args: args[-1](full))
        await talk.send(chunk("s", 1, b"lost"))
        error = await talk.find("s", "error", 1)
        assert (error["code"], error["retry_after"], error["resumable"]) == ("broker_full", 7.0, True)
        monkeypatch.setattr(broker, "append", append)
        await talk.send(chunk("s", 2, b"later"))
        await until(lambda: len(talk.of("s", "error")) == 2)
        assert (talk.of("s", "error")[1]["code"], talk.of("s", "error")[1]["chunk_index"]) == ("session_detached", 2)
        assert (await resumed(talk))["next_chunk_index"] == 1
        await talk.chunk("s", 1, b"one")
        await talk.chunk("s", 2, b"two")
        await worker.take("s")
        assert list((await worker.audio("s", 3)).values()) == [AUDIO, b"one", b"two"]


async def test_a_gateway_that_stops_hands_its_sessions_over(doors: tuple[Door, Door], worker: Pretender) -> None:
    """Those whose clients resume are told at once; others may end; none is interrupted."""
    one, two = doors
    talks = {name: await Talk.open(one.url) for name in ("resumes", "ends", "idle", "gone")}
    await talks["resumes"].start("resumes", resume=True)
    await talks["ends"].start("ends")
    await talks["gone"].start("gone")
    await talks["gone"].chunk("gone", 0, AUDIO)
    await drop(talks["gone"])
    await until(lambda: one.gateway.sessions["gone"].resume_by)
    await worker.take("resumes", "ends", "gone")
    one.gateway.closing = True
    one.application.part([handler for handler in one.application.sockets if handler.resumable])
    draining = asyncio.ensure_future(one.gateway.drain(30))
    await until(lambda: talks["resumes"].closed and talks["idle"].closed)
    assert talks["resumes"].connection.close_code == 1012
    await talks["ends"].send({"action": "start", "session_id": "late"})
    await until(lambda: any(m.get("code") == "shutting_down" for m in talks["ends"].messages))
    await talks["ends"].chunk("ends", 0, AUDIO)
    await talks["ends"].send({"action": "finish", "session_id": "ends"})
    await worker.chunk("ends", 0)
    await worker.final("ends")
    await talks["ends"].find("ends", "final_result")
    await draining
    await one.application.shut()
    await one.gateway.sessions.hand_over(30)
    assert talks["ends"].connection.close_code == 1012
    async with await Talk.open(two.url) as talk:
        for sid, following in (("resumes", 0), ("gone", 1)):
            ack = await resumed(talk, sid)
            assert (ack["state"], ack["next_chunk_index"]) == ("recording", following)
            await talk.chunk(sid, following, AUDIO)
    for talk in talks.values():
        await talk.close()


async def test_what_a_stopped_gateway_could_not_deliver_is_stored_by_another(
    doors: tuple[Door, Door], worker: Pretender
) -> None:
    """A session that was finished, and whose client went before its last result."""
    one, two = doors
    talk = await Talk.open(one.url)
    await talk.start("s")
    await worker.take("s")
    await talk.send({"action": "finish", "session_id": "s"})
    assert await worker.ended("s") == "done"
    await drop(talk)
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
