"""Synthesised speech with the time of every word: espeak-ng and flite as libraries, festival as a program.

The libraries are called in-process: one program per sentence would cost ten times as much, and only the libraries
report when each word is spoken.
"""

from __future__ import annotations

import ctypes as c
import random
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
from grammar import units

from asrserver.audio import SAMPLE_RATE, wav

#: espeak-ng's accents of English. Its Mandarin is the voice that reads pinyin: `cmn` of espeak-ng 1.51 (Debian 12)
#: has no dictionary of syllables and spells the pinyin of each character in English letters.
ACCENTS = {
    "en": ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    "zh": ("cmn-latn-pinyin",),
}

#: espeak-ng's speaker variants; without the whispering, croaking and shouting ones.
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m8", "f1", "f2", "f3", "f5"),
    *("Alex", "Alicia", "Andrea", "Denis", "Diogo", "Gene", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike"),
    *("adam", "anika", "antonio", "belinda", "benjamin", "boris", "caleb", "david", "ed", "grandma", "grandpa"),
    *("iven", "john", "marcelo", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob"),
    *("robert", "sandro", "shelby", "steph", "travis", "victor", "zac", "klatt", "klatt3"),
)

#: Variants, and a synthesiser, that training never hears.
HELD_OUT_VARIANTS = ("m7", "f4", "linda", "edward")
FLITE = ("kal16", "awb", "rms", "slt")
FESTIVAL = "cmu_us_slt_arctic_hts"

#: Share of English sentences that flite speaks.
FLITE_SHARE = 0.35


#: Samples, and the words in them with their times.
_Timed = tuple[np.ndarray, list[tuple[str, float, float]]]


@dataclass
class Speech:
    """16 kHz int16 samples, trimmed to where they sound, and (word or character, start, end) of each in seconds."""

    samples: np.ndarray
    words: list[tuple[str, float, float]]
    voice: str


def speak(text: str, language: str, rng: random.Random, unheard: bool = False) -> Speech:
    """The sentence in a voice, at a speed and a pitch drawn from `rng`; `unheard`: a voice kept from training."""
    variants = HELD_OUT_VARIANTS if unheard else VARIANTS
    if language == "en" and not unheard and rng.random() < FLITE_SHARE:
        voice, stretch = rng.choice(FLITE), rng.uniform(0.8, 1.25)
        return _trimmed(_flite(text, voice, stretch), f"flite {voice}")
    voice = f"{rng.choice(ACCENTS[language])}+{rng.choice(variants)}"
    pcm = _espeak(text, language, voice, rng.randint(120, 200), rng.randint(20, 80), rng.randint(30, 70))
    return _trimmed(pcm, f"espeak-ng {voice}")


def _trimmed(spoken: tuple[np.ndarray, list[tuple[str, float, float]]], voice: str) -> Speech:
    """Without the silence around it: speech begins and ends where a 10 ms frame is within 45 dB of the loudest."""
    samples, words = spoken
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160).astype(np.float32)
    power = np.square(frames).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10**-4.5)
    first, last = int(loud[0]), int(loud[-1]) + 1
    begin, length = first / 100, (last - first) / 100
    moved = [(word, min(max(s - begin, 0), length), min(max(e - begin, 0), length)) for word, s, e in words]
    return Speech(samples[first * 160 : last * 160].copy(), moved, voice)


def _spread(words: list[str], start: float, end: float) -> list[tuple[str, float, float]]:
    """Words that were timed as one: each gets time by its length."""
    ends = np.cumsum([len(word) for word in words], dtype=float)
    edges = start + np.concatenate([[0.0], ends / ends[-1]]) * (end - start)
    return [(word, float(edges[i]), float(edges[i + 1])) for i, word in enumerate(words)]


# -- espeak-ng (speak_lib.h) -----------------------------------------------------------------------------------------

_RETRIEVAL, _CHARS_UTF8, _POS_CHARACTER, _END = 2, 1, 1, 0
_WORD_EVENT = 1
_SPEED, _PITCH, _RANGE = 1, 3, 4


class _Event(c.Structure):
    _fields_ = [
        ("type", c.c_int), ("uid", c.c_uint), ("text_position", c.c_int), ("length", c.c_int),
        ("audio_position", c.c_int), ("sample", c.c_int), ("user_data", c.c_void_p), ("id", c.c_char * 8),
    ]  # fmt: skip


_CALLBACK = c.CFUNCTYPE(c.c_int, c.POINTER(c.c_short), c.c_int, c.POINTER(_Event))


class _Espeak:
    def __init__(self) -> None:
        self._library = c.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(_RETRIEVAL, 100, None, 0)
        self._audio: list[bytes] = []
        self._events: list[tuple[int, float]] = []
        self._callback = _CALLBACK(self._take)  # the library keeps no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, wave: c._Pointer[c.c_short], count: int, events: c._Pointer[_Event]) -> int:
        if count > 0:
            self._audio.append(c.string_at(wave, count * 2))
        number = 0
        while (event := events[number]).type:
            if event.type == _WORD_EVENT and event.length:
                self._events.append((event.text_position - 1, event.audio_position / 1000))
            number += 1
        return 0

    def speak(
        self, text: str, voice: str, speed: int, pitch: int, spread: int
    ) -> tuple[np.ndarray, list[tuple[int, float]]]:
        self._audio.clear()
        self._events.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice}")
        for parameter, value in ((_SPEED, speed), (_PITCH, pitch), (_RANGE, spread)):
            self._library.espeak_SetParameter(parameter, value, 0)
        raw = text.encode()
        self._library.espeak_Synth(raw, len(raw) + 1, 0, _POS_CHARACTER, _END, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.frombuffer(b"".join(self._audio), np.int16)
        return _resampled(samples, self._rate), list(self._events)


@cache
def _espeak_library() -> _Espeak:
    return _Espeak()


def _espeak(text: str, language: str, voice: str, speed: int, pitch: int, spread: int) -> _Timed:
    samples, events = _espeak_library().speak(text, voice, speed, pitch, spread)
    words = units(text, language)
    starts, position = [], 0
    for word in words:
        position = text.index(word, position)
        starts.append(position)
        position += len(word)
    times = dict(events)
    timed, begun = [], 0.0
    group: list[str] = []
    for word, position in zip(words, starts, strict=True):
        if position in times and group:
            timed += _spread(group, begun, times[position])
            group = []
        if position in times and not group:
            begun = times[position]
        group.append(word)  # a word without a time of its own ("on the") was spoken with the one before
    timed += _spread(group, begun, len(samples) / SAMPLE_RATE)
    return samples, timed


# -- flite (cst_utterance.h, cst_ffeatures.h) --------------------------------------------------------------------------


class _Wave(c.Structure):
    _fields_ = [
        ("type", c.c_char_p), ("sample_rate", c.c_int), ("num_samples", c.c_int), ("num_channels", c.c_int),
        ("samples", c.POINTER(c.c_short)),
    ]  # fmt: skip


class _Voice(c.Structure):
    _fields_ = [("name", c.c_char_p), ("features", c.c_void_p)]


class _Flite:
    def __init__(self) -> None:
        self._library = lib = c.CDLL("libflite.so.1", mode=c.RTLD_GLOBAL)
        for name in ("libflite_usenglish.so.1", "libflite_cmulex.so.1"):
            c.CDLL(name, mode=c.RTLD_GLOBAL)
        for name, arguments, result in (
            ("flite_synth_text", [c.c_char_p, c.c_void_p], c.c_void_p),
            ("utt_wave", [c.c_void_p], c.POINTER(_Wave)),
            ("utt_relation", [c.c_void_p, c.c_char_p], c.c_void_p),
            ("relation_head", [c.c_void_p], c.c_void_p),
            ("item_next", [c.c_void_p], c.c_void_p),
            ("item_feat_string", [c.c_void_p, c.c_char_p], c.c_char_p),
            ("ffeature_float", [c.c_void_p, c.c_char_p], c.c_float),
            ("feat_set_float", [c.c_void_p, c.c_char_p, c.c_float], None),
            ("delete_utterance", [c.c_void_p], None),
        ):
            function = getattr(lib, name)
            function.argtypes, function.restype = arguments, result
        lib.flite_init()
        self._voices: dict[str, c._Pointer[_Voice]] = {}

    def _voice(self, name: str) -> c._Pointer[_Voice]:
        if name not in self._voices:
            library = c.CDLL(f"libflite_cmu_us_{name}.so.1", mode=c.RTLD_GLOBAL)
            register = getattr(library, f"register_cmu_us_{name}")
            register.argtypes, register.restype = [c.c_char_p], c.POINTER(_Voice)
            self._voices[name] = register(None)
        return self._voices[name]

    def speak(self, text: str, name: str, stretch: float) -> _Timed:
        lib, voice = self._library, self._voice(name)
        lib.feat_set_float(voice.contents.features, b"duration_stretch", stretch)
        utterance = lib.flite_synth_text(text.encode(), c.cast(voice, c.c_void_p))
        wave = lib.utt_wave(utterance).contents
        samples = np.frombuffer(c.string_at(wave.samples, wave.num_samples * 2), np.int16)
        first = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
        last = b"R:SylStructure.daughtern.daughtern.R:Segment.end"
        words = []
        item = lib.relation_head(lib.utt_relation(utterance, b"Word"))
        while item:
            spoken = lib.item_feat_string(item, b"name").decode()
            words.append((spoken, lib.ffeature_float(item, first), lib.ffeature_float(item, last)))
            item = lib.item_next(item)
        rate = wave.sample_rate
        lib.delete_utterance(utterance)
        return _resampled(samples, rate), words


@cache
def _flite_library() -> _Flite:
    return _Flite()


def _flite(text: str, voice: str, stretch: float) -> _Timed:
    samples, spoken = _flite_library().speak(text, voice, stretch)
    words = text.split()
    if [word for word, _, _ in spoken] != words:  # something was expanded: "am", perhaps
        return samples, _spread(words, spoken[0][1], spoken[-1][2])
    return samples, spoken


# -- festival --------------------------------------------------------------------------------------------------------


def festival(texts: list[str]) -> list[Speech]:
    """English sentences by festival's HTS voice; their words are timed by length alone."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"(voice_{FESTIVAL})"]
        paths = [Path(folder) / f"{number}.wav" for number in range(len(texts))]
        lines += [
            f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{path}" \'riff)'
            for text, path in zip(texts, paths, strict=True)
        ]
        script = Path(folder) / "speak.scm"
        script.write_text("\n".join(lines))
        subprocess.run(["festival", "--batch", str(script)], check=True, stdin=subprocess.DEVNULL)
        return [_read(path, text) for path, text in zip(paths, texts, strict=True)]


def _read(path: Path, text: str) -> Speech:
    data = path.read_bytes()
    header = wav.read_header(data)
    assert header is not None, path
    samples = np.frombuffer(data[header.offset :][: header.size], np.int16)
    samples = _resampled(samples, header.format.rate)
    return _trimmed((samples, _spread(text.split(), 0.0, len(samples) / SAMPLE_RATE)), f"festival {FESTIVAL}")


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return samples.copy()
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
    frame.sample_rate = rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])
