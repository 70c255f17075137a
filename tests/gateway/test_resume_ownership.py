"""Resuming: which connection and which gateway has a session."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import Pretender
from tests.gateway.resuming import AUDIO, drop, resumed
from tests.gateways import Door
from tests.waiting import until
from tests.ws_client import Talk, chunk

pytestmark = pytest.mark.gen_test(timeout=60)


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
