"""missing_audio.py: a session that lacks audio which was refused is interrupted, and no other is."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from asrserver.broker.keys import session_key
from asrserver.errors import Refused
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.held_bytes import LARGE_BYTES, HeldBytes
from asrserver.gateway.intake import Intake
from asrserver.gateway.missing_audio import MAX_REFUSED, MissingAudio
from asrserver.gateway.session import MAX_FLUSHES, Session
from asrserver.protocol.options import Options
from tests.fakes import FakeWorker
from tests.gateways import Gateways
from tests.waiting import until
from tests.ws_client import Message, WsClient, chunk, finish

pytestmark = pytest.mark.gen_test(timeout=30)

#: What is refused for now wherever it comes, and other audio.
UNWANTED, A, B, LARGE = b"unwanted", b"a" * 320, b"b" * 320, bytes(600_000)


@pytest.fixture(autouse=True)
def refusing(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Audio that gateways refuse for now."""
    refused = {UNWANTED}
    before = Intake._admit

    def refuse(intake: Any, session: Session, index: int, data: bytes) -> None:
        if data in refused:
            raise Refused(
                429, "quota_exceeded", "no more in this minute", retry_after=0.1, **session.order.where(index)
            )
        before(intake, session, index, data)

    monkeypatch.setattr(Intake, "_admit", refuse)
    return refused


def sent(index: int | None, data: bytes, sid: str = "s") -> Message:
    message = chunk(sid, index or 0, data)
    if index is None:
        del message["chunk_index"]
    return message


async def refuse(ws: WsClient, message: Message | bytes) -> Message:
    """Send what is refused, and wait for the refusal."""

    def errors() -> list[Message]:
        return [m for m in ws.messages if m["type"] == "error"]

    before = len(errors())
    await ws.send(message)
    await until(lambda: len(errors()) > before)
    return errors()[before]


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        ([(0, A), (1, UNWANTED), (1, B)], "done"),
        ([(0, A), (1, UNWANTED), (2, B)], "interrupted"),
        ([(0, A), (1, UNWANTED)], "interrupted"),
        ([(0, A), (1, UNWANTED), (2, UNWANTED), (1, A), (2, B)], "done"),
        ([(0, A), (1, UNWANTED), (2, UNWANTED), (1, A)], "interrupted"),
        ([(0, A), (1, UNWANTED), (2, UNWANTED), (2, A)], "interrupted"),
        ([(0, A), (1, UNWANTED), (2, b""), (1, A), (2, b""), (3, B)], "done"),
        ([(0, A), (1, b""), (2, B)], "done"),
        ([(0, UNWANTED), (0, A)], "done"),
        ([(0, UNWANTED), (1, A)], "interrupted"),
        ([(7, UNWANTED), (7, A), (8, B)], "done"),
        ([(None, A), (None, UNWANTED), (None, B)], "interrupted"),
        ([(None, A), (None, UNWANTED)], "interrupted"),
    ],
)
async def test_chunks_that_come_again_and_others(
    url: str, worker: FakeWorker, chunks: list[tuple[int | None, bytes]], status: str
) -> None:
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        for index, data in chunks:
            if data in (UNWANTED, b""):
                await refuse(ws, sent(index, data))
            else:
                await ws.send(sent(index, data))
        await ws.send(finish())
        await worker.take("s")
        assert await worker.ended("s") == status


async def test_a_chunk_without_an_index_that_comes_again(url: str, worker: FakeWorker, refusing: set[bytes]) -> None:
    """It is known by its audio, also behind another one that was refused, and after a second refusal."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.send(sent(None, A))
        for _ in range(2):
            for data in (UNWANTED, b"x" + UNWANTED):
                refusing.add(data)
                await refuse(ws, sent(None, data))
        refusing.clear()
        for data in (UNWANTED, b"x" + UNWANTED, B):
            await ws.send(sent(None, data))
        await ws.send(finish())
        await worker.take("s")
        assert await worker.ended("s") == "done"
        assert list((await worker.audio("s", 4)).values()) == [A, UNWANTED, b"x" + UNWANTED, B]


async def test_what_is_no_chunk_of_the_session(
    url: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush too many, a start, a resume, a finish, and a chunk of another session of the connection."""
    async with await WsClient.open(url) as ws:
        await ws.start("other")
        await ws.start("s")
        await ws.chunk("s", 0, A)
        for _ in range(MAX_FLUSHES):
            await ws.send({"action": "flush", "session_id": "s"})
        assert (await refuse(ws, {"action": "flush", "session_id": "s"}))["code"] == "too_fast"
        monkeypatch.setattr(gateway.sessions.shedder, "check_start", no_start)
        assert (await refuse(ws, {"action": "start", "session_id": "new"}))["code"] == "overloaded"
        assert (await refuse(ws, {"action": "resume", "session_id": "none"}))["code"] == "no_session"
        assert (await refuse(ws, {"action": "finish", "session_id": "none"}))["code"] == "no_session"
        assert (await refuse(ws, sent(0, UNWANTED, "other")))["code"] == "quota_exceeded"
        await ws.send(sent(None, B))  # no index is passed over either
        await ws.find("s", "ack", 1)
        await ws.send(finish())
        await ws.send(finish("other"))
        await worker.take("s", "other")
        assert (await worker.ended("s"), await worker.ended("other")) == ("done", "interrupted")


def no_start(_owner: str) -> None:
    raise Refused(503, "overloaded", "too much waits", retry_after=0.1)


def refuse_one_large_message(held: HeldBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no room, once, for a message that is not whole yet: it is refused unread."""
    full = iter((True,))

    def grew(owner: str, before: int, now: int) -> bool:
        held.add(owner, now - before)
        return now > LARGE_BYTES and next(full, False)

    monkeypatch.setattr(held, "grew", grew)


@pytest.mark.parametrize(
    ("sids", "again", "statuses"),
    [
        (["s"], None, ["interrupted"]),
        (["s"], 1, ["done"]),
        (["s"], 2, ["interrupted"]),
        (["s", "t"], 2, ["interrupted", "done"]),
        (["s", "t"], 1, ["done", "done"]),
    ],
)
async def test_a_message_that_was_refused_unread(
    url: str,
    gateway: Gateway,
    worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    sids: list[str],
    again: int | None,
    statuses: list[str],
) -> None:
    """It may have been a chunk of any session; which one it was shows when that passes its index over."""
    async with await WsClient.open(url) as ws:
        for sid in sids:
            await ws.start(sid)
            await ws.chunk(sid, 0, A)
        refuse_one_large_message(gateway.held, monkeypatch)
        error = await refuse(ws, chunk("s", 1, LARGE))
        assert (error["code"], "session_id" in error) == ("overloaded", False)
        if again is not None:
            await ws.chunk("s", again, A)
        for sid in sids[1:]:
            await ws.chunk(sid, 1, B)
        for sid in sids:
            await ws.send(finish(sid))
        await worker.take(*sids)
        assert [await worker.ended(sid) for sid in sids] == statuses


async def test_a_doubt_is_known_wherever_the_session_is_resumed(
    gateways: Gateways, worker: FakeWorker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed while its connection is still open, by a client that no longer has the chunk, and so sends it empty."""
    async with await WsClient.open(gateways[0].url) as ws, await WsClient.open(gateways[1].url) as other:
        for sid in ("s", "t"):
            await ws.start(sid)
            await ws.chunk(sid, 0, A)
        refuse_one_large_message(gateways[0].gateway.held, monkeypatch)
        assert (await refuse(ws, chunk("s", 1, LARGE)))["code"] == "overloaded"
        with redis.Redis.from_url(redis_url) as client:
            await until(lambda: client.hget(session_key("s"), "missing") == b"1?")
        await other.send({"action": "resume", "session_id": "s"})
        await other.find("s", "ack")
        assert (await refuse(other, chunk("s", 1, b"")))["code"] == "empty_chunk"
        await other.chunk("s", 2, B)
        await other.send(finish("s"))
        await ws.send(finish("t"))
        await worker.take("s", "t")
        assert (await worker.ended("s"), await worker.ended("t")) == ("interrupted", "done")


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("left", ["open", "closed"])
@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ([(0, A), (1, UNWANTED)], [], "interrupted"),
        ([(0, A), (1, UNWANTED)], [(1, B)], "done"),
        ([(0, A), (1, UNWANTED), (2, B)], [(3, B)], "interrupted"),
        ([(0, A), (1, UNWANTED), (1, B)], [(2, A)], "done"),
        ([(None, A), (None, UNWANTED)], [(None, UNWANTED)], "done"),
        ([(None, A), (None, UNWANTED)], [(None, B)], "interrupted"),
    ],
)
async def test_a_session_that_is_resumed(
    gateways: Gateways,
    worker: FakeWorker,
    redis_url: str,
    refusing: set[bytes],
    elsewhere: bool,
    left: str,
    before: list[tuple[int | None, bytes]],
    after: list[tuple[int | None, bytes]],
    status: str,
) -> None:
    async with await WsClient.open(gateways[0].url) as ws, await WsClient.open(gateways[elsewhere].url) as other:
        await ws.start("s")
        for index, data in before:
            if data == UNWANTED:
                await refuse(ws, sent(index, data))
            else:
                await ws.send(sent(index, data))
        accepted = sum(data != UNWANTED for _, data in before)
        await until(lambda: sum(m.get("status") == "received" for m in ws.messages) == accepted)
        missing = gateways[0].gateway.sessions["s"].order.missing
        if left == "closed":
            await ws.close()
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            await until(lambda: not missing or client.hget(session_key("s"), "missing") == str(missing))
        refusing.clear()
        await other.send({"action": "resume", "session_id": "s"})
        await other.find("s", "ack")
        for index, data in after:
            await other.send(sent(index, data))
        await other.send(finish())
        await worker.take("s")
        assert await worker.ended("s") == status


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("again", [False, True])
async def test_a_chunk_for_which_redis_had_no_room(
    gateways: Gateways, worker: FakeWorker, redis_url: str, elsewhere: bool, again: bool
) -> None:
    """The client resumes, and need not send it again."""
    with redis.Redis.from_url(redis_url) as client:
        async with await WsClient.open(gateways[0].url) as ws, await WsClient.open(gateways[elsewhere].url) as other:
            await ws.start("s")
            await ws.chunk("s", 0, A)
            try:
                client.config_set("maxmemory", "1")
                assert (await refuse(ws, chunk("s", 1, B)))["code"] == "broker_full"
            finally:
                client.config_set("maxmemory", "0")
            await until(lambda: client.hget(session_key("s"), "missing") == b"1")
            await other.send({"action": "resume", "session_id": "s"})
            await other.find("s", "ack")
            if again:
                await other.chunk("s", 1, B)
            await other.send(finish())
            await worker.take("s")
            assert await worker.ended("s") == ("done" if again else "interrupted")


def test_what_is_remembered_is_bounded() -> None:
    missing = MissingAudio()
    for index in range(MAX_REFUSED + 1):
        missing.doubt(index)
        missing.refuse(index)
    assert (bool(missing), missing.lost, missing.is_awaited, str(missing)) == (True, True, False, "lost")
    missing.refuse(5)
    missing.doubt(5)
    assert not missing.is_awaited


def test_what_redis_has_of_it() -> None:
    """Of chunks that came, the gateway that took them need not have told Redis."""
    missing, other = MissingAudio(), MissingAudio()
    assert str(missing) == ""
    for index in (3, 4, 5):
        missing.refuse(index)
    missing.refuse(None, UNWANTED)
    other.restore(str(missing), 4)
    other.accept(5, 5, A)
    assert (bool(other), other.lost) == (True, False)
    other.accept(None, 6, UNWANTED)
    assert (bool(other), str(other)) == (False, "")
    other.restore("lost", None)
    assert other.lost


def test_what_redis_has_of_doubts() -> None:
    """An unread message may have been a chunk: a resume changes nothing in that."""
    missing, other = MissingAudio(), MissingAudio()
    missing.doubt(4)
    missing.doubt(5)
    other.restore(str(missing), 4)
    assert (bool(other), other.is_certain) == (True, False)
    other.accept(6, 6, A)
    assert other.lost


def test_a_garbled_message_before_the_first_chunk_is_no_chunk() -> None:
    """The first chunk may have any index."""
    session = Session("s", "", Options(), None)
    session.order.refuse_unread()
    assert not session.order.missing.is_awaited
