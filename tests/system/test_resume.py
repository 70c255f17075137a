"""Resuming: two real gateways on one Redis and PostgreSQL, a worker that is told, clients that come and go."""

from __future__ import annotations

import asyncio

import pytest
import redis

from asrserver.broker import keys
from asrserver.errors import Unavailable
from asrserver.gateway import persistence
from asrserver.handlers import websocket
from asrserver.storage.errors import StorageUnavailable
from tests.conftest import Door, until
from tests.fakes import Pretender
from tests.handlers.test_websocket import raw, said
from tests.ws_client import Message, Talk, chunk, look

pytestmark = pytest.mark.gen_test(timeout=60)

AUDIO = bytes(range(256)) * 8


def resume(sid: str = "s", last_seq: int = 0) -> Message:
    return {"action": "resume", "session_id": sid, "last_seq": last_seq}


async def drop(talk: Talk) -> None:
    """The client's network is gone."""
    talk.drop()
    await talk.close()


async def resumed(talk: Talk, sid: str = "s", last_seq: int = 0) -> Message:
    """Resume; the acknowledgement."""
    await talk.send(resume(sid, last_seq))
    await until(lambda: any(m.get("status") == "session_resumed" for m in talk.of(sid)), what=str(talk.messages))
    return next(m for m in talk.of(sid) if m.get("status") == "session_resumed")


def patience(doors: tuple[Door, Door], seconds: float) -> None:
    """How long sessions wait for their clients."""
    for door in doors:
        object.__setattr__(door.gateway.settings, "resume_timeout", seconds)


# -- what is replayed, and from where it goes on


async def test_a_session_goes_on_at_the_other_gateway(doors: tuple[Door, Door], worker: Pretender) -> None:
    """Missed results once and in order, then the next ones; audio from the first chunk that is not there."""
    one, two = doors
    lost = await Talk.open(one.url)
    await lost.start("s", user_id="someone")
    await worker.take("s")
    for index in range(4):
        await lost.chunk("s", index, AUDIO)
    await worker.chunk("s", 0, "zero")
    await lost.find("s", "chunk_result", 0)
    await drop(lost)
    await worker.chunk("s", 1, "one")  # while nobody is there
    async with await Talk.open(two.url) as talk:
        ack = await resumed(talk, last_seq=1)
        assert ack == {
            "type": "ack",
            "session_id": "s",
            "status": "session_resumed",
            "state": "recording",
            "next_chunk_index": 4,
        }
        await worker.chunk("s", 2, "two")
        await talk.send(chunk("s", 3, AUDIO))  # its acknowledgement may have been lost
        await talk.chunk("s", 4, AUDIO)
        assert list(await worker.audio("s", 2)) == ["4-0", "5-0"]
        await worker.chunk("s", 3, "three")
        await worker.chunk("s", 4, "four")
        await talk.send({"action": "finish", "session_id": "s"})
        await worker.final("s", "all", 5)
        final = await talk.find("s", "final_result")
        assert (final["text"], final["status"], final["seq"]) == ("all", "done", 6)
        results = [(m["seq"], m["chunk_index"], m["text"]) for m in talk.of("s", "chunk_result")]
        assert results == [(2, 1, "one"), (3, 2, "two"), (4, 3, "three"), (5, 4, "four")]
        assert [m["chunk_index"] for m in talk.of("s", "ack")[1:]] == [3, 4]
    await until(lambda: not one.gateway.sessions and not two.gateway.sessions)
    await until(lambda: two.gateway.recorder.settled() and one.gateway.recorder.settled())
    stored = await two.gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["user_id"]) == ("done", "someone")
    assert [c["text"] for c in stored["chunks"]] == ["zero", "one", "two", "three", "four"]


async def test_a_session_of_which_everything_is_trimmed(doors: tuple[Door, Door], worker: Pretender) -> None:
    """Where it goes on is known although Redis has none of its audio any more."""
    one, two = doors
    lost = await Talk.open(one.url)
    await lost.start("s")
    await worker.take("s")
    for index in (7, 8):
        await lost.chunk("s", index, AUDIO)
        await worker.chunk("s", index)
        await lost.find("s", "chunk_result", index)
    await drop(lost)
    async with await Talk.open(two.url) as talk:
        assert (await resumed(talk, last_seq=2))["next_chunk_index"] == 9
        await talk.send(chunk("s", 6, AUDIO))
        await talk.send(chunk("s", 11, AUDIO))
        await until(lambda: len(talk.of("s", "error")) == 2)
        assert [(m["code"], m["expected"]) for m in talk.of("s", "error")] == [("chunk_gap", 9)] * 2
        await talk.chunk("s", 8, AUDIO)
        await talk.send(AUDIO)  # a binary frame is the next chunk of the session that was resumed
        await talk.find("s", "ack", 9)
        assert list(await worker.audio("s", 1)) == ["10-0"]


async def test_a_session_that_is_gone_is_let_go_of(
    doors: tuple[Door, Door], worker: Pretender, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its fields are read once; where nothing new is found, again: it may be no more."""
    stored = doors[0].gateway.recorder
    async with await Talk.open(doors[0].url) as talk:
        await talk.start("s")
        await worker.take("s")
        await talk.chunk("s", 0, AUDIO)
        await worker.chunk("s", 0)
        await talk.find("s", "chunk_result", 0)
        await until(stored.settled)
        stored.mark("s")  # nothing is new
        await until(lambda: stored.settled() and stored._stored["s"].session is not None)
        with look(redis_url) as client:
            client.delete(keys.session_key("s"), keys.events_key("s"))
        stored.mark("s")
        await until(lambda: stored.settled() and "s" not in stored._stored)
        assert "session=s is gone from Redis" in caplog.text


async def test_a_long_session_keeps_the_last_results(
    doors: tuple[Door, Door], worker: Pretender, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis keeps what the client was not sent, what is not stored, and the last results; it is told what it missed."""
    monkeypatch.setattr(persistence, "KEEP", 5)
    one, two = doors

    def kept() -> list[int]:
        with look(redis_url) as client:
            return [int(fields["seq"]) for _, fields in client.xrange(keys.events_key("s")) if "seq" in fields]

    async def say(talk: Talk, first: int, last: int) -> None:
        for index in range(first, last):
            await talk.chunk("s", index, AUDIO)
            await worker.chunk("s", index)
            await talk.find("s", "chunk_result", index)
            if index % 3 == 2:
                await until(one.gateway.recorder.settled)
        await until(one.gateway.recorder.settled)

    lost = await Talk.open(one.url)
    await lost.start("s")
    await worker.take("s")
    await say(lost, 0, 20)
    assert len(kept()) <= 2 * 5 + 3
    assert kept()[-5:] == [16, 17, 18, 19, 20]
    with monkeypatch.context() as patch:  # PostgreSQL is away
        patch.setattr(one.gateway.storage, "save", unavailable)
        unstored = kept()
        for index in range(20, 40):
            await lost.chunk("s", index, AUDIO)
            await worker.chunk("s", index)
            await lost.find("s", "chunk_result", index)
        assert kept() == [*unstored, *range(21, 41)]
    await until(one.gateway.recorder.settled)
    await say(lost, 40, 50)
    assert len(kept()) <= 2 * 5 + 3
    for index in range(50, 70):
        await lost.chunk("s", index, AUDIO)
    await drop(lost)
    await until(lambda: one.gateway.sessions["s"].send is None)
    for index in range(50, 70):  # nobody is there to be sent them
        await worker.chunk("s", index)
        if index % 10 == 9:
            await until(one.gateway.recorder.settled)
    assert kept()[-20:] == list(range(51, 71))
    first = kept()[0]
    async with await Talk.open(two.url) as talk:
        ack = await resumed(talk, last_seq=first - 1)
        assert "missed" not in ack
        await talk.find("s", "chunk_result", 69)
        assert [m["seq"] for m in talk.of("s", "chunk_result")] == list(range(first, 71))
    async with await Talk.open(one.url) as talk:
        ack = await resumed(talk)
        assert (ack["missed"], ack["next_chunk_index"]) == (kept()[0] - 1, 70)
        await talk.find("s", "chunk_result", 69)
        assert [m["seq"] for m in talk.of("s", "chunk_result")] == kept()
        await talk.send({"action": "finish", "session_id": "s"})
        await worker.final("s", "all", 70)
        assert (await talk.find("s", "final_result"))["text"] == "all"
    await until(one.gateway.recorder.settled)
    stored = await one.gateway.storage.session("s")
    assert stored is not None
    assert [row["chunk_index"] for row in stored["chunks"]] == list(range(70))


async def unavailable(_records: object) -> None:
    raise StorageUnavailable("away")


async def test_a_session_without_a_chunk(doors: tuple[Door, Door], worker: Pretender) -> None:
    lost = await Talk.open(doors[0].url)
    await lost.start("s")
    await drop(lost)
    async with await Talk.open(doors[1].url) as talk:
        assert (await resumed(talk))["next_chunk_index"] == 0
        await talk.chunk("s", 3, AUDIO)
        await worker.take("s")
        await worker.chunk("s", 3)
        assert (await talk.find("s", "chunk_result"))["seq"] == 1


async def test_resuming_after_finish(doors: tuple[Door, Door], worker: Pretender) -> None:
    """Before the final result, and after it, for as long as Redis has the session: it comes, once each time."""
    lost = await Talk.open(doors[0].url)
    await lost.start("s")
    await worker.take("s")
    await lost.chunk("s", 0, AUDIO)
    await worker.chunk("s", 0)
    await lost.send({"action": "finish", "session_id": "s"})
    assert await worker.ended("s") == "done"
    await drop(lost)
    async with await Talk.open(doors[1].url) as talk:
        ack = await resumed(talk, last_seq=1)
        assert (ack["state"], ack["next_chunk_index"]) == ("finishing", 1)
        await talk.send(chunk("s", 1, AUDIO))
        assert (await talk.find("s", "error"))["code"] == "session_finished"
        await worker.final("s")
        await talk.find("s", "final_result")
    for door in doors:
        await until(lambda door=door: door.gateway.recorder.settled() and not door.gateway.sessions)
        async with await Talk.open(door.url) as talk:
            await resumed(talk)
            await talk.find("s", "final_result")
            assert [(m["type"], m.get("seq")) for m in talk.messages] == [
                ("ack", None),
                ("chunk_result", 1),
                ("final_result", 2),
            ]
            await talk.send(chunk("s", 1, AUDIO))
            assert (await talk.find("s", "error"))["code"] == "session_finished"
        assert not door.gateway.sessions


async def test_resuming_on_the_connection_that_has_it(doors: tuple[Door, Door], worker: Pretender) -> None:
    """Harmless: what the client says that it has not got comes again, and the session goes on."""
    async with await Talk.open(doors[0].url) as talk:
        await talk.start("s")
        await worker.take("s")
        await talk.chunk("s", 0, AUDIO)
        await worker.chunk("s", 0)
        await talk.find("s", "chunk_result")
        await resumed(talk)
        await talk.chunk("s", 1, AUDIO)
        await worker.chunk("s", 1)
        await talk.find("s", "chunk_result", 1)
        assert [m["seq"] for m in talk.of("s", "chunk_result")] == [1, 1, 2]
        assert not talk.of("s", "error")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (resume("unknown"), "no_session"),
        ({"action": "resume"}, "bad_id"),
        (resume("a b"), "bad_id"),
        (resume("s", -1), "bad_seq"),
        (resume("s", 1), "bad_seq"),
        ({**resume(), "last_seq": "1"}, "bad_seq"),
        ({**resume(), "last_seq": True}, "bad_seq"),
    ],
)
async def test_a_resume_that_cannot_be(doors: tuple[Door, Door], message: Message, code: str) -> None:
    """A clear error; the connection and its sessions go on."""
    async with await Talk.open(doors[0].url) as talk:
        await talk.start("other")
        await talk.start("s")
        await talk.send(message)
        await until(lambda: any(m["type"] == "error" for m in talk.messages))
        assert [m["code"] for m in talk.messages if m["type"] == "error"] == [code]
        await talk.chunk("other", 0, AUDIO)
        await resumed(talk)
        await talk.chunk("s", 0, AUDIO)


async def test_a_replay_is_no_faster_than_its_reader(
    doors: tuple[Door, Door], worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many times what may wait for a client: all of it comes, in order, with what is said meanwhile; or it is cut."""
    monkeypatch.setattr(websocket, "MAX_UNREAD", 1 << 15)
    monkeypatch.setattr(websocket, "REPLAYED", 1 << 12)
    one, two = doors
    object.__setattr__(two.gateway.settings, "unread_timeout", 0.5)
    async with await Talk.open(one.url) as lost:
        await lost.start("s")
    await worker.take("s")
    for _ in range(1000):
        await worker.say("s", "error", code="x", message="y" * 300)
    async with await Talk.open(two.url) as talk:
        await talk.send(resume())
        await asyncio.gather(*(worker.say("s", "error", code="x", message="y" * 300) for _ in range(100)))
        await until(lambda: len(talk.of("s", "error")) == 1100)
        assert [m["seq"] for m in talk.of("s", "error")] == list(range(1, 1101))
        deaf = await raw(two.url)
        await deaf.write(said(resume()))
        assert (await talk.find("s", "error", None))["seq"] == 1
        await until(lambda: any(m.get("code") == "session_moved" for m in talk.messages))
        await until(lambda: (it := two.gateway.sessions.get("s")) is not None and it.resume_by)
        await resumed(talk, last_seq=1100)
        deaf.close()


# -- who has it


@pytest.mark.parametrize("where", [0, 1])
async def test_resume_takes_the_session_from_a_half_open_connection(
    doors: tuple[Door, Door], worker: Pretender, where: int
) -> None:
    """On the same gateway or another: the old connection is told, and can do nothing more in it."""
    async with await Talk.open(doors[0].url) as old, await Talk.open(doors[where].url) as new:
        await old.start("kept")
        await old.start("s")
        await old.chunk("s", 0, AUDIO)
        assert (await resumed(new))["next_chunk_index"] == 1
        error = await old.find("s", "error")
        assert error["code"] == "session_moved"
        await old.send(chunk("s", 1, AUDIO + b"old"))
        await old.send({"action": "finish", "session_id": "s"})
        await until(lambda: len(old.of("s", "error")) == 3)
        assert [m["code"] for m in old.of("s", "error")[1:]] == ["session_moved"] * 2
        await new.chunk("s", 1, AUDIO)
        await worker.take("s")
        await worker.chunk("s", 0)
        await new.find("s", "chunk_result", 0)
        assert not old.of("s", "chunk_result")
        await old.chunk("kept", 0, AUDIO)
        assert (await worker.audio("s", 1))["2-0"] == AUDIO
        assert "s" not in doors[1 - where].gateway.sessions
        assert "s" in doors[where].gateway.sessions


async def test_the_news_of_a_move_are_lost(
    doors: tuple[Door, Door], worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pub/Sub may lose: a gateway asks whose its sessions are when it puts off their deadlines."""
    one, two = doors
    monkeypatch.setattr(one.gateway.sessions, "on_event", lambda event: None)
    one.gateway._background.standing[0].cancel()
    async with await Talk.open(one.url) as old, await Talk.open(two.url) as new:
        await old.start("s")
        await resumed(new)
        assert (await old.find("s", "error"))["code"] == "session_moved"
        await until(lambda: not one.gateway.sessions)


async def test_chunks_on_their_way_when_the_session_moves(
    doors: tuple[Door, Door], worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused, or they would stand where the client puts others."""
    one, two = doors
    held = []
    call = one.gateway.broker.pipeline.call
    async with await Talk.open(one.url) as old, await Talk.open(two.url) as new:
        await old.start("s")
        await old.chunk("s", 0, AUDIO)
        monkeypatch.setattr(one.gateway.broker.pipeline, "call", lambda *a, **k: held.append((a, k)))
        await old.send(chunk("s", 1, b"old"))
        await old.send(chunk("s", 2, b"old"))
        await until(lambda: len(held) >= 2)
        assert (await resumed(new))["next_chunk_index"] == 1
        await new.chunk("s", 1, b"new")
        monkeypatch.setattr(one.gateway.broker.pipeline, "call", call)
        for args, kwargs in held:
            call(*args, **kwargs)
        await old.find("s", "error")
        await new.chunk("s", 2, b"newer")
        await worker.take("s")
        assert list((await worker.audio("s", 3)).values()) == [AUDIO, b"new", b"newer"]
        assert len(old.of("s", "ack")) == 2


async def test_to_and_fro_a_hundred_times(doors: tuple[Door, Door], worker: Pretender) -> None:
    """Each result reaches its client once, whoever has the session when it comes."""
    talk = await Talk.open(doors[0].url)
    await talk.start("s")
    await worker.take("s")
    seen: list[int] = []
    for index in range(100):
        await talk.chunk("s", index, AUDIO)
        saying = asyncio.ensure_future(worker.chunk("s", index, str(index)))
        await drop(talk)
        seen += [m["seq"] for m in talk.of("s", "chunk_result")]
        talk = await Talk.open(doors[(index + 1) % 2].url)
        ack = await resumed(talk, last_seq=seen[-1] if seen else 0)
        assert ack["next_chunk_index"] == index + 1
        await saying
    await talk.send({"action": "finish", "session_id": "s"})
    await worker.final("s", chunks=100)
    await talk.find("s", "final_result")
    seen += [m["seq"] for m in talk.of("s", "chunk_result")]
    assert seen == list(range(1, 101))
    await talk.close()


# -- who does not come back


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
    await until(lambda: all(door.gateway.recorder.settled() for door in doors))
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


# -- stopping


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
    await until(lambda: not two.gateway.sessions and two.gateway.recorder.settled())
    stored = await two.gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("done", "late")
