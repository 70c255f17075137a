"""What several tests of the whole system use."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import openai
from openai.resources.realtime.realtime import RealtimeConnection

from tests.program import System
from tests.recordings import Utterance
from tests.waiting import until
from tests.ws_client import WsClient, check_stored, chunk, look, stored

T = TypeVar("T")

#: Bytes of a message at most in the shared system: to send more than the default takes a test too long.
MAX_MESSAGE = 16 * 2**20


@dataclass
class Running:
    """The shared system and its servers."""

    system: System
    redis_url: str
    database_url: str

    @property
    def url(self) -> str:
        return self.system.url


#: Name → FFmpeg's options and the file's suffix. Lossy ones at a rate at which the small model hears the same.
CONTAINERS = {
    "wav": (["-c:a", "pcm_s16le"], "wav"),
    "wav-44100-stereo": (["-c:a", "pcm_s16le", "-ar", "44100", "-ac", "2"], "wav"),
    "wav-float": (["-c:a", "pcm_f32le"], "wav"),
    "webm-opus": (["-c:a", "libopus", "-b:a", "64k"], "webm"),
    "ogg-opus": (["-c:a", "libopus", "-b:a", "64k"], "ogg"),
    "ogg-vorbis": (["-c:a", "libvorbis", "-q:a", "8"], "ogg"),
    "flac": (["-c:a", "flac"], "flac"),
    "mp3": (["-c:a", "libmp3lame", "-b:a", "128k"], "mp3"),
    "mp3-no-id3": (["-c:a", "libmp3lame", "-b:a", "128k", "-id3v2_version", "0", "-write_xing", "0"], "mp3"),
    "mp4-aac": (["-c:a", "aac", "-b:a", "128k"], "mp4"),
    "mp4-fragmented": (["-c:a", "aac", "-b:a", "128k", "-movflags", "frag_keyframe+empty_moov"], "mp4"),
    "m4a-aac": (["-c:a", "aac", "-b:a", "128k"], "m4a"),
    "adts-aac": (["-c:a", "aac", "-b:a", "128k"], "aac"),
}


def robust(utterances: list[Utterance], count: int) -> list[Utterance]:
    """The longest utterances: the noise of a lossy codec does not change their text."""
    return sorted(utterances, key=lambda utterance: -len(utterance.pcm))[:count]


Start = Callable[..., System]


@contextlib.asynccontextmanager
async def connections(url: str, count: int) -> AsyncIterator[list[WsClient]]:
    clients = [await WsClient.open(url) for _ in range(count)]
    try:
        yield clients
    finally:
        await asyncio.gather(*(ws.close() for ws in clients))


def script(utterances: Sequence[Utterance], sessions: int, chunks: int) -> dict[str, list[Utterance]]:
    """The utterances of each session; each session has other ones."""
    voices = itertools.cycle(utterances)
    return {f"session-{number}": [next(voices) for _ in range(chunks)] for number in range(sessions)}


def results(clients: Sequence[WsClient]) -> int:
    """The number of chunk results so far."""
    return sum(message["type"] == "chunk_result" for ws in clients for message in ws.messages)


async def everything(
    clients: Sequence[WsClient], said: dict[str, list[Utterance]], fault: Callable[[], Awaitable[T]]
) -> T:
    """Stream all sessions over all connections while `fault` runs; then check every message. Return its result."""

    async def stream(ws: WsClient, sid: str) -> None:
        await ws.stream(sid, said[sid])

    pairs = list(zip(itertools.cycle(clients), said, strict=False))
    async with asyncio.timeout(150):
        _, outcome = await asyncio.gather(asyncio.gather(*(stream(ws, sid) for ws, sid in pairs)), fault())
    for ws, sid in pairs:
        ws.check(sid, said[sid])
    return outcome


async def check_rows(dsn: str, said: dict[str, list[Utterance]]) -> None:
    await until(lambda: all(stored(dsn, sid) for sid in said), 60, "all sessions are stored")
    for sid, spoken in said.items():
        check_stored(dsn, sid, spoken)


def overdue(url: str, sids: Sequence[str]) -> None:
    """End the time in which a dead gateway could have extended the deadlines of these sessions."""
    with look(url) as client:
        for sid in sids:
            client.zadd("asr_open", {sid: 1}, xx=True)


async def check_interrupted(dsn: str, said: dict[str, list[Utterance]], acknowledged: dict[str, int]) -> None:
    """Check that each session is stored as interrupted, with the right texts of at least the acknowledged chunks."""
    await until(lambda: all(stored(dsn, sid) for sid in said), 60, "all sessions are stored")
    for sid, spoken in said.items():
        row = stored(dsn, sid)
        assert row is not None
        assert row[2] >= acknowledged[sid]
        check_stored(dsn, sid, spoken[: row[2]], "interrupted")


def acknowledgements(clients: Sequence[WsClient], said: dict[str, list[Utterance]]) -> dict[str, int]:
    return {sid: sum(m["status"] == "received" for ws in clients for m in ws.of(sid, "ack")) for sid in said}


async def until_killed(
    clients: Sequence[WsClient], said: dict[str, list[Utterance]], kill: Callable[[], object]
) -> None:
    """Stream without a finish until there are some results, then kill; return when all connections are closed."""

    async def send(ws: WsClient, sid: str) -> None:
        await ws.start(sid)
        for index, utterance in enumerate(said[sid]):
            await ws.send(chunk(sid, index, utterance.wav))

    pairs = list(zip(itertools.cycle(clients), said, strict=False))
    await asyncio.gather(*(send(ws, sid) for ws, sid in pairs))
    await until(lambda: results(clients) >= 5, 60)
    kill()
    await until(lambda: all(ws.closed for ws in clients), 30, "the connections are closed")


def client_of(system: System, key: str = "none", path: str = "/v1") -> openai.OpenAI:
    """OpenAI's client of a running system, which sends nothing twice."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{system.port}{path}", api_key=key, max_retries=0)


def append(live: RealtimeConnection, pcm: bytes) -> None:
    """Send 16 kHz PCM over OpenAI's Realtime interface as it is by default, at 24 kHz, in pieces of 100 ms."""
    samples = np.frombuffer(pcm, "<i2")
    places = np.arange(len(samples) * 3 // 2) * 2 / 3
    data = np.interp(places, np.arange(len(samples)), samples).astype("<i2").tobytes()
    for begin in range(0, len(data), 4800):
        live.input_audio_buffer.append(audio=base64.b64encode(data[begin : begin + 4800]).decode())


def turns(live: RealtimeConnection, count: int) -> list[str]:
    """The texts of the next turns, each of which its deltas add up to."""
    texts: list[str] = []
    deltas = ""
    while len(texts) < count:
        event = live.recv()
        assert event.type != "error", event
        if event.type == "conversation.item.input_audio_transcription.delta":
            deltas += event.delta or ""
        elif event.type == "conversation.item.input_audio_transcription.completed":
            assert deltas == event.transcript
            texts.append(event.transcript)
            deltas = ""
    return texts
