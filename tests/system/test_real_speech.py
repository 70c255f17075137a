"""Real Whisper models on the voices of people, through the whole system: the texts, not the times.

The models are the wheels of the extra `whisper`; the recordings are those of Debian's packages (tools/real_voices.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
import real_voices
from real_voices import Voice

from asrserver.audio import wav
from asrserver.client import Client
from asrserver.errors import ModelError
from asrserver.models import find_model
from asrserver.text.wer import spoken, word_errors
from tests.program import System

#: Prompts in English whose transcripts have neither digits nor abbreviations.
ENGLISH = ("demo-congrats", "tt-allbusy", "queue-periodic-announce", "vm-newuser", "vm-invalid-password")

#: The one that is sent as a file.
FILE = "demo-abouttotry"

#: Monkeys: loud, and nobody speaks.
NO_SPEECH = "tt-monkeys"

#: The same prompt in other languages, and what it must contain: these packages have no transcripts.
OTHERS = {"es": "su llamada será atendida en el orden", "it": "al momento impegnati con altri clienti"}
OTHER = "tt-allbusy"

#: Bytes of a chunk of a live stream: 100 ms.
CHUNK = real_voices.RATE // 10 * 2

#: Words of the shortest phrase that counts as repeated when it follows itself.
REPEATED_WORDS = 3


def required(reason: str) -> None:
    """Skip the test, but not in CI: there a skip would hide that real speech is not tested any more."""
    assert not os.environ.get("CI"), reason
    pytest.skip(f"real speech is NOT tested: {reason}")


@pytest.fixture(scope="module")
def _voices() -> None:
    """The recordings are there."""
    if not all((real_voices.DIRECTORY / package).is_dir() for package in real_voices.PACKAGES):
        required("no recordings: `make voices` downloads them from Debian, and says why it cannot")


def repeated(text: str) -> list[str]:
    """The first phrase that follows itself, as decoders in a loop write it; empty if there is none."""
    heard = real_voices.words(text)
    for length in range(REPEATED_WORDS, len(heard) // 2 + 1):
        for at in range(len(heard) - 2 * length + 1):
            if heard[at : at + length] == heard[at + length : at + 2 * length]:
                return heard[at : at + length]
    return []


async def live(client: Client, voice: Voice, partials: bool = False) -> dict[str, Any]:
    """Stream a recording, faster than real time; returns its final result."""
    session = await client.start(mode="stream", format="pcm_s16le", partials=partials)
    for at in range(0, len(voice.pcm), CHUNK):
        await session.send(voice.pcm[at : at + CHUNK])
    return await session.finish()


async def file(client: Client, voice: Voice) -> dict[str, Any]:
    """Send a recording as one file; returns its final result."""
    session = await client.start()
    await session.send(wav.encode(wav.Format.of("pcm_s16le", 1, real_voices.RATE), voice.pcm))
    return await session.finish()


def check(said: list[Voice], results: list[dict[str, Any]], most: float) -> None:
    """Check the texts of recordings in English, with at most this share of the words wrong."""
    told = "\n".join(f"{voice.name}: {result['text']}" for voice, result in zip(said, results, strict=True))
    assert [repeated(result["text"]) for result in results] == [[]] * len(said), told
    assert {result["language"] for result in results} == {"en"}, told
    errors = sum(
        word_errors(real_voices.words(voice.text), real_voices.words(result["text"]))
        for voice, result in zip(said, results, strict=True)
    )
    count = sum(len(real_voices.words(voice.text)) for voice in said)
    assert errors <= most * count, f"{errors} of {count} words are wrong:\n{told}"


@pytest.mark.usefixtures("_voices")
@pytest.mark.gen_test(timeout=170)
@pytest.mark.parametrize(("model", "most"), [("base", 0.03), ("tiny.en", 0.05)])
async def test_real_voices(start: Callable[..., System], model: str, most: float) -> None:
    """Live streams and a file: few word errors, no phrase twice, the right language, no words where nobody speaks.

    Measured: base has 3 of 262 words wrong (slips of the transcripts), tiny.en 7.
    """
    try:
        find_model(model, download=False)
    except ModelError as exc:
        required(f"the extra whisper is not installed: {exc}")
    said = [*real_voices.prompts(ENGLISH), *real_voices.book()]
    monkeys, recording = real_voices.prompts([NO_SPEECH, FILE])
    others = {} if model.endswith(".en") else OTHERS
    foreign = [voice for language in others for voice in real_voices.prompts([OTHER], language)]
    url = start("run", "--model", model).wait_ready().url
    async with await Client.connect(url) as client:
        streams = [live(client, voice, partials=voice is said[0]) for voice in (*said, monkeys, *foreign)]
        whole, *results = await asyncio.gather(file(client, recording), *streams)
    check([*said, recording], [*results[: len(said)], whole], most)
    nothing, *translated = results[len(said) :]
    assert nothing["text"] == ""
    assert [result["language"] for result in translated] == list(others)
    for result, phrase in zip(translated, others.values(), strict=True):
        assert phrase in " ".join(spoken(result["text"]))


def test_a_phrase_that_follows_itself_is_found() -> None:
    assert repeated("What can you do for you? what can you do for you.") == ["what", "can", "you", "do", "for", "you"]
    assert repeated("Press one, press one or two, and then press the pound key.") == []
