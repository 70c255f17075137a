"""Several sessions on one WebSocket: by id, by channel, and one after another."""

from __future__ import annotations

from typing import Any

import pytest

from asrserver.gateway.intake import Intake
from asrserver.handlers import multiplex
from asrserver.handlers.app import AsrApplication
from asrserver.protocol.frames import BINARY
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO, only_socket
from tests.waiting import until
from tests.ws_client import WsClient, addressed, chunk, errors, finish, frame, said, start

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_many_sessions_on_one_connection(url: str, worker: FakeWorker) -> None:
    """Interleaved by id: every result has its session's id, and each final result comes once."""
    sids = [f"s{number}" for number in range(20)]
    async with await WsClient.open(url) as ws:
        for sid in sids:
            await ws.send(start(sid))
        for index in range(3):
            for sid in sids:
                await ws.send(chunk(sid, index, f"{sid} {index}".encode()))
        for sid in sids:
            await ws.send(finish(sid))
        await worker.take(*sids)
        for sid in reversed(sids):
            audio = await worker.audio(sid, 3)
            assert list(audio.values()) == [f"{sid} {index}".encode() for index in range(3)]
            for index in range(3):
                await worker.chunk(sid, index, f"{sid} {index}")
            await worker.final(sid, sid, 3)
        for sid in sids:
            assert (await ws.find(sid, "final_result"))["text"] == sid
            assert [message["type"] for message in ws.of(sid)].count("chunk_result") == 3
            assert [m["text"] for m in ws.of(sid, "chunk_result")] == [f"{sid} {index}" for index in range(3)]


async def test_binary_frames_of_several_sessions(url: str, worker: FakeWorker) -> None:
    """Each goes to the session of its channel, and an error names the session and the chunk."""
    async with await WsClient.open(url) as ws:
        for sid, channel in (("a", 7), ("b", 2**32 - 1)):
            await ws.send({**start(sid), "channel": channel})
            assert (await ws.find(sid, "ack"))["channel"] == channel
        await ws.start("plain")
        await ws.chunk("plain", 0, b"plain")
        await ws.send(addressed(7, 5, b"a5"))
        await ws.send(addressed(2**32 - 1, 0, b"b0"))
        await ws.send(addressed(7, 6, b"a6"))
        await ws.send(addressed(7, 6, b"a6"))
        await until(lambda: len(ws.of("a", "ack")) == 4)
        assert [message.get("chunk_index") for message in ws.of("a", "ack")] == [0, 5, 6, 6]
        await ws.find("b", "ack", 0)
        for message in (b"short", addressed(1, 0, b"x"), addressed(7, 9, b"x"), addressed(7, 7, b"")):
            await ws.send(message)
        found = await errors(ws, 4)
        assert [(error["code"], error.get("session_id"), error.get("chunk_index")) for error in found] == [
            ("bad_request", None, None),
            ("no_session", None, 0),
            ("chunk_gap", "a", 9),
            ("empty_chunk", "a", 7),
        ]
        await ws.send(addressed(7, 8, b"a8"))  # 7 was refused
        await ws.find("a", "ack", 8)
        await worker.take("a", "b", "plain")
        assert await worker.audio("a", 3) == {"6-0": b"a5", "7-0": b"a6", "9-0": b"a8"}
        assert await worker.audio("b", 1) == {"1-0": b"b0"}
        await ws.send({"action": "finish", "session_id": "a"})
        await worker.final("a")
        await ws.find("a", "final_result")
        await ws.send(addressed(7, 9, b"late"))
        assert (await errors(ws, 5))[-1]["code"] == "session_finished"


STREAM = {"mode": "stream", "format": "pcm_s16le"}


@pytest.mark.parametrize("channel", [None, 7])
async def test_frames_that_come_together_are_taken_as_one_by_one(
    url: str, worker: FakeWorker, channel: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is acknowledged, and wrong ones are refused by themselves."""
    taken: list[int] = []
    appended = Intake._append

    def counted(*given: Any) -> None:
        taken.append(len(given[3]))
        appended(*given)

    monkeypatch.setattr(Intake, "_append", counted)

    def frames(*pieces: tuple[int, bytes]) -> bytes:
        each = [data if channel is None else addressed(channel, index, data) for index, data in pieces]
        return b"".join(frame(BINARY, data) for data in each)

    async with await WsClient.open(url) as ws:
        await ws.send({**start(**STREAM), **({} if channel is None else {"channel": channel})})
        await ws.find("s", "ack")
        await ws.write(frames(*((index, b"%02d" % index) for index in range(6))))
        await ws.find("s", "ack", 5)
        await ws.write(frames((6, b"06"), (7, b""), (8, b"08")))  # the one in the middle is refused and passed over
        await ws.find("s", "ack", 8)
        if channel is not None:
            await ws.write(frames((9, b"09"), (11, b"11"), (9, b"09"), (10, b"10")))  # a gap, one again
            await ws.find("s", "ack", 10)
        found = [(error["code"], error.get("chunk_index")) for error in await errors(ws)]
        assert found == [("empty_chunk", channel and 7)] + [("chunk_gap", 11)] * (channel is not None)
        acks = [ack["chunk_index"] for ack in ws.of("s", "ack")[1:]]
        assert acks == [*range(6), 6, 8, *([9, 9, 10] if channel is not None else [])]
        assert taken[0] == 6
        await worker.take("s")
        heard = b"".join((await worker.audio("s", 1)).values())
        assert heard == b"000102030405" + b"0608" + b"0910" * (channel is not None)


async def test_frames_of_two_sessions_that_come_together(url: str, worker: FakeWorker) -> None:
    async with await WsClient.open(url) as ws:
        for sid, channel in (("a", 1), ("b", 2)):
            await ws.send({**start(sid, **STREAM), "channel": channel})
            await ws.find(sid, "ack")
        await ws.write(b"".join(frame(BINARY, addressed(1 + n % 2, n // 2, b"%d" % n)) for n in range(6)))
        await ws.find("b", "ack", 2)
        await worker.take("a", "b")
        assert b"".join((await worker.audio("a", 1)).values()) == b"024"
        assert b"".join((await worker.audio("b", 1)).values()) == b"135"


async def test_frames_that_come_with_their_start_wait_for_it(url: str, worker: FakeWorker) -> None:
    async with await WsClient.open(url) as ws:
        await ws.start("s", **STREAM)
        again = said(start("t", **STREAM))
        await ws.write(frame(BINARY, b"0") + again + b"".join(frame(BINARY, b"%d" % n) for n in range(3)))
        await ws.find("t", "ack", 2)
        await worker.take("s", "t")
        assert b"".join((await worker.audio("s", 1)).values()) == b"0"
        assert b"".join((await worker.audio("t", 1)).values()) == b"012"


async def test_channels_of_ended_sessions_are_forgotten(
    url: str, app: AsrApplication, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplex, "MAX_ENDED", 2)
    async with await WsClient.open(url) as ws:
        for channel in range(6):
            sid = f"s{channel}"
            await ws.send({**start(sid), "channel": channel})
            await ws.find(sid, "ack")
            await ws.send({"action": "finish", "session_id": sid})
            await worker.take(sid)
            await worker.final(sid)
            await ws.find(sid, "final_result")
        handler = only_socket(app)
        assert list(handler.sessions.channels) == [3, 4, 5]


async def test_acknowledgements_that_wait_for_each_other(url: str, worker: FakeWorker) -> None:
    """They come in time if nothing follows, and before a result."""
    async with await WsClient.open(url) as ws:
        for sid, interval in (("soon", 0.05), ("late", 5.0)):
            await ws.send({**start(sid), "ack_interval": interval})
            for index in range(3):
                await ws.send(chunk(sid, index, AUDIO))
        assert (await ws.find("soon", "ack", 2))["through"] is True
        assert len(ws.of("soon", "ack")) <= 3
        await worker.take("soon", "late")
        await worker.audio("late", 3)
        await worker.chunk("late", 0)
        await ws.find("late", "chunk_result")
        assert [message.get("chunk_index") for message in ws.of("late")] == [0, 2, 0]


async def test_a_session_after_another_on_one_connection(url: str, worker: FakeWorker) -> None:
    """Binary frames belong to the last session that was started."""
    async with await WsClient.open(url) as ws:
        for sid in ("one", "two"):
            await ws.start(sid)
            await ws.send(AUDIO)
            await ws.find(sid, "ack", 0)
            await ws.send({"action": "finish"})
            await worker.take(sid)
            await worker.chunk(sid, 0)
            await worker.final(sid)
            await ws.find(sid, "final_result")
        assert (await errors(ws, 0)) == []
