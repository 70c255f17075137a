"""Messages of the native protocol, right and wrong, over a real socket with a real gateway and a fake worker."""

from __future__ import annotations

import socket
import struct
from typing import Any

import psutil
import pytest

from asrserver.handlers.app import AsrApplication
from asrserver.handlers.connection import MAX_UNHANDLED, WebSocketConnection
from asrserver.protocol.events import Partial, Segment, SpeechStarted, Word
from asrserver.protocol.frames import BINARY
from asrserver.protocol.transports import TcpTransport
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import Message, WsClient, chunk, errors, finish, start

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_the_messages_of_a_session(url: str, worker: FakeWorker) -> None:
    """Exactly the documented messages and fields, in order; the worker gets the audio as it was sent."""
    async with await WsClient.open(url + "?uid=1") as ws:
        assert await ws.call(start()) == {
            "type": "ack",
            "session_id": "s",
            "chunk_index": 0,
            "status": "session_started",
        }
        ack = {"type": "ack", "session_id": "s", "status": "received"}
        assert await ws.call(chunk("s", 0, AUDIO)) == {**ack, "chunk_index": 0}
        assert await ws.call(AUDIO[:100]) == {**ack, "chunk_index": 1}
        await worker.take("s")
        assert await worker.audio("s", 2) == {"1-0": AUDIO, "2-0": AUDIO[:100]}
        await worker.chunk("s", 0, "hello")
        result = await ws.next()
        expected = {"type": "chunk_result", "session_id": "s", "chunk_index": 0, "text": "hello"}
        assert expected.items() <= result.items()
        await worker.chunk("s", 1, "")
        assert (await ws.next())["chunk_index"] == 1
        await ws.send(finish())
        await worker.final("s", "hello", 2)
        expected = {"type": "final_result", "session_id": "s", "text": "hello", "duration": 1.5, "chunk_count": 2}
        expected["chunk_index"] = 0
        assert expected.items() <= (await ws.next()).items()


async def test_the_messages_of_a_stream(url: str, worker: FakeWorker) -> None:
    """Partial results as they are published, segments in order, no chunk_result."""
    async with await WsClient.open(url) as ws:
        await ws.call(start(mode="stream", partials=True, word_timestamps=True))
        await ws.call(chunk("s", 0, AUDIO))
        await worker.take("s")
        partial: Message = {"start": 0.1, "end": 0.7, "text": "hel lo", "stable": "hel", "language": "en"}
        worker.broker.publish(worker.claims["s"], Partial(session_id="s", follows=0, **partial))
        assert await ws.next() == {"type": "partial_result", "session_id": "s", **partial}
        words: list[Message] = [{"word": "hello", "start": 0.1, "end": 0.6, "confidence": 0.9}]
        segment: Message = {"number": 0, "start": 0.1, "end": 0.9, "text": "hello", "language": "en", "confidence": 0.9}
        row = Segment(**segment, words=[Word(**word) for word in words])
        await worker.say("s", "segment", text="hello", segments=[row])
        expected = {"type": "segment_result", "session_id": "s", **segment, "words": words, "seq": 1}
        assert await ws.next() == expected
        await ws.send(finish())
        await worker.final("s", "hello", 1)
        assert (await ws.next())["type"] == "final_result"


async def test_a_flush_is_answered_behind_what_it_asks_for(url: str, worker: FakeWorker) -> None:
    """It stands in Redis between the chunks before and after it, although all three were sent together."""
    async with await WsClient.open(url) as ws:
        await ws.call(start(mode="stream", format="pcm_s16le", speech_events=True))
        for message in (chunk("s", 0, AUDIO), {"action": "flush", "session_id": "s"}, chunk("s", 1, AUDIO)):
            await ws.send(message)
        assert [(await ws.next())["chunk_index"] for _ in range(2)] == [0, 1]
        await worker.take("s")
        entries = (await worker.broker.read_audio({"s": "0-1"}, 10))["s"]
        assert [(entry.id, entry.flush) for entry in entries] == [("1-0", 0), ("1-1", 1), ("2-0", 0)]
        worker.broker.publish(worker.claims["s"], SpeechStarted(session_id="s", follows=0, start=0.1))
        assert await ws.next() == {"type": "speech_started", "session_id": "s", "start": 0.1}
        await worker.say("s", "flushed", number=1, total=0.5)
        assert await ws.next() == {"type": "flushed", "session_id": "s", "number": 1, "duration": 0.5, "seq": 1}
        await ws.send(finish())
        assert (await ws.call({"action": "flush", "session_id": "s"}))["code"] == "session_finished"
        await worker.final("s", "", 2)
        assert (await ws.next())["type"] == "final_result"


async def test_an_id_is_made_where_none_is_given(url: str) -> None:
    async with await WsClient.open(url) as ws:
        made = {(await ws.call({"action": "start", "session_id": given}))["session_id"] for given in ("", None)}
        assert len(made) == 2
        assert all(len(sid) == 36 for sid in made)


async def test_a_misspelt_option_is_named(url: str) -> None:
    """That of start is refused; resume goes on all the same."""
    async with await WsClient.open(url) as ws:
        error = await ws.call({**start(), "langauge": "en"})
        assert error == {
            "type": "error",
            "code": "unknown_option",
            "message": "'langauge' is unknown (did you mean language?)",
            "session_id": "s",
            "chunk_index": None,
            "option": "langauge",
        }
        assert (await ws.call(start()))["status"] == "session_started"
        again = await ws.call({"action": "resume", "session_id": "s", "last": 5})
        assert again["warnings"] == ["the field 'last' is unknown and was ignored"]


#: What is sent, the error's code, and what else is in it.
MALFORMED: list[tuple[Any, str, Message]] = [
    ("{", "bad_json", {}),
    ("", "bad_json", {}),
    ("[]", "bad_json", {}),
    ('"text"', "bad_json", {}),
    ("[" * 100_000, "bad_json", {}),
    ({}, "bad_request", {}),
    ({"action": None}, "bad_request", {}),
    ({"action": "dance"}, "unknown_action", {}),
    ({"action": ["chunk"]}, "unknown_action", {}),
    ({"action": "chunk", "session_id": "s", "chunk_index": 1}, "bad_request", {"chunk_index": 1}),
    ({"action": "chunk", "session_id": "s", "chunk_index": 1, "audio_data": 5}, "bad_request", {"chunk_index": 1}),
    ({"action": "chunk", "session_id": "s", "chunk_index": 1, "audio_data": "???"}, "bad_base64", {"chunk_index": 1}),
    ({"action": "chunk", "session_id": "s", "chunk_index": 1, "audio_data": "QUJDR"}, "bad_base64", {}),
    ({"action": "chunk", "session_id": "s", "chunk_index": 1, "audio_data": "ü"}, "bad_base64", {}),
    (chunk("s", 1, b""), "empty_chunk", {"session_id": "s", "chunk_index": 1}),
    (b"", "empty_chunk", {"session_id": "s"}),
    (chunk("s", 7, AUDIO), "chunk_gap", {"session_id": "s", "chunk_index": 7, "expected": 1}),
    (chunk("s", -1, AUDIO), "bad_index", {}),
    ({**chunk("s", 1, AUDIO), "chunk_index": "1"}, "bad_index", {}),
    ({**chunk("s", 1, AUDIO), "chunk_index": 2**70}, "bad_index", {}),
    (chunk("other", 0, AUDIO), "no_session", {"session_id": "other"}),
    ({**chunk("s", 0, AUDIO), "session_id": ["s"]}, "no_session", {}),
    ({**chunk("s", 0, AUDIO), "session_id": {}}, "no_session", {}),
    (finish("other"), "no_session", {"session_id": "other"}),
    (start("s"), "session_exists", {"session_id": "s"}),
    (start("a b"), "bad_id", {}),
    (start(5), "bad_id", {}),  # type: ignore[arg-type]
    (start("t", user_id={"a": 1}), "bad_id", {}),
    (start("t", mode="dance"), "bad_option", {}),
    (start("t", language="klingon"), "bad_option", {}),
    (start("t", partials="yes"), "bad_option", {}),
    (start("t", silence=0), "bad_option", {}),
]


@pytest.mark.parametrize(("message", "code", "details"), MALFORMED)
async def test_a_bad_message_costs_that_message(
    url: str, worker: FakeWorker, message: Any, code: str, details: Message
) -> None:
    """It is an error; the connection and the session continue, with the next chunk or the refused one again."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await ws.send(message)
        [error] = await errors(ws)
        assert (error["type"], error["code"]) == ("error", code)
        assert error["message"]
        assert details.items() <= error.items()
        await ws.chunk("s", 1, AUDIO)
        await worker.take("s")
        await worker.chunk("s", 0)
        await worker.chunk("s", 1)
        await ws.find("s", "chunk_result", 1)
        assert [m["code"] for m in ws.messages if m["type"] == "error"] == [code]


@pytest.mark.parametrize("message", [chunk("s", 0, AUDIO), AUDIO, finish()])
async def test_nothing_goes_before_start(url: str, message: Any) -> None:
    async with await WsClient.open(url) as ws:
        assert (await ws.call(message))["code"] == "no_session"
        await ws.start("s")


async def test_after_a_refused_chunk_the_next_one(url: str, worker: FakeWorker) -> None:
    """A client that numbers its chunks continues; the refused chunk is not taken later."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await ws.send(chunk("s", 1, b""))
        await ws.chunk("s", 2, AUDIO)
        await ws.send(chunk("s", 1, AUDIO))
        await ws.chunk("s", 3, AUDIO)
        assert [error["code"] for error in ws.of("s", "error")] == ["empty_chunk", "chunk_refused"]
        await worker.take("s")
        assert sorted(await worker.audio("s", 3)) == ["1-0", "3-0", "4-0"]


async def test_an_index_sent_twice_is_acknowledged_twice_and_stored_once(url: str, worker: FakeWorker) -> None:
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        for _ in range(2):
            await ws.send(chunk("s", 0, AUDIO))
        await until(lambda: len(ws.of("s", "ack")) == 3)
        await worker.take("s")
        assert list(await worker.audio("s", 1)) == ["1-0"]


async def test_finish_twice_and_audio_after_it(url: str, worker: FakeWorker) -> None:
    """They are refused before and after the final result, which comes once."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.send(finish())
        await ws.send(finish())
        await ws.find("s", "error")
        await worker.take("s")
        await worker.final("s", "", 0)
        await ws.find("s", "final_result")
        await ws.send(finish())
        await ws.send(chunk("s", 0, AUDIO))
        await until(lambda: len(ws.of("s", "error")) >= 3)
        assert {error["code"] for error in ws.of("s", "error")} == {"session_finished"}
        assert len(ws.of("s", "final_result")) == 1
        await ws.start("next")


@pytest.mark.parametrize("parts", [1, 5])
async def test_forty_megabytes_cost_one_message_and_no_memory(url: str, parts: int) -> None:
    """In one frame or in several; pings in between are answered."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        process, step = psutil.Process(), b"x" * 65536
        before = process.memory_info().rss
        size = 40 * 2**20 // parts
        for part in range(parts):
            opcode = (0x01 if part == 0 else 0x00) | (0x80 if part == parts - 1 else 0)
            await ws.write(struct.pack("!BBQ4x", opcode, 0x80 | 127, size))
            for _ in range(size // len(step)):
                await ws.write(step)
            ws.connection.ping(b"between")
        assert process.memory_info().rss - before < 20 * 2**20
        [error] = await errors(ws)
        assert (error["code"], str(size * parts) in error["message"]) == ("message_too_large", True)
        assert error["message"].endswith("send audio in smaller pieces")
        await ws.chunk("s", 1, AUDIO)


async def test_what_waits_in_the_kernel_does_not_grow(url: str, app: AsrApplication) -> None:
    """Whoever is held back has its pings behind it. It grows for who sends much, and is read."""
    async with await WsClient.open(url) as ws:
        await ws.write(struct.pack("!BBQ4x", 0x80 | BINARY, 0x80 | 127, 40 << 20))
        for _ in range(640):
            await ws.write(bytes(1 << 16))
        await until(lambda: ws.messages)
        [connection] = app.connections
        assert isinstance(connection, WebSocketConnection)
        stream = connection._frames.stream
        assert isinstance(stream, TcpTransport)
        assert stream._transport is not None
        size = stream._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size <= 2 * MAX_UNHANDLED  # Linux doubles it


@pytest.mark.parametrize("sizes", [(1 << 20, 1), ((1 << 20) - 1, 2000, 5), (1 << 20, 100, 100, 4)])
async def test_fragments_around_the_limit(url: str, sizes: tuple[int, ...]) -> None:
    """Frame headers do not count as payload: one message is too large, and nothing else happens."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        for number, size in enumerate(sizes):
            opcode = (0x02 if number == 0 else 0x00) | (0x80 if number == len(sizes) - 1 else 0)
            await ws.write(struct.pack("!BBQ4x", opcode, 0x80 | 127, size) + bytes(size))
        assert [error["code"] for error in await errors(ws)] == ["message_too_large"]
        await ws.chunk("s", 0, AUDIO)
        assert len(await errors(ws)) == 1
