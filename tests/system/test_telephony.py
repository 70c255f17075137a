"""The bridges of docs/guides/telephony.md, as they stand there, and what telephone systems send to them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.httpclient import HTTPRequest
from tornado.testing import bind_unused_port
from tornado.websocket import websocket_connect

from tests.recordings import Utterance
from tests.system.support import Running
from tests.system.test_guides import ROOT, blocks
from tests.waiting import until
from tests.worker_harness import encode
from tests.ws_client import WsClient, stored

pytestmark = pytest.mark.gen_test(timeout=90)

#: A frame of a telephone, 20 ms of 8 kHz, in samples.
FRAME = 160


@pytest.fixture(scope="module")
def said(utterances: list[Utterance]) -> Utterance:
    """What the small model understands by telephone too, with quiet around it."""
    [one] = [one for one in utterances if one.name == "011.opus"]
    return Utterance(one.name, one.text, bytes(16000) + one.pcm + bytes(32000))


@contextlib.contextmanager
def bridge(number: int, server: str, folder: Path) -> Iterator[tuple[int, Path]]:
    """An example of the guide, running; its port, and the file with what it prints."""
    listener, port = bind_unused_port()
    listener.close()
    example, output = folder / "bridge.py", folder / "output"
    example.write_text(blocks("telephony.md", "python")[number])
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(example), server, str(port)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        yield port, output
    finally:
        process.kill()
        process.wait()


async def printed(output: Path, count: int) -> list[str]:
    """The lines of a program, once there are so many."""
    lines: list[str] = []

    def enough() -> bool:
        lines[:] = output.read_text().splitlines()
        return len(lines) >= count

    await until(enough, 30)
    return lines


def frames(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]


async def test_twilio(running: Running, said: Utterance, tmp_path: Path) -> None:
    """A stream of both tracks, with messages as Twilio sends them."""
    sid, call = f"MZ{uuid.uuid4().hex}", f"CA{uuid.uuid4().hex}"
    about = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {
        "streamSid": sid,
        "accountSid": "AC1",
        "callSid": call,
        "tracks": ["inbound", "outbound"],
        "mediaFormat": about,
    }
    with bridge(0, running.url, tmp_path) as (port, output):
        url = f"ws://127.0.0.1:{port}/twilio"
        await until(lambda: _answers(port), 30)
        twilio = await websocket_connect(url)
        numbers = iter(range(1, 10**6))

        async def send(event: str, **content: object) -> None:
            message = {"event": event, "sequenceNumber": str(next(numbers)), "streamSid": sid, **content}
            await twilio.write_message(json.dumps(message))

        await twilio.write_message(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        await send("start", start=start)
        for chunk, audio in enumerate(frames(encode(said.pcm, "-ar", "8000", "-f", "mulaw"), FRAME), 1):
            for track, heard in (("inbound", audio), ("outbound", b"\xff" * FRAME)):
                payload = base64.b64encode(heard).decode()
                about_it = {"track": track, "chunk": str(chunk), "timestamp": str(20 * chunk), "payload": payload}
                await send("media", media=about_it)
        await send("dtmf", dtmf={"track": "inbound_track", "digit": "1"})
        await send("stop", stop={"accountSid": "AC1", "callSid": call})
        lines = await printed(output, 3)
        twilio.close()
    assert sorted(re.sub(r" [\d.]+ ", " ", line) for line in lines) == sorted(
        [f"inbound {said.text}", "inbound done", "outbound done"]
    )
    await until(lambda: stored(running.database_url, f"{call}-inbound") is not None)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.mark.parametrize("kind", [0x10, 0x12])
async def test_asterisk(running: Running, said: Utterance, tmp_path: Path, kind: int) -> None:
    """AudioSocket at 8 and 16 kHz; the call ends with a hangup, or by itself."""
    rate = {0x10: 8000, 0x12: 16000}[kind]
    call = uuid.uuid4()
    with bridge(1, running.url, tmp_path) as (port, output):
        await until(lambda: _answers(port), 30)
        _, asterisk = await asyncio.open_connection("127.0.0.1", port)

        def send(kind: int, payload: bytes) -> None:
            asterisk.write(bytes([kind]) + len(payload).to_bytes(2, "big") + payload)

        send(0x01, call.bytes)
        for audio in frames(encode(said.pcm, "-ar", str(rate), "-f", "s16le"), rate // 25):
            send(kind, audio)
        send(0x03, b"1")
        if kind == 0x10:
            send(0x00, b"")
        await asterisk.drain()
        asterisk.close()
        lines = await printed(output, 2)
    assert re.sub(r" [\d.]+ ", " ", lines[0]) == f"{call} {said.text}"
    assert lines[1] == f"{call} done"


@pytest.mark.parametrize("subprotocol", [None, "audio.drachtio.org"])
async def test_freeswitch(running: Running, said: Utterance, subprotocol: str | None) -> None:
    """mod_audio_stream and mod_audio_fork, with the URL of the guide: the channel hangs up without a word."""
    [command] = [text for text in blocks("telephony.md", "text") if "uuid_audio_stream" in text]
    url = re.findall(r"ws://\S+", command)[0].replace("127.0.0.1:8080", f"127.0.0.1:{running.system.port}")
    sid = str(uuid.uuid4())
    offered = [subprotocol] if subprotocol else None
    connection = await websocket_connect(HTTPRequest(f"{url}&session_id={sid}"), subprotocols=offered)
    assert connection.selected_subprotocol == subprotocol
    async with WsClient(connection) as freeswitch:
        if subprotocol:  # jambonz tells of the call first
            assert (await freeswitch.call({"callSid": sid, "sampleRate": 8000}))["status"] == "session_started"
        for audio in frames(encode(said.pcm, "-ar", "8000", "-f", "s16le"), 2 * FRAME):
            await freeswitch.send(audio)
        found = await freeswitch.find(sid, "segment_result")
        assert found["text"] == said.text
    await until(lambda: stored(running.database_url, sid) is not None, 30)
    row = stored(running.database_url, sid)
    assert row is not None
    assert row[1] == said.text
