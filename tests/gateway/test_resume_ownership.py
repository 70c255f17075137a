"""Resuming: which connection and which gateway owns a session."""

from __future__ import annotations

import asyncio

import pytest

from asrserver.gateway.session import Session
from asrserver.handlers.connection import WebSocketConnection
from tests.fakes import FakeWorker
from tests.gateway.resuming import AUDIO, drop, resume, resumed
from tests.gateways import Gateways
from tests.waiting import until
from tests.ws_client import WsClient, chunk, finish

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.mark.parametrize("where", [0, 1])
async def test_resume_takes_the_session_from_a_half_open_connection(
    gateways: Gateways, worker: FakeWorker, where: int
) -> None:
    """On any gateway, the old connection gets an error and can do nothing more in the session."""
    async with await WsClient.open(gateways[0].url) as old, await WsClient.open(gateways[where].url) as new:
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
        assert "s" not in gateways[1 - where].gateway.sessions
        assert "s" in gateways[where].gateway.sessions


@pytest.mark.parametrize("where", [0, 1])
async def test_a_resume_past_the_end_takes_the_session_from_nobody(
    gateways: Gateways, worker: FakeWorker, where: int
) -> None:
    """It is refused before the session moves: the client that has it notices nothing."""
    async with await WsClient.open(gateways[0].url) as ws, await WsClient.open(gateways[where].url) as other:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await worker.take("s")
        await worker.chunk("s", 0)
        await ws.find("s", "chunk_result")
        await other.send(resume("s", 2))
        assert (await other.find("s", "error"))["code"] == "bad_seq"
        await ws.chunk("s", 1, AUDIO)
        await worker.chunk("s", 1)
        assert (await ws.find("s", "chunk_result", 1))["seq"] == 2
        assert not ws.of("s", "error")


@pytest.mark.parametrize("where", [0, 1])
async def test_a_replay_that_waits_while_its_session_moves(
    gateways: Gateways,
    worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: int,
) -> None:
    """The connection that lost the session delivers nothing more of it, and does not end it once more."""
    caplog.set_level("INFO", "asrserver.sessions")
    reads, confirm = asyncio.Event(), WebSocketConnection.confirm_read
    deaf: list[WebSocketConnection] = []

    async def confirm_read(handler: WebSocketConnection) -> None:
        if not deaf:
            deaf.append(handler)
        await (reads.wait() if handler is deaf[0] else confirm(handler))

    async with await WsClient.open(gateways[0].url) as lost:
        await lost.start("s")
        await worker.take("s")
        await lost.chunk("s", 0, AUDIO)
        await lost.send(finish())
        await worker.ended("s")
    await worker.chunk("s", 0)
    await worker.final("s")
    await until(lambda: not gateways[0].gateway.sessions and gateways[0].gateway.write_behind.is_flushed())
    monkeypatch.setattr(WebSocketConnection, "confirm_read", confirm_read)
    caplog.clear()
    async with await WsClient.open(gateways[0].url) as old, await WsClient.open(gateways[where].url) as new:
        await resumed(old)
        await until(lambda: deaf)
        await resumed(new)
        assert (await new.find("s", "final_result"))["text"] == "words"
        await old.find("s", "error")
        reads.set()
        await old.start("other")
        ended = [record.getMessage() for record in caplog.records if "over status=" in record.getMessage()]
        assert [message.split()[2] for message in ended] == ["status=moved"] * where + ["status=done"]
        assert not old.of("s", "final_result")


async def test_a_start_that_is_refused_leaves_what_was_resumed_meanwhile(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody starts a session whose id is in use, while its client resumes it on the same gateway."""
    there, here = gateways[0], gateways[1].gateway
    async with await WsClient.open(there.url) as lost, await WsClient.open(gateways[1].url) as new:
        await lost.start("s")
        await drop(lost)
        create = here.sessions._create

        async def slowly(session: Session) -> bool:
            await resumed(new)
            return await create(session)

        monkeypatch.setattr(here.sessions, "_create", slowly)
        async with await WsClient.open(gateways[1].url) as other:
            await other.send({"action": "start", "session_id": "s"})
            await until(lambda: any(m.get("code") == "session_exists" for m in other.messages))
            await new.chunk("s", 0, AUDIO)
            assert "s" in here.sessions
            assert {m["code"] for m in other.of("s", "error")} <= {"session_exists", "session_moved"}


async def test_the_news_of_a_move_are_lost(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pub/Sub may lose a message: a gateway also checks its sessions when it extends their deadlines."""
    one, two = gateways
    monkeypatch.setattr(one.gateway.sessions, "on_event", lambda event: None)
    one.gateway._tasks.standing["subscribe"].cancel()
    async with await WsClient.open(one.url) as old, await WsClient.open(two.url) as new:
        await old.start("s")
        await resumed(new)
        assert (await old.find("s", "error"))["code"] == "session_moved"
        await until(lambda: not one.gateway.sessions)


async def test_chunks_on_their_way_when_the_session_moves(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused; otherwise they would take the place of the client's next chunks."""
    one, two = gateways
    held = []
    call = one.gateway.broker.pipeline.call
    async with await WsClient.open(one.url) as old, await WsClient.open(two.url) as new:
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


async def test_to_and_fro_a_hundred_times(gateways: Gateways, worker: FakeWorker) -> None:
    """Each result reaches the client once, wherever the session is when it comes."""
    ws = await WsClient.open(gateways[0].url)
    await ws.start("s")
    await worker.take("s")
    seen: list[int] = []
    for index in range(100):
        await ws.chunk("s", index, AUDIO)
        saying = asyncio.ensure_future(worker.chunk("s", index, str(index)))
        await drop(ws)
        seen += [m["seq"] for m in ws.of("s", "chunk_result")]
        ws = await WsClient.open(gateways[(index + 1) % 2].url)
        ack = await resumed(ws, last_seq=seen[-1] if seen else 0)
        assert ack["next_chunk_index"] == index + 1
        await saying
    await ws.send({"action": "finish", "session_id": "s"})
    await worker.final("s", chunks=100)
    await ws.find("s", "final_result")
    seen += [m["seq"] for m in ws.of("s", "chunk_result")]
    assert seen == list(range(1, 101))
    await ws.close()
