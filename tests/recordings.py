"""Recordings with their transcripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asrserver.audio import SAMPLE_RATE, wav

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Utterance:
    """A recording: 16 kHz 16-bit mono PCM, and its transcript."""

    name: str
    text: str
    pcm: bytes

    @property
    def wav(self) -> bytes:
        return wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), self.pcm)


def recorded(folder: str) -> list[Utterance]:
    """The recordings of a folder of tests/data, with their transcripts."""
    from asrserver.audio import files

    found = []
    for name, text in json.loads((DATA / folder / "transcripts.json").read_text()).items():
        samples = files.decode((DATA / folder / name).read_bytes(), "ogg", 60)
        found.append(Utterance(name, text, (samples * 32767).astype("<i2").tobytes()))
    return found


def understood(utterances: list[Utterance]) -> list[Utterance]:
    """The recordings that the model understands reliably.

    It understands them as a whole and by segments, shifted by a few milliseconds, with silence around them, with the
    noise of a lossy codec, and with a given or a detected language: a test that changes no more than that may expect
    the right text.
    """
    from asrserver.inference import vad
    from asrserver.inference.decoding import Request
    from asrserver.inference.features import log_mel
    from asrserver.inference.whisper import Whisper
    from asrserver.inference.windows import window_for

    model = Whisper("demo", "cpu", "default", 1, 1)
    random = np.random.default_rng(1)

    def text(samples: np.ndarray, request: Request, whole: bool = False) -> str:
        spans = [(0, len(samples))] if whole else vad.segments(samples, 0.4)
        rows = [(samples[a:b], (b - a) / 16000) for a, b in spans]
        return " ".join(
            model.recognise([(log_mel(part, window_for(seconds, "fit"), model.n_mels), request, seconds)])[0].text
            for part, seconds in rows
        )

    def heard(utterance: Utterance) -> Iterator[str]:
        samples = np.frombuffer(utterance.pcm, "<i2").astype(np.float32) / 32768
        yield text(samples, Request("en"), whole=True)
        for around in (0, 1728, 16000):
            yield text(np.pad(samples, around), Request())
        for level in (0.01, 0.02):
            noise = random.normal(0, level, len(samples)).astype(np.float32)
            yield text(np.pad(samples + noise * np.abs(samples), 1000), Request())

    found = [one for one in utterances if all(one.text == text for text in heard(one))]
    assert len(found) > 50
    return found
