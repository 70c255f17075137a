#!/usr/bin/env python3
"""Make the tests' recordings in Mandarin: synthesised speech with transcripts, the same every time.

    python tools/model/recordings.py

Writes tests/data/mandarin/*.opus with transcripts.json. The sentences are of the evaluation's share of the grammar,
which the model never saw in training; the voices are those it was trained with.
"""

from __future__ import annotations

import argparse
import json
import random
from fractions import Fraction
from pathlib import Path

import av
import grammar
import numpy as np
import voices

ROOT = Path(__file__).resolve().parents[2]
SEED = 20261126
RATE = voices.RATE

#: Folders of recordings for the tests: their language, and how many.
UTTERANCES = {"mandarin": ("zh", 20)}


def speech(text: str, language: str, rng: random.Random) -> np.ndarray:
    """A sentence as 16-bit samples, at a level of its own."""
    samples = voices.speak(text, language, rng).samples.astype(np.float32)
    return (samples * (rng.uniform(0.3, 0.8) * 32767 / np.abs(samples).max())).astype(np.int16)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.int16)


def write_opus(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w", format="ogg") as file:
        stream = file.add_stream("libopus", rate=48000, layout="mono")
        stream.bit_rate = 32000
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48000, frame_size=960)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            part.pts = None
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))


def write_transcripts(folder: Path, transcripts: dict[str, str]) -> None:
    (folder / "transcripts.json").write_text(json.dumps(transcripts, indent=1, ensure_ascii=False) + "\n")


def utterances(data: Path) -> None:
    """Single sentences, one a file."""
    rng = random.Random(SEED)
    for name, (language, count) in UTTERANCES.items():
        folder = data / name
        folder.mkdir(parents=True, exist_ok=True)
        transcripts = {f"{number:03}.opus": grammar.draw(language, rng, evaluation=True) for number in range(count)}
        for file, text in transcripts.items():
            write_opus(folder / file, np.concatenate([quiet(0.2), speech(text, language, rng), quiet(0.3)]))
        write_transcripts(folder, transcripts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to write into")
    options = parser.parse_args()
    utterances(options.root / "tests" / "data")


if __name__ == "__main__":
    main()
