"""Malformed messages, chunks and audio affect only themselves, in the whole system."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.recordings import Utterance
from tests.system.support import MAX_MESSAGE, Running
from tests.waiting import until
from tests.ws_client import WsClient, chunk, stored, stored_chunks


async def knows_languages(url: str, sid: str) -> None:
    """Wait until the gateway has learned the model's languages, with a heartbeat after the worker's first."""
    async with await WsClient.open(url) as ws, asyncio.timeout(30):
        for attempt in itertools.count():
            start = {"action": "start", "session_id": f"{sid}-{attempt}", "language": "cy"}
            if (await ws.call(start))["type"] == "error":
                return
            await ws.call({"action": "finish", "session_id": f"{sid}-{attempt}"})


async def refused(ws: WsClient, code: str, message: Any) -> dict[str, Any]:
    """Send a message that is refused with this code; return the error."""
    seen = sum(m["type"] == "error" for m in ws.messages)
    await ws.send(message)
    await until(lambda: sum(m["type"] == "error" for m in ws.messages) > seen, 30, code)
    error = [m for m in ws.messages if m["type"] == "error"][-1]
    assert error["code"] == code, error
    assert error["message"]
    return error


async def before_start(url: str, sid: str, spoken: list[Utterance]) -> None:
    """Send messages before the start of a session; then run one."""
    async with await WsClient.open(url) as ws:
        for message in (chunk(sid, 0, spoken[0].wav), b"12", {"action": "finish"}):
            assert (await ws.call(message))["code"] == "no_session"
        await ws.stream(f"{sid}-early", spoken[:1])
        assert sum(m["type"] == "error" for m in ws.messages) == 3


async def malformed_messages(ws: WsClient, sid: str) -> None:
    """Send messages that are malformed as a whole."""
    await refused(ws, "bad_json", '{"action": "chunk", ')
    await refused(ws, "bad_json", '["action"]')
    await refused(ws, "bad_json", "")
    await refused(ws, "unknown_action", {"action": "dance", "session_id": sid})
    await refused(ws, "bad_request", {"session_id": sid})
    await refused(ws, "no_session", chunk(f"{sid}-nobody", 0, b"12"))
    await refused(ws, "bad_option", {"action": "start", "session_id": f"{sid}-x", "mode": "loud"})
    await refused(ws, "bad_option", {"action": "start", "session_id": f"{sid}-x", "language": "cy"})
    await refused(ws, "bad_option", {"action": "start", "session_id": f"{sid}-x", "language": "tlh"})
    await refused(ws, "bad_id", {"action": "start", "session_id": "a b"})
    await refused(ws, "session_exists", {"action": "start", "session_id": sid})


async def malformed_chunks(ws: WsClient, sid: str, spoken: list[Utterance]) -> None:
    """Send malformed chunks after chunk 0: the client continues with the next index, or repeats the refused one."""
    broken = chunk(sid, 1, b"") | {"audio_data": "%%%not base64%%%"}
    assert (await refused(ws, "bad_base64", broken))["chunk_index"] == 1
    await ws.chunk(sid, 1, spoken[1].wav)
    assert (await refused(ws, "empty_chunk", chunk(sid, 2, b"")))["chunk_index"] == 2
    await ws.chunk(sid, 3, spoken[2].wav)
    await refused(ws, "empty_chunk", b"")
    await refused(ws, "bad_request", {"action": "chunk", "session_id": sid, "chunk_index": 4})
    await refused(ws, "bad_index", chunk(sid, -1, b"12"))
    await refused(ws, "bad_index", chunk(sid, 0, b"12") | {"chunk_index": "four"})
    gap = await refused(ws, "chunk_gap", chunk(sid, 40, spoken[3].wav))
    assert (gap["expected"], gap["chunk_index"]) == (4, 40)
    await ws.chunk(sid, 4, spoken[3].wav)


async def malformed_audio(ws: WsClient, sid: str, utterance: Utterance, mp4: bytes) -> None:
    """Send chunks 5 to 7 without audio, and in chunk 8 a file that was cut."""
    await ws.send(chunk(sid, 5, b"This is a text, and nothing that anybody could listen to.\n" * 50))
    assert (await ws.find(sid, "error", 5))["code"] == "not_audio"
    moov = mp4.index(b"moov") - 4
    assert moov > mp4.index(b"mdat")
    await ws.send(chunk(sid, 6, mp4[:moov]))
    error = await ws.find(sid, "error", 6)
    assert error["code"] == "undecodable_audio"
    assert "moov" in error["message"]
    await ws.send(chunk(sid, 7, b"RIFF\xff\xff\xff\x7fWAVE" + os.urandom(5000)))
    assert (await ws.find(sid, "error", 7))["code"] == "undecodable_audio"
    # A truncated WAV is recognised as far as it goes: here to the middle of its closing silence.
    await ws.chunk(sid, 8, utterance.wav[:-1001])
    assert (await ws.find(sid, "chunk_result", 8))["text"] == utterance.text


@pytest.mark.gen_test(timeout=120)
async def test_each_malformed_message_costs_itself_alone(
    running: Running, utterances: list[Utterance], encode: Callable[[bytes, str], bytes], sid: str
) -> None:
    """Each gets an error with a code; the session, its connection and other sessions go on."""
    spoken = utterances[:8]
    neighbours = [f"{sid}-same", f"{sid}-other"]
    await knows_languages(running.url, f"{sid}-welsh")
    async with await WsClient.open(running.url) as ws, await WsClient.open(running.url) as other:
        await ws.start(neighbours[0])
        await other.start(neighbours[1])
        await ws.chunk(neighbours[0], 0, spoken[0].wav)
        await other.chunk(neighbours[1], 0, spoken[0].wav)
        await before_start(running.url, sid, spoken)
        await ws.start(sid)
        await ws.chunk(sid, 0, spoken[0].wav)
        await malformed_messages(ws, sid)
        await malformed_chunks(ws, sid, spoken)
        await malformed_audio(ws, sid, spoken[4], encode(spoken[4].wav, "mp4-aac"))
        await ws.send(chunk(sid, 8, spoken[5].wav))  # sent twice: acknowledged again, and ignored
        await until(lambda: len([m for m in ws.of(sid, "ack") if m.get("chunk_index") == 8]) == 2, what="second ack")
        await ws.chunk(sid, 9, spoken[5].wav)
        final = await ws.finish(sid)
        assert final["text"] == " ".join(utterance.text for utterance in spoken[:6])
        assert (await refused(ws, "session_finished", {"action": "finish", "session_id": sid}))["session_id"] == sid
        await refused(ws, "session_finished", chunk(sid, 10, spoken[5].wav))
        assert [m["chunk_index"] for m in ws.of(sid, "chunk_result")] == [0, 1, 3, 4, 8, 9]
        assert len(ws.of(sid, "final_result")) == 1
        await ws.chunk(neighbours[0], 1, spoken[6].wav)
        await other.chunk(neighbours[1], 1, spoken[7].wav)
        await ws.finish(neighbours[0])
        await other.finish(neighbours[1])
        ws.check(neighbours[0], [spoken[0], spoken[6]])
        other.check(neighbours[1], [spoken[0], spoken[7]])
    await until(lambda: stored(running.database_url, sid), what="stored")
    texts: dict[int, str | None] = {index: spoken[place].text for place, index in enumerate((0, 1, 3, 4, 8, 9))}
    assert dict(stored_chunks(running.database_url, sid)) == texts | dict.fromkeys((5, 6, 7))


@pytest.mark.gen_test(timeout=30)
async def test_finish_twice_at_once(running: Running, utterances: list[Utterance], sid: str) -> None:
    """The second finish, sent before the first is answered, is an error; the final result comes once."""
    async with await WsClient.open(running.url) as ws:
        await ws.start(sid)
        await ws.chunk(sid, 0, utterances[0].wav)
        await ws.send({"action": "finish", "session_id": sid})
        await ws.send({"action": "finish", "session_id": sid})
        final = await ws.find(sid, "final_result")
        error = await ws.find(sid, "error")
        assert final["text"] == utterances[0].text
        assert error["code"] == "session_finished"
        await ws.stream(f"{sid}-next", utterances[1:2])
        ws.check(f"{sid}-next", utterances[1:2])
        assert len(ws.of(sid, "final_result")) == 1


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """A WebSocket frame as a client sends it, masked with zeros (RFC 6455, 5.2)."""
    head = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        return head + bytes([0x80 | len(payload)]) + bytes(4) + payload
    if len(payload) < 1 << 16:
        return head + bytes([0x80 | 126]) + struct.pack("!H", len(payload)) + bytes(4) + payload
    return head + bytes([0x80 | 127]) + struct.pack("!Q", len(payload)) + bytes(4) + payload


async def write(ws: WsClient, data: bytes) -> None:
    protocol = ws.connection.protocol
    assert protocol is not None
    assert protocol.stream is not None
    await protocol.stream.write(data)


@pytest.mark.gen_test(timeout=120)
async def test_messages_that_are_too_large(running: Running, utterances: list[Utterance], sid: str) -> None:
    """40 MB as text, as one binary frame, and in fragments with pings: one error each, then everything continues."""
    large = 40 * 2**20
    limit = MAX_MESSAGE
    async with await WsClient.open(running.url) as ws:
        await ws.start(sid)
        await ws.chunk(sid, 0, utterances[0].wav)

        async def errors(count: int) -> None:
            await until(lambda: len([m for m in ws.messages if m["type"] == "error"]) >= count, 60, "an error")
            found = [m for m in ws.messages if m["type"] == "error"]
            assert [m["code"] for m in found] == ["message_too_large"] * count

        await ws.send("x" * large)
        await errors(1)
        await ws.send(bytes(large))
        await errors(2)
        piece = bytes(2**20 - 7)
        await write(ws, frame(2, piece, final=False))
        for _ in range(38):
            await write(ws, frame(0, piece, final=False) + frame(9, b"ping"))
        await write(ws, frame(0, b"end"))
        await errors(3)
        # The limit is reached by the first fragment, so that even the next header does not fit.
        await write(ws, frame(2, bytes(limit - 1), final=False) + frame(9, b"ping") + frame(0, b"more"))
        await errors(4)
        await write(ws, frame(1, b"y" * limit, final=False))
        for _ in range(200):
            await write(ws, frame(0, b"y", final=False))
        await write(ws, frame(0, b""))
        await errors(5)
        await ws.chunk(sid, 1, utterances[1].wav)
        await ws.find(sid, "chunk_result", 1)
        final = await ws.finish(sid)
        assert final["text"] == f"{utterances[0].text} {utterances[1].text}"
        assert not ws.closed


@pytest.mark.gen_test(timeout=60)
async def test_fragmented_message_is_one_message(running: Running, utterances: list[Utterance], sid: str) -> None:
    """A chunk in many frames with a ping in between is one chunk."""
    wav = utterances[0].wav
    async with await WsClient.open(running.url) as ws:
        await ws.start(sid)
        await write(ws, frame(2, wav[:1000], final=False) + frame(9, b"ping"))
        for begin in range(1000, len(wav), 7000):
            await write(ws, frame(0, wav[begin : begin + 7000], final=False))
        await write(ws, frame(0, b""))
        assert (await ws.finish(sid))["text"] == utterances[0].text
