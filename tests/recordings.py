"""Recordings with their transcripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
