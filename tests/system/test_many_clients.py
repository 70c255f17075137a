"""A hundred of the official clients at once: every text is right."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import openai
import pytest
from deepgram import AsyncDeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from deepgram.listen.v1.types import ListenV1Metadata, ListenV1Results
from dialects import at_24_khz

from tests.recordings import Utterance
from tests.system.support import Running, robust

#: Clients at once, and seconds that all of them may take.
CLIENTS = 100
PATIENCE = 200.0

#: Clients that connect at the same time: their libraries give up after 10 s, which on a busy machine is little for all.
CONNECTING = 10

#: deepgram-sdk 7.17 looks for what websockets 17 still has, and warns of.
pytestmark = [
    pytest.mark.gen_test(timeout=240),
    pytest.mark.filterwarnings("ignore:websockets.* is deprecated:DeprecationWarning"),
]


def pieces(pcm: bytes, size: int) -> Iterator[bytes]:
    return (pcm[at : at + size] for at in range(0, len(pcm), size))


async def deepgram(port: int, pcm: bytes, key: str = "none", door: asyncio.Semaphore | None = None) -> str:
    """As a voice agent does it; to the end of the connection."""
    http, ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
    environment = DeepgramClientEnvironment(base=http, production=ws, agent=ws, agent_rest=http)
    client = AsyncDeepgramClient(api_key=key, environment=environment)
    heard: list[Any] = []
    options: Any = {"encoding": "linear16", "sample_rate": 16000, "interim_results": True}
    async with contextlib.AsyncExitStack() as stack:
        async with door or contextlib.nullcontext():
            connection = await stack.enter_async_context(client.listen.v1.connect(model="nova-3", **options))
        connection.on(EventType.MESSAGE, heard.append)
        listening = asyncio.create_task(connection.start_listening())
        for piece in pieces(pcm, 3200):
            await connection.send_media(piece)
        await connection.send_close_stream()
        await listening
    assert isinstance(heard[-1], ListenV1Metadata)
    finals = [one for one in heard if isinstance(one, ListenV1Results) and one.is_final]
    return " ".join(filter(None, (one.channel.alternatives[0].transcript for one in finals)))


async def realtime(port: int, pcm: bytes, key: str = "none", door: asyncio.Semaphore | None = None) -> str:
    """One turn, which the client commits."""
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
    async with client, contextlib.AsyncExitStack() as stack:
        async with door or contextlib.nullcontext():
            connecting = client.realtime.connect(extra_query={"intent": "transcription"})
            live = await stack.enter_async_context(connecting)
        await live.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        for piece in pieces(at_24_khz(pcm), 4800):
            await live.input_audio_buffer.append(audio=base64.b64encode(piece).decode())
        await live.input_audio_buffer.commit()
        deltas = ""
        async for event in live:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.delta":
                deltas += event.delta or ""
            elif event.type == "conversation.item.input_audio_transcription.completed":
                assert deltas == event.transcript
                return deltas
    raise AssertionError("the connection was lost")


@pytest.mark.parametrize("client", [deepgram, realtime])
async def test_a_hundred_clients(
    running: Running, utterances: list[Utterance], client: Callable[..., Awaitable[str]]
) -> None:
    said = robust(utterances, 30)
    streams = [(said[number % 30], said[(7 * number + 1) % 30]) for number in range(CLIENTS)]
    door = asyncio.Semaphore(CONNECTING)
    async with asyncio.timeout(PATIENCE):
        texts = await asyncio.gather(
            *(client(running.system.port, one.pcm + bytes(48000) + two.pcm, door=door) for one, two in streams)
        )
    assert texts == [f"{one.text} {two.text}" for one, two in streams]
