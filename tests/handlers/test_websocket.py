"""handlers/websocket.py over a real socket: a real gateway on the real Redis and PostgreSQL, a worker that is told."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import orjson
import psutil
import psycopg2
import pytest
import redis
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient
from tornado.websocket import websocket_connect

from asrserver.auth import Access
from asrserver.broker import keys
from asrserver.config import Settings
from asrserver.errors import Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.sessions import Sessions
from asrserver.handlers import flow_control, multiplex, websocket
from asrserver.handlers.app import AsrApplication
from asrserver.protocol.frames import BINARY, TEXT
from tests.conftest import until
from tests.fakes import Pretender
from tests.ws_client import Message, Talk, chunk, frame

pytestmark = pytest.mark.gen_test(timeout=60)

AUDIO = bytes(range(256)) * 8


@pytest.fixture
def url(base_url: str, http_server: HTTPServer) -> str:
    return base_url.replace("http", "ws", 1) + "/ws/asr"


def start(sid: str = "s", **options: Any) -> Message:
    return {"action": "start", "session_id": sid, **options}


def finish(sid: str = "s") -> Message:
    return {"action": "finish", "session_id": sid}


async def errors(talk: Talk, count: int = 1) -> list[Message]:
    """The connection's errors, once there are so many."""
    await until(lambda: sum(message["type"] == "error" for message in talk.messages) >= count)
    return [message for message in talk.messages if message["type"] == "error"]


async def test_the_messages_of_a_session(url: str, worker: Pretender) -> None:
    """Exactly those of the protocol, with its fields, in its order; the audio arrives as it was sent."""
    async with await Talk.open(url + "?uid=1") as talk:
        assert await talk.call(start()) == {"type": "ack", "session_id": "s", "status": "session_started"}
        ack = {"type": "ack", "session_id": "s", "status": "received"}
        assert await talk.call(chunk("s", 0, AUDIO)) == {**ack, "chunk_index": 0}
        assert await talk.call(AUDIO[:100]) == {**ack, "chunk_index": 1}
        await worker.take("s")
        assert await worker.audio("s", 2) == {"1-0": AUDIO, "2-0": AUDIO[:100]}
        await worker.chunk("s", 0, "hello")
        result = await talk.next()
        expected = {"type": "chunk_result", "session_id": "s", "chunk_index": 0, "text": "hello"}
        assert expected.items() <= result.items()
        await worker.chunk("s", 1, "")
        assert (await talk.next())["chunk_index"] == 1
        await talk.send(finish())
        await worker.final("s", "hello", 2)
        expected = {"type": "final_result", "session_id": "s", "text": "hello", "duration": 1.5, "chunk_count": 2}
        assert expected.items() <= (await talk.next()).items()


async def test_the_messages_of_a_stream(url: str, worker: Pretender) -> None:
    """Partial results as they are published, segments in order, no chunk_result."""
    async with await Talk.open(url) as talk:
        await talk.call(start(mode="stream", partials=True, word_timestamps=True))
        await talk.call(chunk("s", 0, AUDIO))
        await worker.take("s")
        guess = {"type": "partial", "follows": 0, "start": 0.1, "end": 0.7, "text": "hel lo", "stable": "hel"}
        worker.broker.publish(worker.claims["s"], {**guess, "language": "en"})
        partial = {"start": 0.1, "end": 0.7, "text": "hel lo", "stable": "hel", "language": "en"}
        assert await talk.next() == {"type": "partial_result", "session_id": "s", **partial}
        words = [{"word": "hello", "start": 0.1, "end": 0.6, "confidence": 0.9}]
        segment = {"number": 0, "start": 0.1, "end": 0.9, "text": "hello", "language": "en", "confidence": 0.9}
        row = {**segment, "chunk_index": None, "words": words}
        await worker.say("s", "segment", text="hello", segments=[row])
        expected = {"type": "segment_result", "session_id": "s", **segment, "words": words, "seq": 1}
        assert await talk.next() == expected
        await talk.send(finish())
        await worker.final("s", "hello", 1)
        assert (await talk.next())["type"] == "final_result"


async def test_an_id_is_made_where_none_is_given(url: str) -> None:
    async with await Talk.open(url) as talk:
        made = {(await talk.call(start(given)))["session_id"] for given in ("", None)}
        assert len(made) == 2
        assert all(len(sid) == 36 for sid in made)


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
    ({"action": "chunk", "session_id": "s", "chunk_index": 1, "audio_data": "QUJ"}, "bad_base64", {}),
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
    url: str, worker: Pretender, message: Any, code: str, details: Message
) -> None:
    """A clear error; the connection and the session go on, with the next chunk or the refused one again."""
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.chunk("s", 0, AUDIO)
        await talk.send(message)
        [error] = await errors(talk)
        assert (error["type"], error["code"]) == ("error", code)
        assert error["message"]
        assert details.items() <= error.items()
        await talk.chunk("s", 1, AUDIO)
        await worker.take("s")
        await worker.chunk("s", 0)
        await worker.chunk("s", 1)
        await talk.find("s", "chunk_result", 1)
        assert [m["code"] for m in talk.messages if m["type"] == "error"] == [code]


@pytest.mark.parametrize("message", [chunk("s", 0, AUDIO), AUDIO, finish()])
async def test_nothing_goes_before_start(url: str, message: Any) -> None:
    async with await Talk.open(url) as talk:
        assert (await talk.call(message))["code"] == "no_session"
        await talk.start("s")


async def test_after_a_refused_chunk_the_next_one(url: str, worker: Pretender) -> None:
    """A client that numbers what it sends goes on; what was refused is not taken later."""
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.chunk("s", 0, AUDIO)
        await talk.send(chunk("s", 1, b""))
        await talk.chunk("s", 2, AUDIO)
        await talk.send(chunk("s", 1, AUDIO))
        await talk.chunk("s", 3, AUDIO)
        assert [error["code"] for error in talk.of("s", "error")] == ["empty_chunk", "chunk_refused"]
        await worker.take("s")
        assert sorted(await worker.audio("s", 3)) == ["1-0", "3-0", "4-0"]


async def test_an_index_sent_twice_is_acknowledged_twice_and_stored_once(url: str, worker: Pretender) -> None:
    async with await Talk.open(url) as talk:
        await talk.start("s")
        for _ in range(2):
            await talk.send(chunk("s", 0, AUDIO))
        await until(lambda: len(talk.of("s", "ack")) == 3)
        await worker.take("s")
        assert list(await worker.audio("s", 1)) == ["1-0"]


async def test_finish_twice_and_audio_after_it(url: str, worker: Pretender) -> None:
    """Refused, before and after the final result, which comes once."""
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.send(finish())
        await talk.send(finish())
        await talk.find("s", "error")
        await worker.take("s")
        await worker.final("s", "", 0)
        await talk.find("s", "final_result")
        await talk.send(finish())
        await talk.send(chunk("s", 0, AUDIO))
        await until(lambda: len(talk.of("s", "error")) >= 3)
        assert {error["code"] for error in talk.of("s", "error")} == {"session_finished"}
        assert len(talk.of("s", "final_result")) == 1
        await talk.start("next")


@pytest.mark.parametrize("parts", [1, 5])
async def test_forty_megabytes_cost_one_message_and_no_memory(url: str, parts: int) -> None:
    """In one frame, or in several; pings between them are answered."""
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.chunk("s", 0, AUDIO)
        protocol = talk.connection.protocol
        assert protocol is not None
        process, step = psutil.Process(), b"x" * 65536
        before = process.memory_info().rss
        size = 40 * 2**20 // parts
        for part in range(parts):
            opcode = (0x01 if part == 0 else 0x00) | (0x80 if part == parts - 1 else 0)
            await protocol.stream.write(struct.pack("!BBQ4x", opcode, 0x80 | 127, size))
            for _ in range(size // len(step)):
                await protocol.stream.write(step)
            talk.connection.ping(b"between")
        assert process.memory_info().rss - before < 20 * 2**20
        [error] = await errors(talk)
        assert (error["code"], str(size * parts) in error["message"]) == ("message_too_large", True)
        await talk.chunk("s", 1, AUDIO)


@pytest.mark.parametrize("sizes", [(1 << 20, 1), ((1 << 20) - 1, 2000, 5), (1 << 20, 100, 100, 4)])
async def test_fragments_around_the_limit(url: str, sizes: tuple[int, ...]) -> None:
    """The frame headers between them are no payload: one message too large, and nothing else."""
    async with await Talk.open(url) as talk:
        await talk.start("s")
        protocol = talk.connection.protocol
        assert protocol is not None
        for number, size in enumerate(sizes):
            opcode = (0x02 if number == 0 else 0x00) | (0x80 if number == len(sizes) - 1 else 0)
            await protocol.stream.write(struct.pack("!BBQ4x", opcode, 0x80 | 127, size) + bytes(size))
        assert [error["code"] for error in await errors(talk)] == ["message_too_large"]
        await talk.chunk("s", 0, AUDIO)
        assert len(await errors(talk)) == 1


# -- many sessions, and the order of what is sent


async def test_many_sessions_on_one_connection(url: str, worker: Pretender) -> None:
    """Interleaved by their ids: every result under its own, each final once."""
    sids = [f"s{number}" for number in range(20)]
    async with await Talk.open(url) as talk:
        for sid in sids:
            await talk.send(start(sid))
        for index in range(3):
            for sid in sids:
                await talk.send(chunk(sid, index, f"{sid} {index}".encode()))
        for sid in sids:
            await talk.send(finish(sid))
        await worker.take(*sids)
        for sid in reversed(sids):
            audio = await worker.audio(sid, 3)
            assert list(audio.values()) == [f"{sid} {index}".encode() for index in range(3)]
            for index in range(3):
                await worker.chunk(sid, index, f"{sid} {index}")
            await worker.final(sid, sid, 3)
        for sid in sids:
            assert (await talk.find(sid, "final_result"))["text"] == sid
            assert [message["type"] for message in talk.of(sid)].count("chunk_result") == 3
            assert [m["text"] for m in talk.of(sid, "chunk_result")] == [f"{sid} {index}" for index in range(3)]


def addressed(channel: int, index: int, data: bytes) -> bytes:
    return channel.to_bytes(4, "big") + index.to_bytes(8, "big") + data


async def test_binary_frames_of_several_sessions(url: str, worker: Pretender) -> None:
    """Each goes where its channel says, and what is wrong with one is told of its session and chunk."""
    async with await Talk.open(url) as talk:
        for sid, channel in (("a", 7), ("b", 2**32 - 1)):
            await talk.send({**start(sid), "channel": channel})
            assert (await talk.find(sid, "ack"))["channel"] == channel
        await talk.start("plain")
        await talk.chunk("plain", 0, b"plain")
        await talk.send(addressed(7, 5, b"a5"))
        await talk.send(addressed(2**32 - 1, 0, b"b0"))
        await talk.send(addressed(7, 6, b"a6"))
        await talk.send(addressed(7, 6, b"a6"))
        await until(lambda: len(talk.of("a", "ack")) == 4)
        assert [message.get("chunk_index") for message in talk.of("a", "ack")] == [None, 5, 6, 6]
        await talk.find("b", "ack", 0)
        for message in (b"short", addressed(1, 0, b"x"), addressed(7, 9, b"x"), addressed(7, 7, b"")):
            await talk.send(message)
        found = await errors(talk, 4)
        assert [(error["code"], error.get("session_id"), error.get("chunk_index")) for error in found] == [
            ("bad_request", None, None),
            ("no_session", None, 0),
            ("chunk_gap", "a", 9),
            ("empty_chunk", "a", 7),
        ]
        await talk.send(addressed(7, 8, b"a8"))  # 7 was refused
        await talk.find("a", "ack", 8)
        await worker.take("a", "b", "plain")
        assert await worker.audio("a", 3) == {"6-0": b"a5", "7-0": b"a6", "9-0": b"a8"}
        assert await worker.audio("b", 1) == {"1-0": b"b0"}
        await talk.send({"action": "finish", "session_id": "a"})
        await worker.final("a")
        await talk.find("a", "final_result")
        await talk.send(addressed(7, 9, b"late"))
        assert (await errors(talk, 5))[-1]["code"] == "session_finished"


STREAM = {"mode": "stream", "format": "pcm_s16le"}


@pytest.mark.parametrize("channel", [None, 7])
async def test_frames_that_come_together_are_taken_as_one_by_one(
    url: str, worker: Pretender, channel: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is acknowledged, and all that is wrong is refused by itself."""
    taken: list[int] = []
    appended = Sessions._append
    monkeypatch.setattr(Sessions, "_append", lambda *given: (taken.append(len(given[3])), appended(*given)))

    def frames(*pieces: tuple[int, bytes]) -> bytes:
        each = [data if channel is None else addressed(channel, index, data) for index, data in pieces]
        return b"".join(frame(BINARY, data) for data in each)

    async with await Talk.open(url) as talk:
        await talk.send({**start(**STREAM), **({} if channel is None else {"channel": channel})})
        await talk.find("s", "ack")
        await talk.write(frames(*((index, b"%02d" % index) for index in range(6))))
        await talk.find("s", "ack", 5)
        await talk.write(frames((6, b"06"), (7, b""), (8, b"08")))  # the one in the middle is refused and passed over
        await talk.find("s", "ack", 8)
        if channel is not None:
            await talk.write(frames((9, b"09"), (11, b"11"), (9, b"09"), (10, b"10")))  # a gap, one again
            await talk.find("s", "ack", 10)
        found = [(error["code"], error.get("chunk_index")) for error in await errors(talk)]
        assert found == [("empty_chunk", channel and 7)] + [("chunk_gap", 11)] * (channel is not None)
        acks = [ack["chunk_index"] for ack in talk.of("s", "ack")[1:]]
        assert acks == [*range(6), 6, 8, *([9, 9, 10] if channel is not None else [])]
        assert taken[0] == 6
        await worker.take("s")
        heard = b"".join((await worker.audio("s", 1)).values())
        assert heard == b"000102030405" + b"0608" + b"0910" * (channel is not None)


async def test_frames_of_two_sessions_that_come_together(url: str, worker: Pretender) -> None:
    async with await Talk.open(url) as talk:
        for sid, channel in (("a", 1), ("b", 2)):
            await talk.send({**start(sid, **STREAM), "channel": channel})
            await talk.find(sid, "ack")
        await talk.write(b"".join(frame(BINARY, addressed(1 + n % 2, n // 2, b"%d" % n)) for n in range(6)))
        await talk.find("b", "ack", 2)
        await worker.take("a", "b")
        assert b"".join((await worker.audio("a", 1)).values()) == b"024"
        assert b"".join((await worker.audio("b", 1)).values()) == b"135"


async def test_frames_that_come_with_their_start_wait_for_it(url: str, worker: Pretender) -> None:
    async with await Talk.open(url) as talk:
        await talk.start("s", **STREAM)
        again = said(start("t", **STREAM))
        await talk.write(frame(BINARY, b"0") + again + b"".join(frame(BINARY, b"%d" % n) for n in range(3)))
        await talk.find("t", "ack", 2)
        await worker.take("s", "t")
        assert b"".join((await worker.audio("s", 1)).values()) == b"0"
        assert b"".join((await worker.audio("t", 1)).values()) == b"012"


async def test_channels_of_ended_sessions_are_forgotten(
    url: str, app: AsrApplication, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplex, "MAX_ENDED", 2)
    async with await Talk.open(url) as talk:
        for channel in range(6):
            sid = f"s{channel}"
            await talk.send({**start(sid), "channel": channel})
            await talk.find(sid, "ack")
            await talk.send({"action": "finish", "session_id": sid})
            await worker.take(sid)
            await worker.final(sid)
            await talk.find(sid, "final_result")
        [handler] = app.sockets
        assert list(handler.sessions.channels) == [3, 4, 5]


async def test_acknowledgements_that_wait_for_each_other(url: str, worker: Pretender) -> None:
    """In time where nothing else comes; and before a result, whichever is first."""
    async with await Talk.open(url) as talk:
        for sid, interval in (("soon", 0.05), ("late", 5.0)):
            await talk.send({**start(sid), "ack_interval": interval})
            for index in range(3):
                await talk.send(chunk(sid, index, AUDIO))
        assert (await talk.find("soon", "ack", 2))["through"] is True
        assert len(talk.of("soon", "ack")) <= 3
        await worker.take("soon", "late")
        await worker.audio("late", 3)
        await worker.chunk("late", 0)
        await talk.find("late", "chunk_result")
        assert [message.get("chunk_index") for message in talk.of("late")] == [None, 2, 0]


async def test_a_session_after_another_on_one_connection(url: str, worker: Pretender) -> None:
    """Binary frames belong to the last one started."""
    async with await Talk.open(url) as talk:
        for sid in ("one", "two"):
            await talk.start(sid)
            await talk.send(AUDIO)
            await talk.find(sid, "ack", 0)
            await talk.send({"action": "finish"})
            await worker.take(sid)
            await worker.chunk(sid, 0)
            await worker.final(sid)
            await talk.find(sid, "final_result")
        assert (await errors(talk, 0)) == []


async def test_an_acknowledgement_comes_before_its_result(
    url: str, gateway: Gateway, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the worker, and the final result, overtook the reply to the gateway's own command."""
    held: list[Callable[[], None]] = []
    append = gateway.broker.append

    def slow(*args: Any) -> None:
        *chunk, done = args
        append(*chunk, lambda error: held.append(lambda: done(error)))

    monkeypatch.setattr(gateway.broker, "append", slow)
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.send(chunk("s", 0, AUDIO))
        await talk.send(finish())
        await worker.take("s")
        await worker.audio("s", 1)
        await worker.chunk("s", 0)
        await worker.final("s")
        await until(lambda: "s" not in gateway.sessions)  # the gateway has all of it
        assert len(talk.messages) == 1
        held.pop()()
        await talk.find("s", "final_result")
        assert [message["type"] for message in talk.messages] == ["ack", "ack", "chunk_result", "final_result"]


async def test_results_that_were_never_published_are_found(url: str, worker: Pretender, redis_url: str) -> None:
    """Pub/Sub may lose: what is durable is read every REPAIR_EVERY seconds."""
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.chunk("s", 0, AUDIO)
        await worker.take("s")
        unpublished(worker, redis_url, "chunk", chunk_index=0, text="lost", duration=0.5)
        assert (await talk.find("s", "chunk_result"))["text"] == "lost"
        await talk.send(finish())
        await worker.ended("s")
        unpublished(worker, redis_url, "final", text="lost", status="done", chunk_count=1)
        assert (await talk.find("s", "final_result"))["text"] == "lost"


def unpublished(worker: Pretender, redis_url: str, kind: str, **fields: Any) -> None:
    """An event that is durable and that nobody heard."""
    event = worker.event("s", kind, **fields)
    event_id = f"{worker.claims['s'].epoch}-{event['seq']}"
    with redis.Redis.from_url(redis_url) as client:
        data = orjson.dumps({**event, "id": event_id, "session_id": "s"})
        client.xadd(keys.events_key("s"), {"seq": event["seq"], "data": data}, id=event_id)


async def test_results_out_of_order_are_put_in_order(url: str, worker: Pretender, redis_url: str) -> None:
    """The second is heard first: the first is read from Redis at once."""
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.chunk("s", 0, AUDIO)
        await talk.chunk("s", 1, AUDIO)
        await worker.take("s")
        unpublished(worker, redis_url, "chunk", chunk_index=0, text="first", duration=0.5)
        await worker.chunk("s", 1, "second")
        await talk.find("s", "chunk_result", 1)
        assert [message["text"] for message in talk.of("s", "chunk_result")] == ["first", "second"]


async def test_the_pub_sub_connection_is_cut(url: str, worker: Pretender, redis_url: str) -> None:
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await worker.take("s")
        for index in range(10):
            await talk.chunk("s", index, AUDIO)
            with redis.Redis.from_url(redis_url) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await worker.chunk("s", index, str(index))
        await talk.send(finish())
        await worker.final("s", chunks=10)
        await talk.find("s", "final_result")
        assert [message["text"] for message in talk.of("s", "chunk_result")] == [str(index) for index in range(10)]


async def test_an_error_of_one_chunk_is_told(url: str, worker: Pretender) -> None:
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.chunk("s", 0, AUDIO)
        await worker.take("s")
        await worker.say("s", "error", chunk_index=0, code="not_audio", message="no audio")
        [error] = await errors(talk)
        assert (error["code"], error["session_id"], error["chunk_index"]) == ("not_audio", "s", 0)
        assert not error.keys() & {"segments", "worker", "total"}


# -- who may start what


async def test_a_session_that_exists_cannot_be_started(
    url: str, gateway: Gateway, worker: Pretender, redis_url: str
) -> None:
    """Here or on another connection, open or over, known to Redis or to PostgreSQL alone."""
    start_again = start("s")
    async with await Talk.open(url) as one, await Talk.open(url) as two:
        await one.start("s")
        assert (await two.call(start_again))["code"] == "session_exists"
        await one.send(finish())
        await worker.take("s")
        await worker.final("s", "", 0)
        await one.find("s", "final_result")
        assert (await two.call(start_again))["code"] == "session_exists"
        await until(gateway.recorder.settled)
        with redis.Redis.from_url(redis_url) as client:
            client.delete(keys.session_key("s"), keys.audio_key("s"), keys.events_key("s"))
        assert (await two.call(start_again))["code"] == "session_exists"
        await gateway.storage.delete("s")
        assert (await two.call(start_again))["code"] == "session_exists"


async def test_one_of_two_who_start_the_same_at_once(url: str, worker: Pretender) -> None:
    """And the one who has it gets its results."""
    async with await Talk.open(url) as one, await Talk.open(url) as two:
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
        assert {error["code"] for talk in (one, two) for error in await errors(talk, 0)} == {"session_exists"}


async def test_a_start_while_postgresql_is_away(url: str, gateway: Gateway) -> None:
    """Costs nothing: Redis still knows what it knows."""
    await gateway.storage.close()
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.send(start("s"))
        assert [error["code"] for error in await errors(talk)] == ["session_exists"]
    await gateway.storage.open()


# -- connections


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        (None, "", 101),
        ("http://{host}", "", 101),
        ("http://elsewhere.example", "", 403),
        ("http://elsewhere.example", "http://other.example, http://elsewhere.example", 101),
        ("http://elsewhere.example", "*", 101),
        ("http://elsewhere.example.evil", "http://elsewhere.example", 403),
        ("null", "", 403),
    ],
)
async def test_which_pages_may_connect(
    url: str, gateway: Gateway, origin: str | None, allowed: str, status: int
) -> None:
    gateway.access = Access(origins=allowed)
    headers = {} if origin is None else {"Origin": origin.format(host=url.split("/")[2])}
    request = HTTPRequest(url, headers=headers)
    if status == 101:
        connection = await websocket_connect(request)
        connection.close()
        assert await connection.read_message() is None
    else:
        with pytest.raises(HTTPClientError, match=str(status)):
            await websocket_connect(request)


async def raw(url: str) -> IOStream:
    """A connection of which the test reads what it likes to."""
    host, port = url.split("/")[2].split(":")
    stream = await TCPClient().connect(host, int(port))
    key = base64.b64encode(os.urandom(16)).decode()
    await stream.write(
        f"GET /ws/asr HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    assert (await stream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    return stream


def said(message: Message) -> bytes:
    """The frame of a message."""
    return frame(TEXT, json.dumps(message).encode())


async def test_a_client_that_never_reads_is_cut_and_costs_nobody_else(
    url: str, gateway: Gateway, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets MAX_UNREAD bytes of memory, then nothing; its session waits for it, and ends with what it has."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    monkeypatch.setattr(websocket, "MAX_UNREAD", 1 << 16)
    stream = await raw(url)
    await stream.write(said(start("deaf")))
    await until(lambda: "deaf" in gateway.sessions)
    session = gateway.sessions["deaf"]
    async with await Talk.open(url) as talk:
        await talk.start("s")
        for _ in range(2000):  # far more than the kernel's buffers take
            if session.send is None:
                break
            session.send({"type": "error", "code": "c", "message": "x" * 16384})
            await asyncio.sleep(0)
        await until(lambda: session.send is None)
        await worker.take("deaf", "s")
        assert await worker.ended("deaf") == "interrupted"
        await talk.chunk("s", 0, AUDIO)
        await worker.chunk("s", 0)
        await talk.find("s", "chunk_result")
        assert gateway.connections == 1
    stream.close()


async def test_a_client_that_does_not_read_is_not_read(
    url: str, app: AsrApplication, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While an answer waits, nothing more is taken; read in time, nothing is missing; else the connection is cut."""
    monkeypatch.setattr(websocket, "MAX_UNREAD", 1 << 14)
    monkeypatch.setattr(flow_control, "REFUSALS", 1e9)
    flood = said({"action": "\U0010ffff" * 50}) * 500  # of more answers than the kernel's buffers hold

    async def deaf() -> tuple[IOStream, asyncio.Future[None]]:
        stream = await raw(url)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        [handler] = app.sockets
        sending = asyncio.ensure_future(stream.write(flood))
        await until(lambda: handler._wire.blocked)
        taken = handler.messages
        async with await Talk.open(url) as talk:
            for _ in range(10):
                await talk.send({"action": "x"})
                await talk.next()
        assert handler.messages == taken < 500
        return stream, sending

    stream, sending = await deaf()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for _ in range(500):
        assert json.loads(await next_text(stream))["code"] == "unknown_action"
    await sending
    stream.close()
    await until(lambda: not gateway.connections)
    object.__setattr__(gateway.settings, "unread_timeout", 0.5)
    stream, sending = await deaf()
    await until(lambda: not gateway.connections)
    assert "does not read: cut" in caplog.text
    stream.close()
    await asyncio.wait([sending])


async def next_text(stream: IOStream) -> bytes:
    size = (await stream.read_bytes(2))[1]
    return await stream.read_bytes(int.from_bytes(await stream.read_bytes(2), "big") if size == 126 else size)


async def test_a_flood_waits_for_its_turns(url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another sends is taken before all the messages that were there before it."""
    taken: list[str] = []
    monkeypatch.setattr(gateway, "refused", lambda error, *_: taken.append(error.code))
    flood, other = await raw(url), await raw(url)
    # Past the loop, so that both are there when it looks again.
    flood.socket.send(said({"action": "x"}) * 190)
    other.socket.send(said(finish()))
    await until(lambda: len(taken) == 191)
    assert taken.index("no_session") < 50
    flood.close()
    other.close()


def test_refusals_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second's worth at once, then no faster; what was not used up for long is no credit."""
    now = [1000.0]
    monkeypatch.setattr(flow_control.time, "monotonic", lambda: now[0])
    brake = flow_control.Brake()
    for _ in range(2):
        for _ in range(flow_control.REFUSALS):
            brake.refused()
        assert brake.debt == pytest.approx(0, abs=1e-6)
        for _ in range(10):
            brake.refused()
        assert brake.debt == pytest.approx(10 / flow_control.REFUSALS)
        now[0] += 10 / flow_control.REFUSALS
        assert brake.debt == pytest.approx(0, abs=1e-6)
        brake.refused()
        assert brake.debt == pytest.approx(1 / flow_control.REFUSALS)
        now[0] += 3600


async def test_pings_are_answered_while_a_start_waits(
    url: str, gateway: Gateway, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was sent behind it is taken in order when it is through."""
    monkeypatch.setattr(gateway, "_fullness", 0.85)
    stream = await raw(url)
    await stream.write(said(start("s")) + said(chunk("s", 0, AUDIO)) + said(finish()))
    await stream.write(struct.pack("!BB4x", 0x89, 0x80 | 4) + b"ping")
    assert await asyncio.wait_for(stream.read_bytes(6), 5) == b"\x8a\x04ping"
    monkeypatch.setattr(gateway, "_fullness", 0.0)
    await worker.take("s")
    assert await worker.audio("s", 1) == {"1-0": AUDIO}
    assert await worker.ended("s") == "done"
    stream.close()


async def test_what_waits_behind_a_start_is_bounded(
    url: str, app: AsrApplication, gateway: Gateway, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond MAX_LATER the socket is not read; nothing is lost."""
    monkeypatch.setattr(websocket, "MAX_LATER", 10_000)
    monkeypatch.setattr(gateway, "_fullness", 0.85)
    async with await Talk.open(url) as talk:
        await talk.send(start("s"))
        [handler] = app.sockets
        for index in range(100):
            await talk.send(chunk("s", index, AUDIO))
        await until(lambda: handler._later_bytes > 10_000)
        assert handler._later_bytes < 20_000
        monkeypatch.setattr(gateway, "_fullness", 0.0)
        await talk.find("s", "ack", 99)
        await worker.take("s")
        assert len(await worker.audio("s", 100)) == 100
        assert await errors(talk, 0) == []


async def test_a_client_that_drops_leaves_its_session_ended(url: str, gateway: Gateway, worker: Pretender) -> None:
    """All its sessions, when they were not resumed in time, with what they have; the rows say so."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    talk = await Talk.open(url)
    await talk.start("one")
    await talk.start("two")
    await talk.chunk("one", 0, AUDIO)
    talk.drop()
    await talk.close()
    await worker.take("one", "two")
    await worker.chunk("one", 0)
    assert await worker.ended("one") == await worker.ended("two") == "interrupted"
    await worker.final("one")
    await worker.final("two", "", 0)
    await until(lambda: not gateway.sessions and gateway.recorder.settled())
    stored = await gateway.storage.session("one")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("interrupted", "words")
    assert gateway.connections == 0


async def test_a_session_whose_keys_are_lost_is_told_to_its_client(url: str, gateway: Gateway, redis_url: str) -> None:
    """Chunks and the end alike: an error, not silence."""
    async with await Talk.open(url) as talk:
        for sid in ("one", "two"):
            await talk.start(sid)
            with redis.Redis.from_url(redis_url) as client:
                client.delete(keys.session_key(sid), keys.audio_key(sid), keys.events_key(sid))
        await talk.send(chunk("one", 0, AUDIO))
        await talk.send(finish("two"))
        for sid in ("one", "two"):
            assert (await talk.find(sid, "error"))["code"] == "session_gone"
        await until(lambda: not gateway.sessions)


async def test_a_session_is_ended_although_redis_was_away_for_long(
    url: str, gateway: Gateway, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would: its gateway says that it is alive."""
    tries = iter(range(2))
    end_session = gateway.broker.end_session

    async def unlucky(*args: Any, **kwargs: Any) -> bool:
        if next(tries, None) is not None:
            raise Unavailable("broker_unavailable", "away")
        return await end_session(*args, **kwargs)

    monkeypatch.setattr(gateway.broker, "end_session", unlucky)
    async with await Talk.open(url) as talk:
        await talk.start("s")
        await talk.send(finish())
        await worker.take("s")
        await worker.final("s", "", 0)
        await talk.find("s", "final_result")


async def test_a_dead_gateway_s_session_is_adopted(gateway: Gateway, worker: Pretender) -> None:
    """Ended as interrupted, and stored."""
    other = type(worker.broker)(gateway.settings.redis, "dead")
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
    await until(lambda: not gateway.sessions and gateway.recorder.settled())
    stored = await gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("interrupted", "words")


async def test_one_session_that_cannot_be_stored_holds_up_no_other(
    url: str, gateway: Gateway, worker: Pretender, gateway_settings: Settings
) -> None:
    """It is buried with the reason."""
    async with await Talk.open(url) as talk:
        await talk.start("bad")
        await talk.start("good")
        await worker.take("bad", "good")
        await worker.say("bad", "error", code="c", message="m", model=None, segments=[{"text": "", "language": "en"}])
        await talk.send(finish("good"))
        await worker.final("good", "words", 0)
        await talk.find("good", "final_result")
        await until(gateway.recorder.settled)
    with psycopg2.connect(gateway_settings.database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT status FROM asr_sessions WHERE id = 'good'")
        assert cursor.fetchall() == [("done",)]
    connection.close()
    assert (await gateway.broker.queue())["dead"] >= 1


# -- where many messages come ------------------------------------------------------------------------------------


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many messages come that a connection rests after each read."""
    monkeypatch.setattr(flow_control, "FREE", -1e9)


async def test_what_comes_while_a_connection_rests_is_read_in_one_go(
    crowded: None, app: AsrApplication, url: str, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of it is lost, nor out of order; one that closes meanwhile is gone."""
    reads: list[int] = []
    read = app.sockets.rests.read

    def seen(wire: flow_control.DrainingWire, messages: int, size: int, may_rest: bool) -> None:
        reads.append(messages)
        read(wire, messages, size, may_rest)

    monkeypatch.setattr(app.sockets.rests, "read", seen)
    async with await Talk.open(url) as talk:
        await talk.call(start(mode="stream", format="pcm_s16le"))
        [handler] = app.sockets
        wire = handler.ws_connection
        assert wire is not None
        for first in (0, 7):
            await until(lambda: not wire._rests)
            await talk.write(said(chunk("s", first, AUDIO)) + said(chunk("s", first + 1, AUDIO)))
            await until(lambda: wire._rests)
            reads.clear()
            for index in range(first + 2, first + 7):
                await talk.send(chunk("s", index, AUDIO[index:]))
            await until(lambda: sum(reads) == 5)
            assert reads == [5]
        await until(lambda: len(talk.messages) == 1 + 14)
        assert [message["chunk_index"] for message in talk.messages[1:]] == list(range(14))
        await until(lambda: wire._rests)
    await until(lambda: not app.sockets)


async def test_who_waits_for_each_acknowledgement_does_not_wait_for_rests_too(
    crowded: None, app: AsrApplication, url: str, worker: Pretender
) -> None:
    async with await Talk.open(url) as talk:
        await talk.start("s")
        [handler] = app.sockets
        wire = handler.ws_connection
        assert wire is not None
        for index in range(5):
            assert not wire._rests
            await talk.chunk("s", index, AUDIO)


async def test_a_large_message_is_read_without_a_rest(
    crowded: None, app: AsrApplication, url: str, worker: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Talk.open(url) as talk:
        await talk.call(start())
        await until(lambda: not app.sockets.rests._resting)
        rests: list[flow_control.DrainingWire] = []
        rest = flow_control.DrainingWire.rest

        def counted(wire: flow_control.DrainingWire) -> bool:
            rests.append(wire)
            return rest(wire)

        monkeypatch.setattr(flow_control.DrainingWire, "rest", counted)
        await talk.call(bytes(3_000_000))
        assert len(rests) <= 1  # once it is whole
