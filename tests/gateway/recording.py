"""Shared by the tests of recordings: audio in which every position is recognisable, and sessions that are recorded."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np

from asrserver.gateway.gateway import Gateway
from asrserver.gateway.session import Session
from asrserver.protocol.options import Options, Start
from tests.fakes import FakeWorker
from tests.gateways import offer
from tests.waiting import until


def tone(seconds: float, channels: int = 1, rate: int = 16000) -> bytes:
    """16-bit PCM in which every position is recognisable."""
    samples = np.random.default_rng(int(seconds * 1000)).integers(-9000, 9000, int(seconds * rate) * channels)
    return bytes(samples.astype("<i2").tobytes())


def wav(pcm: bytes, channels: int = 1, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(pcm)
    return buffer.getvalue()


def files(directory: Path) -> list[str]:
    """The names of all files."""
    return [path.name for path in directory.rglob("*") if path.is_file()]


async def session(gateway: Gateway, sid: str = "s", user_id: str = "", resumable: bool = False) -> Session:
    return await gateway.start(Start(sid, user_id, Options(), resumable), lambda event: None)


async def whole(gateway: Gateway, worker: FakeWorker, sid: str, chunks: list[bytes], user_id: str = "") -> None:
    """Run a session from its start to its recording."""
    opened = await session(gateway, sid, user_id)
    for index, data in enumerate(chunks):
        offer(gateway, opened, data, index)
    gateway.finish(opened)
    await end(worker, sid, len(chunks))
    await until(lambda: sid not in gateway.sessions and not gateway.sessions.delivery.keeping)


async def end(worker: FakeWorker, sid: str, count: int) -> None:
    await worker.take(sid)
    await worker.audio(sid, count)
    for index in range(count):
        await worker.chunk(sid, index)
    await worker.final(sid, chunks=count)


async def path_of(gateway: Gateway, sid: str) -> str | None:
    found = await gateway.storage.session(sid)
    return None if found is None else found["audio_path"]
