"""Home Assistant's own library against the whole system, used as Home Assistant uses it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info

from tests.program import System, free_port
from tests.recordings import Utterance
from tests.system.support import robust
from tests.waiting import until

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "home-assistant.md"


async def described(port: int) -> Info:
    """What Home Assistant asks when the server is added."""
    async with asyncio.timeout(1), AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        return Info.from_event(event)


async def transcribed(
    port: int,
    chunks: Sequence[AudioChunk],
    asked: Transcribe | None = None,
    halfway: Callable[[], object] = lambda: None,
) -> str:
    """What Home Assistant does for each command."""
    async with asyncio.timeout(60), AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event((asked or Transcribe(language="en")).event())
        await client.write_event(AudioStart(rate=16000, width=2, channels=1).event())
        for number, chunk in enumerate(chunks):
            if number == len(chunks) // 2:
                halfway()
            await client.write_event(chunk.event())
        await client.write_event(AudioStop().event())
        while (event := await client.read_event()) is not None:
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text
    raise AssertionError("the connection was lost")


def cut(samples: bytes, rate: int = 16000, width: int = 2, channels: int = 1, size: int = 2048) -> list[AudioChunk]:
    return [AudioChunk(rate, width, channels, samples[at : at + size]) for at in range(0, len(samples), size)]


def formats(said: Utterance) -> list[list[AudioChunk]]:
    """The same recording in other formats: each as any client may send it."""
    mono = np.frombuffer(said.pcm, "<i2")
    twice = np.repeat(mono, 2)  # nearly 32 kHz
    wide = mono.astype("<i4") << 16
    return [
        cut(np.stack([mono, mono], 1).tobytes(), channels=2),
        cut(wide.tobytes(), width=4, size=4000),
        cut(wide.view("u1").reshape(-1, 4)[:, 1:].tobytes(), width=3, size=999),
        cut(np.stack([twice] * 3, 1).astype("<i2").tobytes(), rate=32000, channels=3, size=60_000),
        cut(said.pcm, size=len(said.pcm)),
        cut(said.pcm, size=777),
    ]


@pytest.mark.gen_test(timeout=180)
async def test_home_assistant(start: Callable[..., System], utterances: list[Utterance]) -> None:
    port = free_port()
    system = start("run", "--gateways", "2", "--workers", "2", "--wyoming-port", str(port)).wait_ready()
    assert f"wyoming on 127.0.0.1:{port}" in system.output()

    began = time.monotonic()
    [program] = (await described(port)).asr
    assert time.monotonic() - began < 1
    assert program.installed
    assert program.supports_transcript_streaming
    assert [(model.name, model.installed, model.languages) for model in program.models] == [
        ("demo", True, ["en", "zh"])
    ]

    # Many at once, on both gateways; words to favour change nothing where they do not fit.
    said = robust(utterances, 12)
    asked = Transcribe(language="en-GB", transcript_names=["Kitchen"], transcript_terms=["lamp"])
    assert await asyncio.gather(*(transcribed(port, cut(one.pcm)) for one in said)) == [one.text for one in said]
    assert isinstance(await transcribed(port, cut(said[0].pcm), asked), str)
    whole = [await transcribed(port, chunks, Transcribe()) for chunks in formats(said[0])]
    assert whole == [said[0].text] * len(whole)
    assert await transcribed(port, cut(bytes(64_000))) == ""
    assert await transcribed(port, []) == ""
    assert await transcribed(port, cut(said[0].pcm), Transcribe(language="klingon")) == ""

    # The example of the guide, as a program of its own.
    [example] = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    command = [sys.executable, "-c", example.replace("10300", str(port))]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set a timer for six seconds\n", done.stderr

    # A worker dies: its audio is in Redis.
    def kill() -> None:
        for worker in system.children("worker"):
            worker.kill()

    assert await transcribed(port, cut(said[1].pcm), halfway=kill) == said[1].text
    await until(lambda: system.get("/history?limit=1")["total"] == len(said) + 10)
    assert system.stop() == 0
    assert "Traceback" not in system.output()
