"""The clients of other speech servers against the whole system: Vosk, WhisperLive, FunASR."""

from __future__ import annotations

import asyncio
import socket

import numpy as np
import pytest
from tornado.websocket import websocket_connect

from tests.program import free_port
from tests.recordings import Utterance
from tests.system.support import Running, Start, robust
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture(scope="module")
def recording(utterances: list[Utterance]) -> Utterance:
    """Three utterances with pauses between them."""
    said = robust(utterances, 3)
    return Utterance("three", " ".join(one.text for one in said), bytes(48000).join(one.pcm for one in said))


def frames(pcm: bytes, seconds: float) -> list[bytes]:
    size = 2 * round(16000 * seconds)
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


async def test_vosk(running: Running, recording: Utterance) -> None:
    """As alphacep's test scripts: each answer is read before the next frame is sent."""
    async with await WsClient.open(f"ws://127.0.0.1:{running.system.port}") as ws:
        await ws.send('{ "config" : { "sample_rate" : 16000 } }')
        answers = [await ws.call(frame) for frame in frames(recording.pcm, 0.2)]
        answers.append(await ws.call('{"eof" : 1}'))
    texts = [answer["text"] for answer in answers if answer.get("text")]
    assert " ".join(texts) == recording.text
    words = [word["word"] for answer in answers for word in answer.get("result", ())]
    assert words == recording.text.split()


async def test_whisperlive(running: Running, recording: Utterance) -> None:
    """As its client for files: the end is not told before all text has come, and no silence follows the last word."""
    async with await WsClient.open(f"ws://127.0.0.1:{running.system.port}") as ws:
        assert (await ws.call({"uid": "u", "language": None, "model": "small"}))["message"] == "SERVER_READY"
        for frame in frames(recording.pcm, 0.256):
            samples = np.frombuffer(frame, "<i2").astype("<f4") / 32768
            await ws.send(samples.tobytes())

        def text() -> str:
            return "".join(one["text"] for one in ws.messages[-1].get("segments", ()) if one["completed"])

        await until(lambda: text() == f" {recording.text}", 10, "the last segment is completed")
        await ws.send(b"END_OF_AUDIO")
        await until(lambda: ws.closed)
        assert (ws.messages[-1]["message"], ws.connection.close_code) == ("DISCONNECT", 1000)


@pytest.mark.parametrize("mode", ["2pass", "online", "offline"])
async def test_funasr(running: Running, recording: Utterance, mode: str) -> None:
    """As its client: it shows what comes with nothing between, and waits for the acknowledgement of the end."""
    connection = await websocket_connect(f"ws://127.0.0.1:{running.system.port}", subprotocols=["binary"])
    async with WsClient(connection) as ws:
        await ws.send({"mode": mode, "chunk_size": [5, 10, 5], "wav_name": "demo", "is_speaking": True})
        for frame in frames(recording.pcm, 0.06):
            await ws.send(frame)
        await ws.send({"is_speaking": False, "is_end": True})
        await until(lambda: ws.messages and ws.messages[-1].get("is_end"))
        assert ws.messages[-1] == {"mode": mode, "wav_name": "demo", "is_final": True, "is_end": True}
        shown = [one["text"] for one in ws.messages[:-1] if one["mode"] in (mode, "2pass-offline")]
        assert "".join(shown) == recording.text


async def test_ports_that_clients_know(start: Start, recording: Utterance) -> None:
    """The same is served at each; all are closed when the server stops."""
    ports = [free_port(), free_port()]
    system = start("run", "--workers", "1", "--gateways", "2", "--also-ports", ",".join(map(str, ports))).wait_ready()
    assert f"http-{ports[0]} on 127.0.0.1:{ports[0]}" in system.output()
    for port in (system.port, *ports):
        async with await WsClient.open(f"ws://127.0.0.1:{port}") as ws:
            await ws.send('{"config": {"sample_rate": 16000}}')
            await ws.call(recording.pcm)
            await ws.send('{"eof": 1}')
            await until(lambda ws=ws: ws.closed)
        assert " ".join(one["text"] for one in ws.messages if one.get("text")) == recording.text
    assert await asyncio.to_thread(system.stop) == 0
    with socket.create_server(("127.0.0.1", ports[1])):
        refused = start("run", "--also-ports", str(ports[1]))
        assert await asyncio.to_thread(refused.process.wait, 30) == 1
    assert f"cannot listen on --host 127.0.0.1 --also-ports {ports[1]}" in refused.output()
