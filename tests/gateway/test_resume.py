"""Resuming on two real gateways with a fake worker: what is replayed, and where audio continues."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from asrserver.broker import keys
from asrserver.gateway import persistence
from asrserver.handlers import connection
from tests.fakes import FakeWorker
from tests.gateway.resuming import AUDIO, drop, resume, resumed, unavailable
from tests.gateways import Gateways, GatewayServer
from tests.waiting import until
from tests.ws_client import Message, WsClient, chunk, look, raw, said

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_a_session_goes_on_at_the_other_gateway(gateways: Gateways, worker: FakeWorker) -> None:
    """Missed results come once and in order before later ones; audio continues with the first missing chunk."""
    one, two = gateways
    lost = await WsClient.open(one.url)
    await lost.start("s", user_id="someone")
    await worker.take("s")
    for index in range(4):
        await lost.chunk("s", index, AUDIO)
    await worker.chunk("s", 0, "zero")
    await lost.find("s", "chunk_result", 0)
    await drop(lost)
    await worker.chunk("s", 1, "one")  # while nobody is there
    async with await WsClient.open(two.url) as ws:
        ack = await resumed(ws, last_seq=1)
        assert ack == {
            "type": "ack",
            "session_id": "s",
            "status": "session_resumed",
            "state": "recording",
            "next_chunk_index": 4,
        }
        await worker.chunk("s", 2, "two")
        await ws.send(chunk("s", 3, AUDIO))  # its acknowledgement may have been lost
        await ws.chunk("s", 4, AUDIO)
        assert list(await worker.audio("s", 2)) == ["4-0", "5-0"]
        await worker.chunk("s", 3, "three")
        await worker.chunk("s", 4, "four")
        await ws.send({"action": "finish", "session_id": "s"})
        await worker.final("s", "all", 5)
        final = await ws.find("s", "final_result")
        assert (final["text"], final["status"], final["seq"]) == ("all", "done", 6)
        results = [(m["seq"], m["chunk_index"], m["text"]) for m in ws.of("s", "chunk_result")]
        assert results == [(2, 1, "one"), (3, 2, "two"), (4, 3, "three"), (5, 4, "four")]
        assert [m["chunk_index"] for m in ws.of("s", "ack")[1:]] == [3, 4]
    await until(lambda: not one.gateway.sessions and not two.gateway.sessions)
    await until(lambda: two.gateway.write_behind.is_flushed() and one.gateway.write_behind.is_flushed())
    stored = await two.gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["user_id"]) == ("done", "someone")
    assert [c["text"] for c in stored["chunks"]] == ["zero", "one", "two", "three", "four"]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_client_that_knows_no_resume_goes_on(gateways: Gateways, worker: FakeWorker, elsewhere: bool) -> None:
    """With the next chunk, on another connection; it gets the results that it missed. A connected session stays."""
    one = gateways[0]
    two = gateways[elsewhere]
    lost = await WsClient.open(one.url)
    await lost.start("s")
    await worker.take("s")
    await lost.chunk("s", 0, AUDIO)
    await worker.chunk("s", 0, "zero")
    await lost.find("s", "chunk_result", 0)
    async with await WsClient.open(two.url) as ws:
        for message in (chunk("s", 1, AUDIO), {"action": "finish", "session_id": "s"}):
            assert (await ws.call(message))["code"] == "no_session"
        await drop(lost)
        await worker.say("s", "error", code="recognition_failed", message="no")
        await ws.chunk("s", 1, AUDIO)
        await ws.send({"action": "finish", "session_id": "s"})
        await worker.chunk("s", 1, "one")
        await worker.final("s", "zero one", 2)
        final = await ws.find("s", "final_result")
        assert (final["text"], final["status"], final["chunk_count"]) == ("zero one", "done", 2)
        assert [m["text"] for m in ws.of("s", "chunk_result")] == (["zero"] if elsewhere else []) + ["one"]
        assert len(ws.of("s", "error")) == 3
        await ws.send({"action": "finish", "session_id": "s"})
        await until(lambda: ws.messages[-1].get("code") == "session_finished")


async def test_a_session_of_which_everything_is_trimmed(gateways: Gateways, worker: FakeWorker) -> None:
    """The next chunk index is known although Redis has none of the audio any more."""
    one, two = gateways
    lost = await WsClient.open(one.url)
    await lost.start("s")
    await worker.take("s")
    for index in (7, 8):
        await lost.chunk("s", index, AUDIO)
        await worker.chunk("s", index)
        await lost.find("s", "chunk_result", index)
    await drop(lost)
    async with await WsClient.open(two.url) as ws:
        assert (await resumed(ws, last_seq=2))["next_chunk_index"] == 9
        await ws.send(chunk("s", 6, AUDIO))
        await ws.send(chunk("s", 11, AUDIO))
        await until(lambda: len(ws.of("s", "error")) == 2)
        assert [(m["code"], m["expected"]) for m in ws.of("s", "error")] == [("chunk_gap", 9)] * 2
        await ws.chunk("s", 8, AUDIO)
        await ws.send(AUDIO)  # a binary frame is the next chunk of the session that was resumed
        await ws.find("s", "ack", 9)
        assert list(await worker.audio("s", 1)) == ["10-0"]


async def test_a_session_that_is_gone_is_let_go_of(
    gateways: Gateways, worker: FakeWorker, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its fields are read once, and again if there is nothing new: the session may no longer exist."""
    stored = gateways[0].gateway.write_behind
    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("s")
        await worker.take("s")
        await ws.chunk("s", 0, AUDIO)
        await worker.chunk("s", 0)
        await ws.find("s", "chunk_result", 0)
        await until(stored.is_flushed)
        stored.mark_dirty("s")  # nothing is new
        await until(lambda: stored.is_flushed() and stored._clean["s"].session is not None)
        with look(redis_url) as client:
            client.delete(keys.session_key("s"), keys.events_key("s"))
        stored.mark_dirty("s")
        await until(lambda: stored.is_flushed() and "s" not in stored._clean)
        assert "session=s is no longer in Redis" in caplog.text


def kept_events(redis_url: str) -> list[int]:
    """The sequence numbers of the events of session s that Redis has."""
    with look(redis_url) as client:
        return [int(fields["seq"]) for _, fields in client.xrange(keys.events_key("s")) if "seq" in fields]


async def answered_chunks(ws: WsClient, worker: FakeWorker, server: GatewayServer, first: int, last: int) -> None:
    """Send chunks of session s, each with its result; after every third, wait until the gateway has stored all."""
    for index in range(first, last):
        await ws.chunk("s", index, AUDIO)
        await worker.chunk("s", index)
        await ws.find("s", "chunk_result", index)
        if index % 3 == 2:
            await until(server.gateway.write_behind.is_flushed)
    await until(server.gateway.write_behind.is_flushed)


async def test_a_long_session_keeps_the_last_results(
    gateways: Gateways, worker: FakeWorker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis keeps unsent and unstored events and the last results; the client is told how many it missed."""
    monkeypatch.setattr(persistence, "MIN_KEPT_EVENTS", 5)
    one, two = gateways
    kept = partial(kept_events, redis_url)
    lost = await WsClient.open(one.url)
    await lost.start("s")
    await worker.take("s")
    await answered_chunks(lost, worker, one, 0, 20)
    assert 5 <= len(kept()) <= 2 * 5 + 3
    assert kept()[-5:] == [16, 17, 18, 19, 20]
    with monkeypatch.context() as patch:  # PostgreSQL is away
        patch.setattr(one.gateway.storage, "save", unavailable)
        unstored = kept()
        for index in range(20, 40):
            await lost.chunk("s", index, AUDIO)
            await worker.chunk("s", index)
            await lost.find("s", "chunk_result", index)
        assert kept() == [*unstored, *range(21, 41)]
    await until(one.gateway.write_behind.is_flushed)
    await answered_chunks(lost, worker, one, 40, 50)
    assert len(kept()) <= 2 * 5 + 3
    for index in range(50, 70):
        await lost.chunk("s", index, AUDIO)
    await drop(lost)
    await until(lambda: one.gateway.sessions["s"].send is None)
    for index in range(50, 70):  # nobody is there to be sent them
        await worker.chunk("s", index)
        if index % 10 == 9:
            await until(one.gateway.write_behind.is_flushed)
    assert kept()[-20:] == list(range(51, 71))
    first = kept()[0]
    async with await WsClient.open(two.url) as ws:
        ack = await resumed(ws, last_seq=first - 1)
        assert "missed" not in ack
        await ws.find("s", "chunk_result", 69)
        assert [m["seq"] for m in ws.of("s", "chunk_result")] == list(range(first, 71))
    async with await WsClient.open(one.url) as ws:
        ack = await resumed(ws)
        assert (ack["missed"], ack["next_chunk_index"]) == (kept()[0] - 1, 70)
        await ws.find("s", "chunk_result", 69)
        assert [m["seq"] for m in ws.of("s", "chunk_result")] == kept()
        await ws.send({"action": "finish", "session_id": "s"})
        await worker.final("s", "all", 70)
        assert (await ws.find("s", "final_result"))["text"] == "all"
    await until(one.gateway.write_behind.is_flushed)
    stored = await one.gateway.storage.session("s")
    assert stored is not None
    assert [row["chunk_index"] for row in stored["chunks"]] == list(range(70))


async def test_a_session_without_a_chunk(gateways: Gateways, worker: FakeWorker) -> None:
    lost = await WsClient.open(gateways[0].url)
    await lost.start("s")
    await drop(lost)
    async with await WsClient.open(gateways[1].url) as ws:
        assert (await resumed(ws))["next_chunk_index"] == 0
        await ws.chunk("s", 3, AUDIO)
        await worker.take("s")
        await worker.chunk("s", 3)
        assert (await ws.find("s", "chunk_result"))["seq"] == 1


async def test_resuming_after_finish(gateways: Gateways, worker: FakeWorker) -> None:
    """It works before the final result and after it, while Redis has the session: the result comes once each time."""
    lost = await WsClient.open(gateways[0].url)
    await lost.start("s")
    await worker.take("s")
    await lost.chunk("s", 0, AUDIO)
    await worker.chunk("s", 0)
    await lost.send({"action": "finish", "session_id": "s"})
    assert await worker.ended("s") == "done"
    await drop(lost)
    async with await WsClient.open(gateways[1].url) as ws:
        ack = await resumed(ws, last_seq=1)
        assert (ack["state"], ack["next_chunk_index"]) == ("finishing", 1)
        await ws.send(chunk("s", 1, AUDIO))
        assert (await ws.find("s", "error"))["code"] == "session_finished"
        await worker.final("s")
        await ws.find("s", "final_result")
    for server in gateways:
        await until(lambda server=server: server.gateway.write_behind.is_flushed() and not server.gateway.sessions)
        async with await WsClient.open(server.url) as ws:
            await resumed(ws)
            await ws.find("s", "final_result")
            assert [(m["type"], m.get("seq")) for m in ws.messages] == [
                ("ack", None),
                ("chunk_result", 1),
                ("final_result", 2),
            ]
            await ws.send(chunk("s", 1, AUDIO))
            assert (await ws.find("s", "error"))["code"] == "session_finished"
        assert not server.gateway.sessions


async def test_resuming_on_the_connection_that_has_it(gateways: Gateways, worker: FakeWorker) -> None:
    """Harmless: events that the client has not received are sent again, and the session continues."""
    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("s")
        await worker.take("s")
        await ws.chunk("s", 0, AUDIO)
        await worker.chunk("s", 0)
        await ws.find("s", "chunk_result")
        await resumed(ws)
        await ws.chunk("s", 1, AUDIO)
        await worker.chunk("s", 1)
        await ws.find("s", "chunk_result", 1)
        assert [m["seq"] for m in ws.of("s", "chunk_result")] == [1, 1, 2]
        assert not ws.of("s", "error")


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
async def test_a_resume_that_cannot_be(gateways: Gateways, message: Message, code: str) -> None:
    """It is an error; the connection and its sessions continue."""
    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("other")
        await ws.start("s")
        await ws.send(message)
        await until(lambda: any(m["type"] == "error" for m in ws.messages))
        assert [m["code"] for m in ws.messages if m["type"] == "error"] == [code]
        await ws.chunk("other", 0, AUDIO)
        await resumed(ws)
        await ws.chunk("s", 0, AUDIO)


async def test_a_replay_is_no_faster_than_its_reader(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many times the limit for unread data is sent in order, with new events; a client that does not read is cut
    off."""
    monkeypatch.setattr(connection, "MAX_UNREAD", 1 << 15)
    monkeypatch.setattr(connection, "CONFIRM_BYTES", 1 << 12)
    one, two = gateways
    object.__setattr__(two.gateway.settings, "unread_timeout", 0.5)
    async with await WsClient.open(one.url) as lost:
        await lost.start("s")
    await worker.take("s")
    for _ in range(1000):
        await worker.say("s", "error", code="x", message="y" * 300)
    async with await WsClient.open(two.url) as ws:
        await ws.send(resume())
        await asyncio.gather(*(worker.say("s", "error", code="x", message="y" * 300) for _ in range(100)))
        await until(lambda: len(ws.of("s", "error")) == 1100)
        assert [m["seq"] for m in ws.of("s", "error")] == list(range(1, 1101))
        deaf = await raw(two.url)
        await deaf.write(said(resume()))
        assert (await ws.find("s", "error", None))["seq"] == 1
        await until(lambda: any(m.get("code") == "session_moved" for m in ws.messages))
        await until(lambda: (it := two.gateway.sessions.get("s")) is not None and it.resume_by)
        await resumed(ws, last_seq=1100)
        deaf.close()
