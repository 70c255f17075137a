"""Deepgram's own Python library against the whole system, live and with recordings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from deepgram import DeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from deepgram.errors import BadRequestError
from deepgram.listen.v1.types import ListenV1Metadata, ListenV1Results, ListenV1SpeechStarted, ListenV1UtteranceEnd

from asrserver.auth.keys import KeyLimits
from tests.gateway.limits.support import Keyed
from tests.program import System
from tests.recordings import Utterance
from tests.system.support import Start, robust
from tests.waiting import wait_until
from tests.worker_harness import encode

#: deepgram-sdk 7.17 looks for what websockets 17 still has, and warns of.
pytestmark = pytest.mark.filterwarnings("ignore:websockets.* is deprecated:DeprecationWarning")

#: What the stream is sent as: the encoding in the query, its rate, FFmpeg's arguments, and the bytes of a message.
ENCODINGS = {
    "linear32": (24000, ("-f", "f32le", "-ar", "24000"), 9600),
    "mulaw": (16000, ("-f", "mulaw"), 160),
    "": (0, ("-c:a", "libopus", "-b:a", "64k", "-f", "webm"), 1000),
}


@contextlib.contextmanager
def client_of(system: System, key: str) -> Iterator[DeepgramClient]:
    http, ws = f"http://127.0.0.1:{system.port}", f"ws://127.0.0.1:{system.port}"
    environment = DeepgramClientEnvironment(base=http, production=ws, agent=ws, agent_rest=http)
    with httpx.Client(timeout=60) as connections:
        yield DeepgramClient(api_key=key, environment=environment, httpx_client=connections)


def talk(
    client: DeepgramClient,
    pieces: Sequence[bytes],
    during: Callable[[list[Any]], object] | None = None,
    **options: Any,
) -> list[Any]:
    """All messages of a live session, up to the end of its connection; `during` runs in its middle, after Finalize."""
    heard: list[Any] = []
    with client.listen.v1.connect(model="nova-3", language="en-US", **options) as connection:
        connection.on(EventType.MESSAGE, heard.append)
        connection.on(EventType.ERROR, heard.append)
        listening = threading.Thread(target=connection.start_listening, daemon=True)
        listening.start()
        for number, piece in enumerate(pieces):
            connection.send_media(piece)
            if during is not None and number == len(pieces) // 2:
                connection.send_finalize()
                during(heard)
        connection.send_close_stream()
        listening.join(60)
    assert isinstance(heard[-1], ListenV1Metadata)
    return heard


def finals(heard: Sequence[Any]) -> list[ListenV1Results]:
    return [message for message in heard if isinstance(message, ListenV1Results) and message.is_final]


def text_of(heard: Sequence[Any]) -> str:
    """The text of all final results, which follow each other."""
    at = 0.0
    for one in finals(heard):
        assert one.start == pytest.approx(at, abs=0.002)
        at = one.start + one.duration
    return " ".join(filter(None, (one.channel.alternatives[0].transcript for one in finals(heard))))


def test_deepgram_s_library(start: Start, utterances: list[Utterance], tmp_path: Path) -> None:
    """Live in several encodings, while the worker is killed, and recorded; and what its users know of errors."""
    keys = Keyed(tmp_path / "keys.json", KeyLimits(starts_per_minute=1))
    system = start("run", "--workers", "1", "--keys-file", str(keys.file.path)).wait_ready()
    said = robust(utterances, 3)
    pcm = bytes(48000).join(one.pcm for one in said)
    text = " ".join(one.text for one in said)

    def kill(heard: list[Any]) -> None:
        wait_until(lambda: any(one.from_finalize for one in finals(heard)), 30)
        [worker] = system.children("worker")
        worker.kill()

    with client_of(system, keys.free_text) as client:
        for encoding, (rate, arguments, size) in ENCODINGS.items():
            data = encode(pcm, *arguments)
            options: dict[str, Any] = {"encoding": encoding, "sample_rate": rate} if encoding else {}
            heard = talk(client, [data[at : at + size] for at in range(0, len(data), size)], **options)
            assert text_of(heard) == text, encoding
            assert heard[-1].duration == pytest.approx(len(pcm) / 32000, abs=0.1)

        pieces = [pcm[at : at + 3200] for at in range(0, len(pcm), 3200)]
        quiet = [bytes(3200)] * 40
        options = {"interim_results": True, "endpointing": 300, "utterance_end_ms": 1000, "vad_events": True}
        heard = talk(client, [*pieces, *quiet, *pieces], kill, encoding="linear16", sample_rate=16000, **options)
        assert text_of(heard) == f"{text} {text}"
        assert sum(one.from_finalize is True for one in finals(heard)) == 1
        assert {ListenV1SpeechStarted, ListenV1UtteranceEnd} <= set(map(type, heard))
        words = [word for one in finals(heard) for word in one.channel.alternatives[0].words]
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        check_recorded(client, encode(pcm, "-f", "flac"), said)

    bad: dict[str, Any] = {"encoding": "speex"}
    with client_of(system, keys.text) as client:
        file = said[0].wav
        once: Any = {"model": "nova-3", "request_options": {"max_retries": 0}}
        found: Any = client.listen.v1.media.transcribe_file(request=file, **once)
        assert found.results.channels[0].alternatives[0].transcript == said[0].text
        with pytest.raises(ApiError) as early:
            client.listen.v1.media.transcribe_file(request=file, **once)
        assert (early.value.status_code, early.value.body["err_code"]) == (429, "TOO_MANY_REQUESTS")
    for key, options, status in (("wrong", {}, 401), (keys.free_text, bad, 400), (keys.text, {}, 429)):
        with client_of(system, key) as other, pytest.raises(websockets.InvalidStatus, match=str(status)):
            talk(other, [], **options)


def check_recorded(client: DeepgramClient, file: bytes, said: list[Utterance]) -> None:
    transcribe = client.listen.v1.media.transcribe_file
    found: Any = transcribe(
        request=file, model="nova-2-general", utterances=True, smart_format=True, detect_language=True
    )
    [channel] = found.results.channels
    assert channel.alternatives[0].transcript == " ".join(one.text for one in said)
    assert channel.detected_language == "en"
    assert channel.alternatives[0].paragraphs.paragraphs
    assert [one.transcript for one in found.results.utterances] == [one.text for one in said]
    with pytest.raises(BadRequestError) as caught:
        transcribe(request=file, model="grass")
    assert caught.value.body["err_code"] == "INVALID_QUERY_PARAMETER"
    with pytest.raises(BadRequestError) as undecodable:
        transcribe(request=b"OggS\0\2" + b"x" * 99_999, model="nova-3")
    assert undecodable.value.body["err_code"] == "UNDECODABLE_AUDIO"
    with pytest.raises(BadRequestError):
        client.listen.v1.media.transcribe_url(url="https://x.example/a.wav")
