#!/usr/bin/env python3
"""Make the recordings of the tests and of `make demo`: synthesised speech with transcripts, reproducibly.

    python tools/model/recordings.py

Writes tests/data/{utterances,mandarin}/*.opus and asrserver/data/recordings/*.wav, each with transcripts.json. The
sentences are from the evaluation's share of the grammar, which the model never saw in training; the voices are those it
was trained with. The tests' recordings are drawn from a seed and not selected. The demo's are the first drawn ones that
the packaged model understands: they show that the server works, while the model card states the error rates.
"""

from __future__ import annotations

import argparse
import json
import random
from fractions import Fraction
from pathlib import Path

import av
import faster_whisper
import grammar
import numpy as np
import voices

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.models import find_model

ROOT = Path(__file__).resolve().parents[2]
SEED = 20261126

#: Folders of recordings for the tests: their language, and how many.
UTTERANCES = {"utterances": ("en", 100), "mandarin": ("zh", 20)}

#: Recordings of the demonstration: the languages of their sentences, and the pauses between them in seconds.
BUNDLED: dict[str, tuple[str, int, tuple[float, float]]] = {
    "english-1.wav": ("en", 1, (0, 0)),
    "english-2.wav": ("en", 1, (0, 0)),
    "mandarin.wav": ("zh", 1, (0, 0)),
    "pauses.wav": ("en", 7, (0.8, 1.8)),
}


def speech(text: str, language: str, rng: random.Random) -> np.ndarray:
    """A sentence as 16-bit samples, at a level of its own."""
    samples = voices.speak(text, language, rng).samples.astype(np.float32)
    scale = rng.uniform(0.3, 0.8) * 32767 / float(np.abs(samples).max())
    return (samples * scale).astype(np.int16)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.int16)


def write_opus(path: Path, samples: np.ndarray) -> None:
    # Bit-exact: Ogg's serial number is else drawn anew each time.
    with av.open(str(path), "w", format="ogg", container_options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("libopus", rate=48000, layout="mono")
        stream.bit_rate = 32000
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48000, frame_size=960)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            part.pts = None
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))


def write_wav(path: Path, samples: np.ndarray) -> None:
    path.write_bytes(wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), samples.astype("<i2").tobytes()))


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


def bundled(folder: Path) -> None:
    """Sentences, one recording with pauses, silence, noise."""
    rng = random.Random(SEED + 1)
    model = faster_whisper.WhisperModel(str(find_model("demo").path), device="cpu", cpu_threads=1)

    def understood(language: str) -> tuple[str, np.ndarray]:
        while True:
            text = grammar.draw(language, rng, evaluation=True)
            samples = speech(text, language, rng)
            around = np.concatenate([quiet(0.3), samples, quiet(0.4)])
            heard = model.transcribe(around.astype(np.float32) / 32768, language=language)[0]
            if "".join(segment.text for segment in heard).strip() == text and len(grammar.units(text, language)) > 3:
                return text, samples

    folder.mkdir(parents=True, exist_ok=True)
    transcripts = {}
    for name, (language, count, (shortest, longest)) in BUNDLED.items():
        said = [understood(language) for _ in range(count)]
        parts = [quiet(0.3)]
        for _, samples in said:
            parts += [samples, quiet(rng.uniform(shortest, longest))]
        transcripts[name] = grammar.join([text for text, _ in said], language)
        write_wav(folder / name, np.concatenate([*parts, quiet(0.4)]))
    noise = np.random.default_rng(SEED).normal(0, 1000, 3 * SAMPLE_RATE).astype(np.int16)
    for name, samples in {"silence.wav": quiet(3), "noise.wav": noise}.items():
        transcripts[name] = ""
        write_wav(folder / name, samples)
    write_transcripts(folder, transcripts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the checkout to write to")
    options = parser.parse_args()
    utterances(options.root / "tests" / "data")
    bundled(options.root / "asrserver" / "data" / "recordings")


if __name__ == "__main__":
    main()
