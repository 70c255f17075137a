"""The conditions in which a corpus is recognised: each makes other recordings of it, the same ones at every run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from live import Utterance

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from evaluation.corpus import Take, spoken_language

#: Seconds in which an echo becomes a thousandth as loud (RT60), as in a bare living room; and the energy of the direct
#: sound over that of all echoes.
ECHO_SECONDS = 0.6
DIRECT_TO_ECHO = 1.0

#: The band of a telephone in hertz, and the sharpness of its filter in samples.
TELEPHONE_BAND = (300.0, 3400.0)
FILTER_LENGTH = 255

#: Levels of the logarithmic coder of telephones (G.711, mu-law).
MU = 255.0

#: Level of the noise between joined sentences: no microphone is perfectly silent.
FLOOR = 10 ** (-70 / 20)

#: Samples of a frame, and the share of the recording's peak below which a frame is no part of the speech whose power is
#: measured.
FRAME = 160
SPEECH = 0.02

#: Minutes of joined recordings.
JOINED_MINUTES = (3.0, 10.0)

#: Seconds between joined sentences.
SHORT_GAPS = (0.2, 0.6)
LONG_GAPS = (1.0, 3.0)


def noisy(samples: Samples, noise: Samples, ratio: float, random: np.random.Generator) -> Samples:
    """Add a noise, repeated from a random place on, at a signal-to-noise ratio in decibels.

    The signal's power is that without its pauses. The result is scaled down where it would clip.
    """
    start = int(random.integers(len(noise)))
    added = np.resize(np.roll(noise, -start), len(samples)).astype(np.float32)
    power = float(np.mean(added**2))
    if power > 0:
        added *= np.float32(np.sqrt(_speech_power(samples) / power / 10 ** (ratio / 10)))
    mixed = samples + added
    return np.asarray(mixed / max(1.0, float(np.abs(mixed).max(initial=0.0))), np.float32)


def _speech_power(samples: Samples) -> float:
    """Power of the frames that are not quiet."""
    frames = np.resize(samples, (-(-len(samples) // FRAME), FRAME))
    peaks = np.abs(frames).max(axis=1)
    return float(np.mean(frames[peaks >= SPEECH * peaks.max()] ** 2))


def reverberant(samples: Samples, random: np.random.Generator) -> Samples:
    """The samples as a microphone hears them from across a room: an echo of noise that decays exponentially."""
    length = int(ECHO_SECONDS * SAMPLE_RATE)
    echo = random.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    echo[0] = 0
    echo *= np.sqrt(1 / DIRECT_TO_ECHO / np.sum(echo**2))
    echo[0] = 1
    size = 1 << (len(samples) + length - 1).bit_length()
    heard = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(echo, size), size)[: len(samples) + length - 1]
    peak = max(1e-9, float(np.abs(heard).max(initial=0.0)))
    return np.asarray(heard * (np.abs(samples).max(initial=0.0) / peak), np.float32)


def telephone(samples: Samples) -> Samples:
    """The samples after a telephone line: its band, 8 kHz, 8 bits in mu-law."""
    taps = np.arange(FILTER_LENGTH) - FILTER_LENGTH // 2
    low, high = (2 * hertz / SAMPLE_RATE for hertz in TELEPHONE_BAND)
    band = (high * np.sinc(high * taps) - low * np.sinc(low * taps)) * np.hamming(FILTER_LENGTH)
    narrow = np.convolve(samples, band, "same")[::2]
    coded = np.sign(narrow) * np.log1p(MU * np.minimum(1.0, np.abs(narrow))) / np.log1p(MU)
    levels = np.round(coded * 127) / 127
    decoded = np.sign(levels) * np.expm1(np.abs(levels) * np.log1p(MU)) / MU
    wide = np.zeros(len(samples))
    wide[::2] = decoded
    return np.asarray(
        np.convolve(wide, 2 * high * np.sinc(high * taps) * np.hamming(FILTER_LENGTH), "same"), np.float32
    )


def joined(takes: Sequence[Take], minutes: float, gaps: tuple[float, float], random: np.random.Generator) -> Take:
    """Join takes of one language to a recording, in random order, each as often as the others.

    Args:
        takes: What is joined.
        minutes: How long the recording is, at least.
        gaps: Seconds between two takes: from, to.
        random: Decides.
    """
    parts: list[Samples] = []
    said: list[Utterance] = []
    at, waiting = 0, list[int]()
    while at < minutes * 60 * SAMPLE_RATE:
        waiting = waiting or list(random.permutation(len(takes)))
        take = takes[waiting.pop()]
        gap = int(random.uniform(*gaps) * SAMPLE_RATE)
        begin = at / SAMPLE_RATE
        said += [Utterance(one.text, begin + one.start, begin + one.end) for one in take.said]
        parts += [take.samples, (random.standard_normal(gap) * FLOOR).astype(np.float32)]
        at += len(take.samples) + gap
    name = f"joined, {minutes:g} minutes, gaps of {gaps[0]:g} to {gaps[1]:g} s"
    return Take(np.concatenate(parts), said, name, takes[0].language)


def _each(change: Callable[[Samples, np.random.Generator, list[Samples], int], Samples]) -> Condition:
    """A condition that changes each take in which somebody speaks."""

    def make(corpus: list[Take], minutes: Sequence[float]) -> list[Take]:
        noises = [take.samples for take in corpus if not take.speech]
        spoken = [take for take in corpus if take.speech]
        return [
            replace(take, samples=change(take.samples, _random(take.name), noises, number))
            for number, take in enumerate(spoken)
        ]

    return make


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _with_noise(ratio: float) -> Condition:
    """The takes with one of the corpus's noises each; none where it has no noises."""

    def change(samples: Samples, random: np.random.Generator, noises: list[Samples], number: int) -> Samples:
        return noisy(samples, noises[number % len(noises)], ratio, random)

    make = _each(change)
    return lambda corpus, minutes: make(corpus, minutes) if any(not take.speech for take in corpus) else []


def _joined(gaps: tuple[float, float]) -> Condition:
    def make(corpus: list[Take], minutes: Sequence[float]) -> list[Take]:
        language = spoken_language(corpus)
        takes = [take for take in corpus if take.said and take.checked and take.language == language]
        return [joined(takes, length, gaps, _random(f"{length} {gaps}")) for length in minutes] if takes else []

    return make


#: Makes the recordings of a condition from all of the corpus, and minutes of each joined recording.
Condition = Callable[[list[Take], Sequence[float]], list[Take]]

CONDITIONS: dict[str, Condition] = {
    "clean": lambda corpus, _: [take for take in corpus if take.speech],
    "noise10": _with_noise(10.0),
    "noise5": _with_noise(5.0),
    "reverb": _each(lambda samples, random, *_: reverberant(samples, random)),
    "telephone": _each(lambda samples, *_: telephone(samples)),
    "joined-short": _joined(SHORT_GAPS),
    "joined-long": _joined(LONG_GAPS),
    "none": lambda corpus, _: [take for take in corpus if not take.speech],
}
