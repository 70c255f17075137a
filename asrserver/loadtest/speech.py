"""The audio of a load test: sentences with known transcripts, with pauses between them.

A session's recording is not a file: it is composed while it is sent, of sentences that all sessions share, so that an
hour for each of 500 connections takes neither memory nor disk. A session's number determines its sentences: no two
sessions that are open at the same time send the same, so that a swapped transcript is detected.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.errors import AudioError, SettingError
from asrserver.loadtest.plan import Plan
from asrserver.text.wer import spoken

#: Bytes per frame: 100 ms of 16-bit PCM.
FRAME = SAMPLE_RATE // 10 * 2
FRAME_SECONDS = 0.1

#: Distinct frames of quiet; longer pauses repeat them.
QUIET_FRAMES = 100

#: Length in seconds of the pieces of a long recording.
LEAST_PIECE = 3.0
MOST_PIECE = 8.0

#: Level of the quiet, -66 dBFS: an empty room, unlike zeros, which would cost nothing to process.
QUIET_LEVEL = 16


@dataclass(frozen=True)
class Sentence:
    """A recording with its transcript, as frames of PCM and as one WAV."""

    text: str
    words: tuple[str, ...]
    frames: tuple[bytes, ...]
    wav: bytes

    @property
    def seconds(self) -> float:
        return len(self.frames) * FRAME_SECONDS


@dataclass(frozen=True)
class Part:
    """A sentence of a session, after a number of frames of quiet."""

    quiet: int
    sentence: Sentence


@cache
def quiet_frames() -> list[bytes]:
    """The frames of quiet, the same for all sessions."""
    noise = np.random.default_rng(0).normal(0, QUIET_LEVEL, QUIET_FRAMES * FRAME // 2)
    pcm = noise.astype("<i2").tobytes()
    return [pcm[at : at + FRAME] for at in range(0, len(pcm), FRAME)]


def sentence(text: str, pcm: bytes) -> Sentence:
    """A sentence of 16 kHz 16-bit mono PCM, padded with quiet to whole frames."""
    if missing := -len(pcm) % FRAME:
        pcm += quiet_frames()[0][:missing]
    frames = tuple(pcm[at : at + FRAME] for at in range(0, len(pcm), FRAME))
    return Sentence(text, tuple(spoken(text)), frames, wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), pcm))


def load(audio: tuple[tuple[str, str], ...], compared: bool = True) -> list[Sentence]:
    """The sentences of (path, transcript) pairs, or the packaged ones.

    Args:
        audio: The pairs.
        compared: The transcripts are needed, because texts will be compared with them.

    Raises:
        SettingError: A file cannot be decoded, or a transcript that is needed has no words.
    """
    from asrserver.audio.files import read_s16

    if not audio:
        folder = Path(str(files("asrserver").joinpath("data", "loadtest")))
        transcripts = json.loads((folder / "transcripts.json").read_text())
        audio = tuple((str(folder / name), text) for name, text in transcripts.items())
    found = []
    for path, text in audio:
        try:
            samples = b"".join(read_s16(Path(path), 1.0))
        except (AudioError, OSError) as exc:
            raise SettingError(f"--audio {path}: {getattr(exc, 'strerror', None) or exc}") from None
        if not samples:
            raise SettingError(f"--audio {path}: contains no audio")
        made = sentence(text, samples)
        if compared and not made.words:
            raise SettingError(f"--audio {path}: the transcript has no words")
        found.append(made)
    return found


def pieces(path: Path) -> list[bytes]:
    """Cut a recording where it is quietest, into WAV files of LEAST_PIECE to MOST_PIECE seconds; the last is shorter.

    Raises:
        AudioError: It cannot be decoded.
        OSError: It cannot be read.
    """
    from asrserver.audio.files import read_s16

    pcm = b"".join(read_s16(path, 1.0))
    frames = np.frombuffer(pcm[: len(pcm) // FRAME * FRAME], "<i2").reshape(-1, FRAME // 2)
    loudness = np.abs(frames.astype(np.int32)).mean(axis=1)
    least, most = round(LEAST_PIECE / FRAME_SECONDS), round(MOST_PIECE / FRAME_SECONDS)
    cuts = [0]
    while len(frames) - cuts[-1] > most:
        window = loudness[cuts[-1] + least : cuts[-1] + most]
        cuts.append(cuts[-1] + least + int(window.argmin()))
    cuts += [len(frames)] if len(frames) else []
    format = wav.Format.of("pcm_s16le", 1, SAMPLE_RATE)
    return [wav.encode(format, pcm[begin * FRAME : end * FRAME]) for begin, end in pairwise(cuts)]


class Scripts:
    """The sentences of each session; the first `distinct` ones distinguish it from all sessions that may be open."""

    def __init__(self, sentences: list[Sentence], plan: Plan) -> None:
        self.sentences = sentences
        self.plan = plan
        count = len(sentences)
        beginnings = 3 * plan.connections  # of the current, the previous and the next session of each connection
        self.distinct = 1 if count < 2 or not plan.compared else math.ceil(math.log(beginnings, count) - 1e-9)

    @property
    def told_apart(self) -> bool:
        """Whether the text of another session can be distinguished from that of a session."""
        if self.plan.connections == 1:
            return True
        words = sorted(one.words for one in self.sentences)
        return len(words) > 1 and all(a != b for a, b in pairwise(words))

    def first(self, connection: int, number: int) -> list[Sentence]:
        """The first sentences of the session `number` (from 0) of a connection."""
        base = len(self.sentences)
        value = (connection + number * self.plan.connections) % base**self.distinct
        digits = []
        for _ in range(self.distinct):
            value, digit = divmod(value, base)
            digits.append(digit)
        return [self.sentences[digit] for digit in digits]

    def script(self, connection: int, number: int) -> Iterator[Part]:
        """The parts of a session, to the end of its recording."""
        dice = random.Random(f"{self.plan.seed}/{connection}/{number}")
        beginning = self.first(connection, number)
        seconds, count = 0.0, 0
        while seconds < self.plan.length or count < self.distinct:
            one = beginning[count] if count < self.distinct else dice.choice(self.sentences)
            mean = one.seconds * (1 / self.plan.talk_ratio - 1)
            quiet = round(dice.uniform(0.5, 1.5) * mean / FRAME_SECONDS)
            seconds, count = seconds + one.seconds + quiet * FRAME_SECONDS, count + 1
            yield Part(quiet, one)

    def is_of_another_session(self, text: list[str], connection: int, number: int) -> bool:
        """Whether a text begins like that of another connection's session, or of the previous or next one."""
        here = (connection, number)
        return any(
            (other, near) != here and tuple(text[: len(begins)]) == begins
            for near in range(max(0, number - 1), number + 2)
            for other, begins in enumerate(self._beginnings(near))
        )

    @lru_cache(maxsize=8)  # noqa: B019  # it lives as long as the process
    def _beginnings(self, number: int) -> list[tuple[str, ...]]:
        return [
            tuple(word for one in self.first(connection, number) for word in one.words)
            for connection in range(self.plan.connections)
        ]
