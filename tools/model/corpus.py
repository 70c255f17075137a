"""Training rows as tokens and features: sentences combined, cut and made noisy in the domain of mel power.

The rows resemble what the live server recognises: single sentences in the shortest window, sentences joined with short
gaps up to 28 s, speech cut at any point (forced cuts, partial results), full windows with long silence, and no speech.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mel import FLOOR, MELS, log_power, normalised
from vocabulary import Vocabulary

from asrserver.inference.features import FRAMES_PER_SECOND, mel_filters
from asrserver.inference.windows import WINDOWS

LONGEST = 28 * FRAMES_PER_SECOND

#: What a batch holds, in frames: twenty windows of 4 s.
BATCH_FRAMES = 8000

#: Frames of a word that may be missing, or there, without a cut having gone through it (fragments.py's).
TOLERANCE = 2

#: Of a word that a cut went through, the least share from which it may be told: from less it is to be left out, from
#: more either is right, as fragments.py counts it, and training decides by what the model can tell. A share from which
#: it had to be written taught it to guess: half of a word, cut from what comes before it, is half of many.
TOLD = 0.3

#: How often each kind of row comes, before windows are counted: at first, while attention finds its place, and then.
FIRST_KINDS = {"single": 0.70, "joined": 0.0, "cut": 0.24, "nothing": 0.06}
KINDS = {"single": 0.16, "joined": 0.31, "cut": 0.45, "nothing": 0.08}

#: How often each language comes: English has more words and more ways to put them.
LANGUAGES = {"en": 0.6, "zh": 0.4}


class Word(NamedTuple):
    """A word and when it is spoken, in frames; of a fragment a cut has left a part."""

    text: str
    start: float
    end: float
    fragment: bool = False


@dataclass
class Sentence:
    """One utterance of the corpus: log10 power [frames, MELS] and its words."""

    features: np.ndarray
    words: list[Word]


@dataclass
class Reading:
    """One right way to write a row: decoder input, targets (-1: none), and where each target is spoken.

    `spans` are (start, end) in encoder steps of 20 ms, (-1, -1) for tokens that are not spoken. `text` has no prompt.
    """

    inputs: list[int]
    targets: list[int]
    spans: list[tuple[float, float]]
    text: list[int]


@dataclass
class Row:
    """One window: features [MELS, window], and its readings: a fragment of a word may be written or left out.

    `hears` is the position where the language is asked for without its token, or -1.
    """

    features: np.ndarray
    readings: list[Reading]
    language: int
    hears: int = -1


@dataclass
class _Speech:
    """Sentences laid out in time: power [frames, MELS], and each sentence's words."""

    power: np.ndarray
    sentences: list[list[Word]] = field(default_factory=list)
    edges: list[tuple[float, float]] = field(default_factory=list)


class Corpus:
    """The training shards of a folder in memory, and rows made of them at random."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, seed: int) -> None:
        self._vocabulary = vocabulary
        self._rng = np.random.default_rng(seed)
        self._sentences: dict[str, list[Sentence]] = defaultdict(list)
        for path in sorted(set(folder.glob("*.npz")) - set(folder.glob("evaluation-*.npz"))):
            with np.load(path) as shard:
                features, position = shard["features"], 0
                for record in json.loads(str(shard["records"])):
                    words = [
                        Word(word, start * FRAMES_PER_SECOND, end * FRAMES_PER_SECOND)
                        for word, start, end in record["words"]
                    ]
                    piece = features[position : position + record["frames"]]
                    self._sentences[record["language"]].append(Sentence(piece, words))
                    position += record["frames"]
        if not self._sentences:
            raise SystemExit(f"no training shards in {folder}: run generate.py first")
        self._noises = noises(np.random.default_rng(seed + 1))
        self.first = True  # short rows alone: they teach most for what they cost
        # A telephone's 8 kHz: the bands whose filters lie above 4 kHz, in the lower half of the spectrum, hear nothing.
        filters = mel_filters(MELS)
        self._telephone = (filters.argmax(axis=1) < filters.shape[1] / 2).astype(np.float32)
        self._warps = [_warp(factor) for factor in np.linspace(0.9, 1.1, 9)]

    def batches(self) -> Iterator[list[Row]]:
        """Rows of one window length, about BATCH_FRAMES together, for ever."""
        bins: dict[int, list[Row]] = defaultdict(list)
        while True:
            row = self.row()
            window = row.features.shape[1]
            bins[window].append(row)
            if len(bins[window]) * window >= BATCH_FRAMES:
                yield bins.pop(window)

    def row(self) -> Row:
        rng = self._rng
        kinds = FIRST_KINDS if self.first else KINDS
        kind = rng.choice(list(kinds), p=list(kinds.values()))
        language = str(rng.choice(list(LANGUAGES), p=list(LANGUAGES.values())))
        if kind == "nothing":
            # Half as short as what a voice-activity detector takes for speech: a chord of music was written as 二.
            frames = int(rng.integers(25, 100) if rng.random() < 0.5 else rng.integers(50, 1000))
            return self._finish(_Speech(np.zeros((frames, MELS), np.float32)), language, noise=True)
        if kind == "single":
            speech = self._lay_out(language, 1)
        elif kind == "joined":
            speech = self._lay_out(language, int(rng.integers(2, 7)))
        else:
            speech = self._cut(self._lay_out(language, 1 if self.first else int(rng.integers(1, 4))))
        return self._finish(speech, language, noise=rng.random() < 0.6)

    def _lay_out(self, language: str, count: int) -> _Speech:
        """Sentences one after another: silence, speech, gap, speech, …; at most LONGEST frames."""
        rng = self._rng
        # What a voice-activity detector keeps around speech, and now and then much more.
        lead = rng.uniform(0, 0.35) if rng.random() < 0.8 else rng.uniform(0, 1.0)
        pieces = [np.zeros((int(lead * FRAMES_PER_SECOND), MELS), np.float32)]
        position = len(pieces[0])
        speech = _Speech(pieces[0])
        pool = self._sentences[language]
        same = rng.random() < 0.5  # one speaker cannot be had for sentences of a random corpus: one colour for all
        colour = self._colour()
        for number in range(count):
            sentence = pool[int(rng.integers(len(pool)))]
            if position + len(sentence.features) > LONGEST:
                break
            if number:
                gap = int((rng.uniform(0.1, 0.4) if rng.random() < 0.8 else rng.uniform(0.05, 1.5)) * FRAMES_PER_SECOND)
                pieces.append(np.zeros((gap, MELS), np.float32))
                position += gap
            power = np.power(np.float32(10), sentence.features.astype(np.float32))
            warp, gain = colour if same else self._colour()
            power = power @ warp * gain
            pieces.append(power)
            speech.sentences.append([Word(w.text, position + w.start, position + w.end) for w in sentence.words])
            speech.edges.append((position, position + len(power)))
            position += len(power)
        tail = rng.uniform(0, 0.5) if rng.random() < 0.8 else rng.uniform(0, 2.0)
        pieces.append(np.zeros((int(tail * FRAMES_PER_SECOND), MELS), np.float32))
        speech.power = np.concatenate(pieces)
        return speech

    def _colour(self) -> tuple[np.ndarray, np.ndarray]:
        """A speaker's and a room's change: the formants moved, bands raised and lowered, louder or softer."""
        rng = self._rng
        warp = self._warps[int(rng.integers(len(self._warps)))] if rng.random() < 0.6 else self._warps[4]
        curve = np.interp(np.arange(MELS), np.linspace(0, MELS - 1, 5), rng.normal(0, 3.0, 5))
        decibels = curve * (rng.random() < 0.6) + rng.uniform(-12, 6)
        return warp, (10 ** (decibels / 10)).astype(np.float32)

    def _cut(self, speech: _Speech) -> _Speech:
        """The speech cut at its start, its end or both, mid-word too.

        At its start more often: what follows has no context there, and most errors on cut speech were the first word
        or two. Often silence is put where the cut was: without it a silent start would tell that the word is whole.
        """
        rng = self._rng
        length = len(speech.power)
        begin = int(rng.uniform(0, 0.5) * length) if rng.random() < 0.7 else 0
        end = int(length - rng.uniform(0, 0.7) * (length - begin)) if begin == 0 or rng.random() < 0.5 else length
        end = min(max(end, begin + 40), length)
        lead, tail = (int(rng.uniform(0, 0.35) * FRAMES_PER_SECOND) if rng.random() < 0.6 else 0 for _ in range(2))
        result = _Speech(np.pad(speech.power[begin:end], ((lead, tail), (0, 0))))
        shift = lead - begin
        for words, (first, last) in zip(speech.sentences, speech.edges, strict=True):
            kept = []
            for word in words:
                start, stop = max(word.start, begin), min(word.end, end)
                fragment = stop - start < word.end - word.start - TOLERANCE
                if stop - start > (max(TOLD * (word.end - word.start), TOLERANCE) if fragment else 0):
                    kept.append(Word(word.text, start + shift, stop + shift, fragment))
            if kept:
                result.sentences.append(kept)
                result.edges.append((max(first, begin) + shift, min(last, end) + shift))
        return result

    def _finish(self, speech: _Speech, language: str, noise: bool) -> Row:
        """Noise, a window, features, tokens."""
        rng = self._rng
        power = speech.power
        length = len(power)
        wanted = length + int(rng.uniform(0, 0.5) * FRAMES_PER_SECOND)
        window = next((frames for frames in WINDOWS if frames >= wanted), WINDOWS[-1])
        if rng.random() < 0.03 and not self.first:
            window = WINDOWS[-1]
        elif rng.random() < 0.1:
            window = WINDOWS[min(WINDOWS.index(window) + int(rng.integers(1, 4)), len(WINDOWS) - 1)]
        if noise:
            # Through the padding too, half of the time: a microphone does not fall silent.
            span = window if rng.random() < 0.5 else length
            loudest = float(power.max(initial=0)) or 1.0
            sound = self._noises[int(rng.integers(len(self._noises)))]
            start = int(rng.integers(len(sound) - span + 1))
            sound = sound[start : start + span]
            ratio = rng.uniform(15, 55) if speech.sentences else rng.uniform(-20, 60)
            noisy = np.zeros((span, MELS), np.float32)
            noisy[:length] = power[:span]
            power = noisy + sound * (loudest / float(sound.max()) * 10 ** (-ratio / 10))
        if rng.random() < 0.1:
            power = power * self._telephone
        features = normalised(power, window)
        if rng.random() < 0.3:
            band = int(rng.integers(1, 9))
            first = int(rng.integers(MELS - band))
            features[first : first + band] = features.mean()
        return self._tokens(speech, language, features)

    def _tokens(self, speech: _Speech, language: str, features: np.ndarray) -> Row:
        rng, vocabulary = self._rng, self._vocabulary
        with_language = rng.random() < 0.6
        timestamps = rng.random() < 0.45
        prompt = [vocabulary.sot]
        if with_language:
            prompt += [vocabulary.languages[language], vocabulary.transcribe]
        if not timestamps:
            prompt.append(vocabulary.no_timestamps)
        before = [vocabulary.previous, *self._previous(language)] if rng.random() < 0.08 else []
        asks = not with_language and not timestamps  # for the language: <|notimestamps|> is never predicted
        fragments = [word for words in speech.sentences for word in words if word.fragment]
        readings = []
        for choice in itertools.product((False, True), repeat=len(fragments)):
            text, spoken = self._written(speech, set(itertools.compress(fragments, choice)), language, timestamps)
            inputs = [*before, *prompt, *(token for token, _ in spoken)]
            targets = [-1] * len(before) + inputs[len(before) + 1 :] + [vocabulary.eot]
            if not text:
                targets[len(before)] = vocabulary.no_speech
            elif asks:
                targets[len(before)] = vocabulary.languages[language]
            spans = [(-1.0, -1.0)] * (len(before) + len(prompt) - 1) + [span for _, span in spoken] + [(-1.0, -1.0)]
            readings.append(Reading(inputs, targets, spans, text))
        hears = len(before) + len(prompt) - 1 if asks and readings[0].text else -1
        return Row(features, readings, vocabulary.languages[language], hears)

    def _written(
        self, speech: _Speech, left_out: set[Word], language: str, timestamps: bool
    ) -> tuple[list[int], list[tuple[int, tuple[float, float]]]]:
        """The speech without some of its words: the tokens of its text, and all of its tokens with their spans."""
        vocabulary = self._vocabulary
        text: list[int] = []
        spoken: list[tuple[int, tuple[float, float]]] = []
        for words, (first, last) in zip(speech.sentences, speech.edges, strict=True):
            kept = [word for word in words if word not in left_out]
            if timestamps and kept:
                spoken.append((vocabulary.timestamp(first / FRAMES_PER_SECOND), (-1, -1)))
            for word, start, end, _ in kept:
                tokens = vocabulary.unit(word, language)
                text += tokens
                step = (end - start) / len(tokens)
                spoken += [
                    (token, ((start + n * step) / 2, (start + (n + 1) * step) / 2)) for n, token in enumerate(tokens)
                ]
            if timestamps and kept:
                spoken.append((vocabulary.timestamp(last / FRAMES_PER_SECOND), (-1, -1)))
        return text, spoken

    def _previous(self, language: str) -> list[int]:
        """Text as a prompt: sentences that were said before, which say nothing of what is said now."""
        rng, pool = self._rng, self._sentences[language]
        tokens: list[int] = []
        for _ in range(int(rng.integers(1, 9))):
            for word in pool[int(rng.integers(len(pool)))].words:
                tokens += self._vocabulary.unit(word.text, language)
        return tokens[-200:]


def _warp(factor: float) -> np.ndarray:
    """A matrix [MELS, MELS] that moves power along the mel axis by a factor (vocal tract length perturbation)."""
    matrix = np.zeros((MELS, MELS), np.float32)
    for band in range(MELS):
        position = min(band * factor, MELS - 1.001)
        low = math.floor(position)
        matrix[low, band] += 1 - (position - low)
        matrix[low + 1, band] += position - low
    return matrix


def noises(rng: np.random.Generator) -> list[np.ndarray]:
    """Mel power [frames, MELS] of half a minute and more of sounds that are no speech."""
    count = 31 * 16000
    time = np.arange(count) / 16000
    white = rng.normal(0, 0.1, count)
    spectrum = np.fft.rfft(white)
    bins = np.arange(1, len(spectrum) + 1)
    sounds = [white, np.fft.irfft(spectrum / np.sqrt(bins), count), np.fft.irfft(spectrum / bins, count)]
    sounds += [np.sin(2 * np.pi * frequency * time) for frequency in (50, 100, 440, 1000)]
    sounds.append(np.sum([np.sin(2 * np.pi * 50 * n * time) / n for n in (1, 2, 3, 5, 7)], axis=0))
    for _ in range(6):  # chords, a new one every 0.3 to 1 s
        chord, position = np.zeros(count), 0
        while position < count:
            length = int(rng.uniform(0.3, 1.0) * 16000)
            part = time[:length][: count - position]
            for note in rng.integers(40, 80, 3):
                tone = 440 * 2 ** ((note - 69) / 12)
                for harmonic in (1, 2, 3, 4):
                    decay = np.exp(-3 * part)
                    chord[position : position + len(part)] += (
                        decay * np.sin(2 * np.pi * tone * harmonic * part) / harmonic
                    )
            position += length
        sounds.append(chord)
    for _ in range(2):  # knocks and clicks
        clicks = np.zeros(count)
        for place in rng.integers(0, count - 800, 60):
            clicks[place : place + 800] += rng.normal(0, 1, 800) * np.exp(-np.arange(800) / 100)
        sounds.append(clicks)
    scaled = [(sound / np.abs(sound).max()).astype(np.float32) for sound in sounds]
    return [np.maximum(np.power(np.float32(10), log_power(sound)), FLOOR) for sound in scaled]
